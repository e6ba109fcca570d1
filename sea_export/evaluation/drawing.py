"""What all pictures share: their look, and how one is begun and written.

Pictures stand on white pages and on dark ones. So they have no background of their own, and nothing in them is nearly
white or nearly black. They are as wide as a column of text, in which letters of their size can be read.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
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
    "INK",
    "ORANGE",
    "PURPLE",
    "VERMILION",
    "WIDTH",
    "check_picture",
    "picture",
    "plain",
    "shown_label",
]

# The colours of Okabe and Ito, which all common kinds of colour vision can tell apart. Markers and hatches differ too.
BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#B5659A"
INK = "#767B82"
"""Text, axes and what has no colour of its own: a grey with equal contrast to white and to a dark page."""

WIDTH = 7.0
"""Inches."""

_LOOK: Any = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"grid.color": INK, "grid.alpha": 0.3, "legend.frameon": False},
    **{"font.size": 9.5, "axes.titlesize": 10.5, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9},
}
_DOTS_PER_INCH = 200
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


@contextmanager
def picture(file: Path, height: float) -> Iterator[Figure]:
    """A context with an empty figure, which is written when the context ends.

    Args:
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).
        height: that of the figure in inches.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    check_picture(file)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_LOOK):  # axes take their colours when they are made
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    format = file.suffix.lower()[1:]
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format, {})
    written = io.BytesIO()
    figure.savefig(written, format=format, dpi=_DOTS_PER_INCH, metadata=metadata)
    try:
        write_result(file, written.getvalue())
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
