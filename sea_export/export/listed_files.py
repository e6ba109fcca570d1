"""The files of an output, compared with those that its manifest lists. This needs neither the base nor a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sea_export.export.manifest import MANIFEST
from sea_export.files.digests import file_digest
from sea_export.model.model_files import walk_files

__all__ = ["FileCheck", "check_files"]

_FOLDERS_OF_OTHER_TOOLS = (".git", ".cache")
_FILES_OF_OTHER_TOOLS = (".gitattributes",)  # every repository of the Hub has one
_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class FileCheck:
    """What was found."""

    problems: tuple[str, ...]
    """What is not as the manifest says, each as a clause without a full stop that names the file."""
    unchecked: tuple[str, ...]
    """The files and folders whose contents no digest vouches for. A folder ends in a slash."""


def check_files(directory: Path, listed: Mapping[str, str], *, not_fetched: frozenset[str] = frozenset()) -> FileCheck:
    """Compares the files of an output with its manifest: first their names, then the small ones, then the weights.

    Where a cheaper comparison finds a problem, the next one is not made.

    Args:
        directory: the output.
        listed: SHA-256, in hexadecimal, by relative path.
        not_fetched: the files that were not downloaded from the Hub. They may be missing.

    Raises:
        InputError: a link leads out of the output, or something in it is neither a file nor a folder.
        SeaExportError: a file changed while it was read.
    """
    present = {
        path.relative_to(directory).as_posix() + ("/" if path.is_dir() else "")
        for path in walk_files(directory, _FOLDERS_OF_OTHER_TOOLS)
    }
    foreign = {one for one in present if one.endswith("/") or one in _FILES_OF_OTHER_TOOLS} - listed.keys()
    unchecked = (MANIFEST, *sorted(foreign | (not_fetched - present)))
    problems = [f"{file} is missing" for file in sorted(listed.keys() - present - not_fetched)]
    problems += [
        f"{file} was added, and does not belong to the output"
        for file in sorted(present - listed.keys() - foreign - {MANIFEST})
    ]
    there = sorted(listed.keys() & present)
    for weights in (False, True):
        if not problems:
            problems = [
                f"{file} has other contents than when it was written"
                for file in there
                if file.endswith(_WEIGHTS) == weights and file_digest(directory / file) != listed[file]
            ]
    return FileCheck(tuple(problems), unchecked)
