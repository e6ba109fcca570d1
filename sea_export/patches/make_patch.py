"""Makes a patch of an output: what it has that its base has not, in one file.

A patch makes every file that the manifest of the output lists, and the manifest. Of each of them it holds

- nothing, where the base has a file with the same bytes, under whatever name;
- in a weight file, the header if it differs, and the tensors that differ or are new; nothing of a tensor that the edit
  in the output gives again, to the last bit and on every processor;
- else the whole file: the edit, the model card, the manifest, and a config in which something was turned on.

Before the file gets its name, the output is made from it and compared with the output that it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.export.formats import export_format
from sea_export.export.listed_files import check_files
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.files.digests import file_digest
from sea_export.files.writing import check_destinations, complete_file
from sea_export.model.base_files import BaseFiles
from sea_export.model.location import ModelLocation, has_safetensors, is_hub_id, locate_model
from sea_export.patches.apply_patch import prove
from sea_export.patches.base_directory import checked_base, directory_of
from sea_export.patches.file_regions import HEADER, Match, is_weight_file, matched
from sea_export.patches.patch_file import BaseFile, metadata_of, read_patch
from sea_export.patches.patch_pieces import Copy, Data, Piece, ResultFile
from sea_export.patches.patch_writer import PatchTensor, write_patch
from sea_export.patches.rebuild import edits_of

if TYPE_CHECKING:
    from sea_export.patches.refolded import Refolded

__all__ = ["MadePatch", "check_patch_destination", "make_patch"]

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class MadePatch:
    """A patch that was made.

    Attributes:
        path: its file.
        size: the size of the file in bytes.
        output_bytes: the size of the output that it makes.
        files: the number of files that it makes.
        stored: the tensors that it holds, because they differ from the base's or are new.
        folded: the tensors that differ from the base's, and that the edit in it gives again.
    """

    path: Path
    size: int
    output_bytes: int
    files: int
    stored: tuple[str, ...]
    folded: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {**asdict(self), "path": str(self.path), "stored": list(self.stored), "folded": list(self.folded)}


def make_patch(
    output: str | Path,
    file: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> MadePatch:
    """Makes a patch of an output: one file from which everybody who has the base makes the output again.

    Args:
        output: a checkpoint that sea-export wrote.
        file: the safetensors file to write.
        base: the base of the output: a Hub id, a local directory, or a `.gguf` file; None for the one that the manifest
            names, if that is a Hub id.
        revision: the revision of the base on the Hub; None for the one in the manifest.
        trust_remote_code: whether code that comes with the base may run.
        overwrite: replace a patch that is there.

    Returns:
        What the patch holds.

    Raises:
        InputError: sea-export did not write the output, files of it were changed, or the base is another one.
        SeaExportError: a file changed while it was read.
    """
    output, file = Path(output), Path(file)
    check_patch_destination(file, overwrite=overwrite)
    manifest = read_manifest(output)
    location = _locate(output, manifest, base, revision)
    for folder in (output, location.path):
        if file.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{file}: it lies in {folder}, to which no file may be added. Choose another place for it."
            )
    base_digests, directory = _base_digests(output, manifest, location), directory_of(location)
    if problems := check_files(output, manifest["files"]).problems:
        raise InputError(f"{output}: {problems[0]}. Give the output as it was written.")
    digests = {**manifest["files"], MANIFEST: file_digest(output / MANIFEST)}
    with checked_base(location, base_digests) as base_files, BaseFiles(output, digests) as own_files:
        contents = _Contents(directory, base_digests, output, digests)
        folds = _folds(manifest, location, output, contents.changed, trust_remote_code=trust_remote_code)
        files = {name: contents.file(name, folds) for name in digests}
        described = {name: BaseFile((directory / name).stat().st_size, one) for name, one in base_digests.items()}
        with complete_file(file) as unfinished:
            write_patch(unfinished, contents.tensors, metadata_of(location.name, location.revision, described, files))
            patch = read_patch(unfinished)
            prove(patch, directory, edits_of(patch))
            for one in (base_files, own_files):
                one.check()
    stored = tuple(name for name in contents.changed if name not in folds)
    return MadePatch(file, file.stat().st_size, patch.output_bytes, len(files), stored, tuple(folds))


def check_patch_destination(file: Path, *, overwrite: bool) -> None:
    """Refuses a file to which no patch can be written.

    Args:
        file: the file.
        overwrite: whether a patch that is there may be replaced.

    Raises:
        InputError: it has another suffix, its directory is missing, or something is there that may not be replaced.
    """
    if file.suffix != _SUFFIX:
        raise InputError(f"{file}: a patch is a safetensors file. Give it a name that ends in {_SUFFIX}.")
    if file.exists() and not overwrite:
        raise InputError(f"{file}: it exists. Choose another file, or replace it with --overwrite.")
    check_destinations([file])
    if file.exists():
        read_patch(file)  # raises for a file that is no patch, which is not replaced


def _locate(output: Path, manifest: Mapping[str, Any], base: str | Path | None, revision: str | None) -> ModelLocation:
    named = manifest["base"]
    base = base or export_format(manifest["format"]).base_of(output)
    if base is None and not is_hub_id(named["name"]):
        raise InputError(f"{output}: it was made from the local model {named['name']}. Say where it is with --base.")
    return locate_model(str(base or named["name"]), revision or (named["revision"] if base is None else None))


def _base_digests(output: Path, manifest: Mapping[str, Any], location: ModelLocation) -> dict[str, str]:
    """SHA-256 of the files of the base from which the output was made, by relative path."""
    files, is_file = manifest["base"]["files"], location.path.is_file()
    known = {name: digest for name, digest in files.items() if name.endswith(".gguf") or not is_file}
    if not known or manifest["base"]["dequantized"] or not (is_file or has_safetensors(location.path)):
        raise InputError(
            f"{output}: it was made from converted weights of {location.name}, and a patch of it would hold all of "
            "them. Share the output itself, or the edit in it."
        )
    return known


def _folds(
    manifest: Mapping[str, Any],
    location: ModelLocation,
    output: Path,
    changed: Iterable[str],
    *,
    trust_remote_code: bool,
) -> dict[str, Refolded]:
    """The changed tensors that the edit gives again. Only plain weights in the storage of the base are folded."""
    format = export_format(manifest["format"])
    if not format.rounds_weights or format.changes_source or manifest.get("export", {}).get("requantize", False):
        return {}
    from sea_export.patches.refolded import refolded_tensors

    return dict(refolded_tensors(location, output, set(changed), trust_remote_code=trust_remote_code))


@dataclass
class _Contents:
    """What a patch holds: the files of the output, and the tensors that they need."""

    base: Path
    base_digests: Mapping[str, str]
    output: Path
    digests: Mapping[str, str]
    tensors: list[PatchTensor] = field(default_factory=list)
    _matches: dict[str, list[Match]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sources = {digest: name for name, digest in self.base_digests.items()}
        for name, digest in self.digests.items():
            if digest not in self._sources and name in self.base_digests and is_weight_file(name):
                found = matched(self.base / name, self.output / name)
                if found is not None:
                    self._matches[name] = found

    @property
    def changed(self) -> tuple[str, ...]:
        """The tensors that differ from the base's, or that it does not have."""
        return tuple(
            one.region.name
            for found in self._matches.values()
            for one in found
            if not one.is_same and one.region.name != HEADER
        )

    def file(self, name: str, folds: Mapping[str, Refolded]) -> ResultFile:
        """What a file of the output consists of. The tensors that it needs are added."""
        digest, size = self.digests[name], (self.output / name).stat().st_size
        source = name if self.base_digests.get(name) == digest else self._sources.get(digest)
        if source is not None:
            return ResultFile(size, digest, source, (Copy(size),))
        if name not in self._matches:
            whole = PatchTensor(name, "U8", (size,), self.output / name, 0, size)
            return ResultFile(size, digest, None, (Data(0, self._held(whole)),))
        pieces = [self._piece(name, one, folds.get(one.region.name)) for one in self._matches[name]]
        return ResultFile(size, digest, name, _joined(pieces))

    def _piece(self, file: str, match: Match, refolded: Refolded | None) -> Piece:
        region, name = match.region, f"{file}:{match.region.name}"
        if match.is_same:
            return Copy(region.size)
        if refolded is None:
            own = PatchTensor(name, region.stored_as, region.shape, self.output / file, region.start, region.size)
            return Data(match.replaced, self._held(own))
        if refolded.count == 0:
            return refolded.fold
        held = [
            self._held(PatchTensor(f"{name}:{kind}", stored_as, (refolded.count,), None, 0, len(data), data))
            for kind, stored_as, data in (
                ("positions", "I64", refolded.positions),
                ("values", refolded.fold.stored_as, refolded.values),
            )
        ]
        return replace(refolded.fold, positions=held[0], values=held[1])

    def _held(self, tensor: PatchTensor) -> str:
        self.tensors.append(tensor)
        return tensor.name


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same pieces, with copies that follow one another joined."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Copy) and joined and isinstance(joined[-1], Copy):
            joined[-1] = Copy(joined[-1].count + piece.count)
        else:
            joined.append(piece)
    return tuple(joined)
