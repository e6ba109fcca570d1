"""The consoles of the two standard streams, which print every text as text."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console, JustifyMethod, OverflowMethod
from rich.style import Style
from rich.text import Text

from sea_export.text import visible

__all__ = ["console", "errors"]


class _PlainConsole(Console):
    """A console that prints every string as plain text. It respects NO_COLOR, as every console of rich does."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: Callable[[str | Text], Text] | None = None,
    ) -> Text:
        return super().render_str(visible(text), style=style, justify=justify, overflow=overflow)


# A file or a pipe has no width, and nothing in it may be cut off.
console = _PlainConsole(stderr=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 200)
errors = _PlainConsole(stderr=True, width=None)
