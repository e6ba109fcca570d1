"""What all pictures share: colours, and how a picture is started and written."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, reason
from sea_export.files.writing import check_destinations, write_result
from sea_export.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "VERMILION",
    "check_picture",
    "new_figure",
    "plain",
    "save_figure",
    "shown_label",
]

# The colours of Okabe and Ito, which all common kinds of colour vision can tell apart. Markers and hatches differ too.
BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#555555"

_FORMATS = (".png", ".pdf", ".svg")


def check_picture(file: Path) -> None:
    """Raises InputError if no picture can be written to `file`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            f"{file}: a picture needs matplotlib, which is not installed. Run pip install 'sea-export[plots]'."
        )
    if file.suffix.lower() not in _FORMATS:
        raise InputError(f"{file}: it is no picture by its name. Give a name that ends in {', '.join(_FORMATS)}.")
    check_destinations([file])


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, file: Path) -> None:
    """Writes a figure. The ending of the file name decides the format.

    Raises:
        InputError: the file cannot be written.
    """
    format = file.suffix.lower()[1:]
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format, {})
    picture = io.BytesIO()
    figure.savefig(picture, format=format, dpi=150, metadata=metadata)
    try:
        write_result(file, picture.getvalue())
    except OSError as error:
        raise InputError(f"{file}: it cannot be written ({reason(error)}). Choose another file.") from error


def shown_label(text: str) -> str:
    """A name of unknown origin as a label in a picture, where dollars would begin a formula.

    Args:
        text: any text.
    """
    return visible(text).replace("$", r"\$")


def plain(axes: Axes) -> None:
    """Removes the upper and the right line of the frame."""
    axes.spines[["top", "right"]].set_visible(False)
