"""The most memory that this process has had since some moment. Only Linux forgets what was before."""

from __future__ import annotations

import re
from pathlib import Path

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Is measured from when it is made on.

    Attributes:
        before: the bytes that the process had then.
    """

    def __init__(self) -> None:
        (_PROCESS / "clear_refs").write_text("5")  # the peak is now what the process has
        self.before = _peak_bytes()

    @staticmethod
    def is_known() -> bool:
        """Whether this system tells it."""
        return (_PROCESS / "status").exists()

    def growth(self) -> int:
        """How many more bytes than then the process has had at most."""
        return _peak_bytes() - self.before


def _peak_bytes() -> int:
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text())
    return int(kilobytes) * 1024
