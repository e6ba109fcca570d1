"""What a line of a chat means: a prompt, or a command such as `/strength 0.6`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sea_export.chat.chat_session import ChatSession
from sea_export.cli.chat_answers import show_answers
from sea_export.cli.terminal import console, waiting
from sea_export.errors import InputError
from sea_export.files.nearest_name import meant
from sea_export.text import ranges_text

__all__ = ["COMMANDS", "ChatCommand", "take_line"]


@dataclass(frozen=True)
class ChatCommand:
    """A command of a chat.

    Attributes:
        argument: what stands behind its name, for the help; empty if nothing does.
        help: what it does.
        run: does it.
    """

    argument: str
    help: str
    run: Callable[[ChatSession, str], None]


def take_line(session: ChatSession, line: str) -> bool:
    """Obeys a line.

    Args:
        session: the chat.
        line: a prompt, or a command. A prompt that begins with a slash is written with two of them.

    Returns:
        Whether the chat goes on.

    Raises:
        InputError: the command does not exist, or its argument or the prompt is wrong.
        SeaExportError: an output could not be written.
    """
    text = line.strip()
    if not text:
        return True
    if text.startswith("//") or not text.startswith("/"):
        prompt = text.removeprefix("/")
        show_answers(session, lambda watch: session.ask(prompt, watch))
        return True
    name, _, argument = text.partition(" ")
    if name == _QUIT:
        return False
    if name not in COMMANDS:
        raise InputError(f"{name}: there is no such command{meant(name, COMMANDS)}. Write /help for a list.")
    COMMANDS[name].run(session, argument.strip())
    return True


def _strength(session: ChatSession, argument: str) -> None:
    if argument:
        session.setting = session.setting.at_strength(_number(argument))
    console.print(f"The edit has {session.setting.title}.")


def _number(argument: str) -> float | None:
    if argument == "own":
        return None
    try:
        return float(argument)
    except ValueError as error:
        raise InputError(f"/strength: {argument} is no number. Give one such as 0.6, or own.") from error


def _layers(session: ChatSession, argument: str) -> None:
    if argument:
        session.setting = session.setting.in_layers(argument)
    edited = ranges_text(session.setting.edit.decoder_layers)
    console.print(f"The edit is applied in layers {edited}.")


def _system(session: ChatSession, argument: str) -> None:
    session.set_system(argument)
    console.print(f"The system prompt is: {session.system}" if session.system else "There is no system prompt.")


def _again(session: ChatSession, argument: str) -> None:
    show_answers(session, session.ask_again)


def _reset(session: ChatSession, argument: str) -> None:
    session.reset()
    console.print("A new conversation begins.")


def _save(session: ChatSession, argument: str) -> None:
    if not argument:
        raise InputError("/save: the output is missing. Write /save and the directory to be written.")
    with waiting("Saving"):
        saved = session.save(Path(argument))
    console.print(f"Saved to {saved.output}. The same output is made by", soft_wrap=True)
    console.print(f"  {saved.command}", soft_wrap=True)
    for name, digest in saved.digests.items():
        console.print(f"SHA-256 {digest}  {name}", soft_wrap=True)


def _help(session: ChatSession, argument: str) -> None:
    usages = {f"{name} {command.argument}".strip(): command.help for name, command in COMMANDS.items()}
    width = max(map(len, usages)) + 2
    for usage, text in usages.items():
        console.print(f"{usage:{width}}{text}", soft_wrap=True)
    console.print(
        "Everything else is a prompt. One that begins with a slash is written with two of them.", soft_wrap=True
    )


def _quit(session: ChatSession, argument: str) -> None:
    """`take_line` ends the chat before this is called."""


_QUIT = "/quit"
COMMANDS: Mapping[str, ChatCommand] = {
    "/strength": ChatCommand(
        "[S]", "tell or change the strength of the edit; own: the one that it was fitted with", _strength
    ),
    "/layers": ChatCommand("[LIST]", "only these layers of the edit, such as 10-20 or last:3; or all", _layers),
    "/again": ChatCommand("", "answer the last prompt again, with the edit as it is now", _again),
    "/system": ChatCommand("[TEXT]", "the system prompt; without TEXT there is none", _system),
    "/reset": ChatCommand("", "forget what was said, and begin again", _reset),
    "/save": ChatCommand("OUTPUT", "bake the edit as it is now into the checkpoint OUTPUT", _save),
    "/help": ChatCommand("", "this list", _help),
    _QUIT: ChatCommand("", "leave; so do Ctrl-D and Ctrl-C", _quit),
}
"""The commands by name, in the order of the help."""
