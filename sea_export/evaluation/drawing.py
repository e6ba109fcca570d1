"""What all pictures share: colours, markers, and how a picture is begun and written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "VERMILION", "check_picture", "new_figure", "plain", "save_figure"]

# Okabe and Ito's colours: distinct for all common kinds of colour vision. Markers and hatches tell the same in grey.
BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#555555"

_FORMATS = (".png", ".pdf", ".svg")


def check_picture(file: Path) -> None:
    """Raises InputError if no picture could be written to `file`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'sea-export[plots]'")
    if file.suffix.lower() not in _FORMATS:
        raise InputError(f"{file} cannot be drawn: its name must end in {', '.join(_FORMATS)}")
    if not file.resolve().parent.is_dir():
        raise InputError(f"{file} cannot be drawn: its directory does not exist")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, file: Path) -> None:
    """Writes a figure; the file's ending chooses the format.

    Raises:
        InputError: the file cannot be written.
    """
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix.lower(), {})
    try:
        figure.savefig(file, dpi=150, metadata=metadata)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error


def plain(axes: Axes) -> None:
    """Takes the upper and the right line of the frame away."""
    axes.spines[["top", "right"]].set_visible(False)
