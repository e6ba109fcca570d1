"""The options of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sea_export.options import option

__all__ = ["DoctorOptions"]


@dataclass(frozen=True)
class DoctorOptions:
    """What would be written."""

    output: Path = option(Path("sea-export-output"), "What would be written: its disk is looked at.")
