"""The report of a write: its files and tensors, with their digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NOTHING_WRITTEN", "WriteReport"]


@dataclass(frozen=True)
class WriteReport:
    """What was written.

    Attributes:
        base_digests: SHA-256 of every file that was read from the base, by relative path.
        digests: SHA-256 of every file written, by relative path.
        edited: the tensors whose bytes differ from the base's, in the order of the files.
        unchanged: the tensors that were edited, and whose bytes are still the base's.
        added: the tensors that the base does not have.
    """

    base_digests: Mapping[str, str]
    digests: Mapping[str, str]
    edited: tuple[str, ...]
    unchanged: tuple[str, ...]
    added: tuple[str, ...]


NOTHING_WRITTEN = WriteReport(base_digests={}, digests={}, edited=(), unchanged=(), added=())
"""The report before anything is written."""
