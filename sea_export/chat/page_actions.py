"""What a page can ask of a chat, and what it is told: JSON in, JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from sea_export.chat.chat_session import ChatSession, Turn, Watch
from sea_export.chat.page_requests import Refused
from sea_export.errors import InputError
from sea_export.evaluation.answer_pieces import Piece, compare_answers
from sea_export.files.typed import type_problem
from sea_export.text import ranges_text, visible

__all__ = ["ACTIONS", "Tell", "page_state"]

Tell = Callable[[Mapping[str, Any]], bool]
"""Is given what the page is to be told; it says whether the page still wants to be told more."""


class _Request(TypedDict):
    """What every request holds: the controls of the page."""

    strength: float | None
    layers: str | None
    system: str


class _Question(TypedDict):
    prompt: str


class _Destination(TypedDict):
    output: str


def page_state(session: ChatSession) -> dict[str, Any]:
    """What the page shows besides its controls.

    Args:
        session: the chat.
    """
    setting = session.setting
    return {
        "base": visible(session.base_name),
        "edited": visible(session.source.name),
        "own_strength": setting.own_strength,
        "has_dial": setting.fitted.has_a_dial,
        "has_roles": session.has_roles,
        "edited_layers": ranges_text(setting.fitted.decoder_layers),
        "strength": setting.strength,
        "layers": setting.layers,
        "system": session.system,
        "turns": [_turn(one) for one in session.turns],
    }


def _ask(session: ChatSession, request: Mapping[str, Any], tell: Tell) -> None:
    prompt = _checked(request, _Question)["prompt"]
    _tell_turn(session.ask(prompt, _watch(tell)), tell)


def _ask_again(session: ChatSession, request: Mapping[str, Any], tell: Tell) -> None:
    _tell_turn(session.ask_again(_watch(tell)), tell)


def _reset(session: ChatSession, request: Mapping[str, Any], tell: Tell) -> None:
    session.reset()
    tell({"state": page_state(session)})


def _save(session: ChatSession, request: Mapping[str, Any], tell: Tell) -> None:
    output = _checked(request, _Destination)["output"].strip()
    if not output:
        raise InputError("the output: it has no name. Write the directory to be written.")
    saved = session.save(Path(output))
    tell({"saved": {"output": str(saved.output), "digests": dict(saved.digests), "command": saved.command}})


_OWN: Mapping[str, Callable[[ChatSession, Mapping[str, Any], Tell], None]] = {
    "ask": _ask,
    "again": _ask_again,
    "reset": _reset,
    "save": _save,
}


def _with_controls(
    action: Callable[[ChatSession, Mapping[str, Any], Tell], None],
) -> Callable[[ChatSession, Mapping[str, Any], Tell], None]:
    """An action after the controls of the page were read."""

    def act(session: ChatSession, request: Mapping[str, Any], tell: Tell) -> None:
        controls = _checked(request, _Request)
        setting = session.setting
        strength = controls["strength"]
        if strength != setting.strength:
            setting = setting.at_strength(None if strength is None else float(strength))
        setting = setting.in_layers((controls["layers"] or "").strip() or None)
        session.set_system(controls["system"])
        session.setting = setting
        action(session, request, tell)

    return act


ACTIONS = {name: _with_controls(action) for name, action in _OWN.items()}
"""What a page can ask for, by name. Each tells the page events; the last one has the result."""


def _checked(request: Mapping[str, Any], kind: Any) -> Any:
    missing = [name for name in kind.__annotations__ if name not in request]
    problem = f"it has no {missing[0]}" if missing else type_problem(request, kind, "")
    if problem is not None:
        raise Refused(400, f"The request is not one of this page: {problem}.")
    return request


def _watch(tell: Tell) -> Watch:
    return lambda side, text: tell({"side": side, "text": visible(text)})


def _tell_turn(turn: Turn | None, tell: Tell) -> None:
    tell({"stopped": True} if turn is None else {"turn": _turn(turn)})


def _turn(turn: Turn) -> dict[str, Any]:
    compared = compare_answers(turn.prompt, turn.base.text, turn.edited.text, turn.base.marks, turn.edited.marks)
    return {
        "prompt": visible(turn.prompt),
        "setting": turn.setting,
        "base": _answer(compared.base, compared.base_marks),
        "edited": _answer(compared.edited, compared.edited_marks),
    }


def _answer(pieces: tuple[Piece, ...], marks: tuple[str, ...]) -> dict[str, Any]:
    shown = [{"text": visible(piece.text), "changed": piece.changed} for piece in pieces]
    return {"pieces": shown, "marks": list(marks)}
