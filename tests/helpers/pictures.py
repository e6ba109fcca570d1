"""Whether one can read a picture on a white page, on a dark page, and in a narrow column."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

__all__ = ["assert_readable"]

WHITE, DARK = "#ffffff", "#0d1117"
COLUMN = 640
"""Pixels."""
_SMALLEST_LETTERS = 10
"""Pixels, in a column of that width."""
_TEXT_CONTRAST, _LINE_CONTRAST = 4.2, 3.0


def assert_readable(figure: Figure) -> None:
    """Without a background, with colours that stand out on both pages, letters large enough and apart, nothing cut."""
    figure.draw_without_rendering()
    assert figure.get_facecolor()[3] == 0
    assert all(axes.get_facecolor()[3] == 0 for axes in figure.axes)
    width = figure.get_figwidth()
    for text in (one for one in figure.findobj(Text) if one.get_text() and one.get_visible()):
        assert contrast(text.get_color()) >= _TEXT_CONTRAST, text.get_text()
        assert text.get_fontsize() / 72 / width * COLUMN >= _SMALLEST_LETTERS, text.get_text()
    for line in figure.findobj(Line2D):
        assert contrast(line.get_color()) >= _LINE_CONTRAST, line.get_label()
    for axes in figure.axes:
        _assert_ticks_are_apart(axes)
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= width
    assert inside.y1 <= figure.get_figheight()


def _assert_ticks_are_apart(axes: Axes) -> None:
    """Between labels side by side half the size of a letter is free; those above each other do not touch."""
    for axis, start, end, space in ((axes.xaxis, "x0", "x1", 0.5), (axes.yaxis, "y0", "y1", 0.0)):
        labels = [one for one in axis.get_ticklabels() if one.get_text() and one.get_visible()]
        boxes = {one: one.get_window_extent() for one in labels}
        for one, other in pairwise(sorted(labels, key=lambda label: getattr(boxes[label], start))):
            free = getattr(boxes[other], start) - getattr(boxes[one], end)
            assert free >= space * one.get_fontsize() / 72 * axes.figure.dpi, (one.get_text(), other.get_text())


def contrast(color: Any) -> float:
    """The smaller one of the contrasts to both pages, by WCAG 2.1."""
    own = luminance(color)
    light, dark = luminance(WHITE), luminance(DARK)
    return min((light + 0.05) / (own + 0.05), (own + 0.05) / (dark + 0.05))


def luminance(color: Any) -> float:
    """The relative luminance of a colour, by WCAG 2.1."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
