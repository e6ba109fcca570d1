"""The two answers to a prompt: side by side in a wide terminal, one below the other elsewhere, and as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sea_export.chat.chat_session import ChatSession, Turn, Watch
from sea_export.cli.marked_pieces import marked
from sea_export.cli.stopping import first_interrupt_kept
from sea_export.cli.terminal import console, plain_table
from sea_export.evaluation.answer_pieces import compare_answers
from sea_export.text import visible

__all__ = ["show_answers"]

_LEAST_WIDTH = 72
"""Columns of a terminal in which two answers have room beside each other."""
_SECONDS_BETWEEN_FRAMES = 0.1


def show_answers(session: ChatSession, ask: Callable[[Watch], Turn | None]) -> None:
    """Shows the answers to a prompt, as they grow where there is a terminal. Ctrl-C ends them.

    Args:
        session: the chat.
        ask: has the prompt answered.

    Raises:
        InputError: see `ChatSession.ask`.
    """
    names = session.base_name, session.edited_name
    with first_interrupt_kept() as interrupted, _growing(names) as show:

        def watch(side: str, text: str) -> bool:
            show(side, text)
            return not interrupted()

        turn = ask(watch)
    if turn is None:
        console.print("Stopped. The prompt and its answers are not kept.")
    elif console.is_terminal:
        compared = compare_answers(turn.prompt, turn.base.text, turn.edited.text, turn.base.marks, turn.edited.marks)
        base = marked(compared.base, compared.base_marks, "red", "", "")
        edited = marked(compared.edited, compared.edited_marks, "green", "", "")
        console.print(_beside_or_below(names, base, edited))
    else:
        for label, answer in (("base", turn.base), ("edited", turn.edited)):
            text = visible(answer.text).replace("\n", "\n  ")
            marks = "".join(f" [{mark}]" for mark in answer.marks)
            console.print(f"{label}: {text}{marks}", soft_wrap=True)


@contextmanager
def _growing(names: tuple[str, str]) -> Iterator[Callable[[str, str], None]]:
    """A place for answers that grow, which is empty again at its end. The value is told each answer so far."""
    if not console.is_terminal:
        yield lambda side, text: None
        return
    texts, drawn = {"base": "", "edited": ""}, -_SECONDS_BETWEEN_FRAMES
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(side: str, text: str) -> None:
            nonlocal drawn
            texts[side] = text
            if time.monotonic() - drawn >= _SECONDS_BETWEEN_FRAMES:
                live.update(_beside_or_below(names, *map(_last_lines, texts.values())), refresh=True)
                drawn = time.monotonic()

        yield show


def _beside_or_below(names: tuple[str, str], base: Text, edited: Text) -> RenderableType:
    if not _is_wide():
        table = plain_table(names[0])
        table.add_row(base, end_section=True)
        table.add_row(Text(visible(names[1]), style="bold"), end_section=True)
        table.add_row(edited)
        return table
    table = Table(expand=True)
    for name in names:
        table.add_column(Text(visible(name)), overflow="fold", ratio=1)
    table.add_row(base, edited)
    return table


def _is_wide() -> bool:
    return console.width >= _LEAST_WIDTH


def _last_lines(text: str) -> Text:
    """As many of the last lines of an answer as a terminal has room for."""
    width = max(console.width // 2 - 4, 10) if _is_wide() else console.width - 4
    lines = Text(visible(text)).wrap(console, width)
    room = max(console.height - 6, 2) if _is_wide() else max(console.height // 2 - 4, 2)
    return Text("\n").join(lines[-room:])
