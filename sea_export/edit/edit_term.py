"""How an edit is written on the command line: `EDIT`, `EDIT*0.5` at half its strength, `-EDIT` to take its change off.

Nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from sea_export.errors import InputError
from sea_export.options import check_strength

__all__ = ["EditTerm"]


@dataclass(frozen=True)
class EditTerm:
    """One edit of several that are combined."""

    directory: Path
    """Where it is."""
    factor: float
    """What its strength is multiplied by."""

    @classmethod
    def parse(cls, text: str) -> EditTerm:
        """Reads what the user wrote.

        Args:
            text: a directory, perhaps with `-` before it, and with `*` and a number after it. What exists under the
                whole text is taken as it is.

        Raises:
            InputError: what follows the `*` is no number, or 0.
        """
        if Path(text).exists():
            return cls(Path(text), 1.0)
        match = re.fullmatch(r"(-?)(.+?)(?:\*([^*]*))?", text, re.DOTALL)
        if match is None:
            raise InputError(f"EDIT: {text!r} names no edit. Give the directory of one.")
        sign, directory, number = match.groups()
        try:
            factor = 1.0 if number is None else float(number)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor) or factor == 0:
            raise InputError(f"{text}: after the * there is no number that scales an edit. Write EDIT*0.5.")
        check_strength(factor)
        return cls(Path(directory), -factor if sign else factor)
