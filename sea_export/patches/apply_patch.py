"""Applies a patch to its base: every byte is proved before anything is written, and once more while it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, SeaExportError
from sea_export.export.output import check_output, check_room, staged_output
from sea_export.model.location import locate_model
from sea_export.patches.base_directory import checked_base, directory_of
from sea_export.patches.patch_file import Patch, read_patch
from sea_export.patches.patch_pieces import Copy, ResultFile
from sea_export.patches.rebuild import Digester, edits_of, rebuild

if TYPE_CHECKING:
    from sea_export.edit.layer_edit import LayerEdit
    from sea_export.model.targets import Target

__all__ = ["AppliedPatch", "apply_patch", "prove"]


@dataclass(frozen=True)
class AppliedPatch:
    """An output that was made from its base and a patch.

    Attributes:
        output: its directory.
        files: name of each file -> its SHA-256, in hexadecimal.
    """

    output: Path
    files: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"output": str(self.output), "files": dict(self.files)}


def apply_patch(
    base: str | Path,
    file: str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> AppliedPatch:
    """Makes an output again from its base and a patch. Every file is that of the first output, byte for byte.

    Args:
        base: the base of the output: a Hub id, a local directory, or a `.gguf` file.
        file: what `make_patch` wrote.
        output: the directory to write.
        revision: the revision of the base on the Hub; None for the one that the patch names, if it names that base.
        overwrite: replace a checkpoint that sea-export wrote before.
        progress: called with the number of bytes written since the last call.

    Returns:
        What was made.

    Raises:
        InputError: the patch is damaged or tells of files outside of the output, or the base is another one. Nothing
            was written.
        SeaExportError: writing failed, or a file changed meanwhile. Nothing was kept.
    """
    output = Path(output)
    check_output(output, overwrite=overwrite)
    patch = read_patch(Path(file))
    if revision is None and str(base) == patch.base_name and not Path(base).exists():
        revision = patch.revision
    location = locate_model(str(base), revision)
    check_room(output, [location.path, patch.path], needed_bytes=patch.output_bytes)
    directory = directory_of(location)
    _check_sizes(patch, directory, location.name)
    with checked_base(location, {name: one.sha256 for name, one in patch.base_files.items()}) as files:
        edits = edits_of(patch)
        prove(patch, directory, edits)
        with staged_output(output, overwrite=overwrite) as staging:
            for name, one in patch.files.items():
                digest = _write(one, patch, edits, directory, staging / name, progress or (lambda count: None))
                if digest != one.sha256:
                    raise SeaExportError(
                        f"{output}: {name} is not as the patch says, and nothing was kept. Run it again."
                    )
            files.check()
    return AppliedPatch(output, {name: one.sha256 for name, one in patch.files.items()})


def prove(patch: Patch, directory: Path, edits: Mapping[Target, Sequence[LayerEdit]]) -> None:
    """Computes every file of the output, without writing it.

    Args:
        patch: the patch.
        directory: that of the base, whose files are those of the patch.
        edits: what `edits_of` gave.

    Raises:
        InputError: a file has another digest than the patch says.
    """
    for name, file in patch.files.items():
        if file.source is not None and file.pieces == (Copy(file.size),):
            digest = patch.base_files[file.source].sha256
        else:
            with Digester(None if file.source is None else directory / file.source) as digester:
                rebuild(file, patch, edits, digester)
            digest = digester.sha256()
        if digest != file.sha256:
            raise InputError(
                f"{patch.path}: it is damaged, or folds otherwise than this version of sea-export, because the {name} "
                "that it makes is not the one that it names. Get it again, or make it again."
            )


def _check_sizes(patch: Patch, directory: Path, base_name: str) -> None:
    """Raises InputError for a base that is another one, as far as the sizes of its files tell that."""
    for name, one in patch.base_files.items():
        path = directory / name
        if path.is_file() and path.stat().st_size != one.size:
            raise InputError(
                f"{base_name}: its {name} has {path.stat().st_size} bytes, and that of the base has {one.size}. Give "
                f"the base of the patch, {patch.base_name}."
            )


def _write(
    file: ResultFile,
    patch: Patch,
    edits: Mapping[Target, Sequence[LayerEdit]],
    directory: Path,
    destination: Path,
    progress: Callable[[int], None],
) -> str:
    """Writes one file. Returns its digest."""
    from sea_export.export.streaming import FileCopy  # with torch, which takes seconds to import

    destination.parent.mkdir(parents=True, exist_ok=True)
    if file.source is None:
        with open(destination, "xb") as stream, Digester(None, stream) as digester:
            rebuild(file, patch, edits, digester)
        progress(file.size)
        return digester.sha256()
    known = patch.base_files[file.source].sha256
    with FileCopy(directory / file.source, destination, progress=progress, known=known) as copy:
        if file.pieces == (Copy(file.size),):
            copy.copy_rest()
        else:
            rebuild(file, patch, edits, copy)
        return copy.digests()[1]
