"""A chat in a terminal, or with the lines of a file or a pipe."""

from __future__ import annotations

import io
import sys

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from sea_export.chat.chat_session import ChatSession
from sea_export.chat.chat_words import chat_words
from sea_export.cli.chat_lines import COMMANDS, take_line
from sea_export.cli.stopping import Stopped
from sea_export.cli.terminal import console, print_error
from sea_export.errors import SeaExportError, reason

__all__ = ["talk"]


def talk(session: ChatSession) -> None:
    """Takes lines until there are no more, or one of them ends the chat.

    At a terminal an error is told, and the chat goes on. Elsewhere the first one ends it.

    Args:
        session: the chat.

    Raises:
        SeaExportError: see above.
    """
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        _talk_at_terminal(session)
    else:
        _take_all_lines(session)


def _take_all_lines(session: ChatSession) -> None:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # such a line is refused as no text
    for line in sys.stdin or ():
        try:
            if not take_line(session, line):
                return
        except SeaExportError as error:
            error.args = (chat_words(str(error)),)
            raise


def _talk_at_terminal(session: ChatSession) -> None:
    console.print(f"{session.base_name} answers beside {session.edited_name}.", soft_wrap=True)
    if not session.has_roles:
        console.print("The model has no chat template: it goes on with what you write as plain text.", soft_wrap=True)
    console.print("Write a prompt, or /help. Ctrl-C stops an answer, and leaves when nothing is answered.")
    reader: PromptSession[str] = PromptSession(
        completer=WordCompleter(list(COMMANDS), sentence=True), complete_while_typing=False, key_bindings=_bindings()
    )
    while True:
        try:
            if not take_line(session, reader.prompt("> ")):
                return
        except (EOFError, KeyboardInterrupt) as end:
            if isinstance(end, Stopped) and not end.by_interrupt:
                raise
            return
        except SeaExportError as error:
            print_error(chat_words(str(error)))
        except OSError as error:
            print_error(reason(error))


def _bindings() -> KeyBindings:
    """Ctrl-C empties a line that has begun, and leaves where there is none."""
    bindings = KeyBindings()

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return bindings
