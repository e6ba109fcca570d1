"""The files of the base of a patch on this machine: whether they are those that the patch was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sea_export.errors import InputError
from sea_export.files.reading import check_contained
from sea_export.model.base_files import BaseFiles
from sea_export.model.location import ModelLocation

__all__ = ["checked_base", "directory_of"]


def directory_of(location: ModelLocation) -> Path:
    """The directory that holds the files of a model.

    Args:
        location: where the model is.
    """
    return location.path if location.path.is_dir() else location.path.parent


@contextmanager
def checked_base(location: ModelLocation, digests: Mapping[str, str]) -> Iterator[BaseFiles]:
    """A context in which the files of a base are those that they should be, and stay so.

    Args:
        location: where it is.
        digests: SHA-256 of its files, in hexadecimal, by relative path.

    Raises:
        InputError: a file is missing, or has other contents. The message names it.
        SeaExportError: one of them changed while it was read.
    """
    directory = directory_of(location)
    for name in digests:
        if not (directory / name).is_file():
            raise InputError(f"{location.name}: it has no {name}, and the base has one. Give that base.")
        check_contained(directory / name, directory)
    with BaseFiles(directory, digests) as files:
        for name, digest in digests.items():
            if files.digests([name])[name] != digest:
                raise InputError(
                    f"{location.name}: its {name} is not that of the base (SHA-256 {digest[:12]}…). It was changed, or "
                    "this is another base. Give the base as it was."
                )
        yield files
