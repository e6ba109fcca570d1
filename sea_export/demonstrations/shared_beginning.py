"""Preference data without a column of prompts: two texts that begin with the same question, as those of HH-RLHF do.

Bai et al., "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback", 2022 (arXiv
2204.05862): "Human: …", an empty line, "Assistant: …", and so on; only the last answer differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SharedBeginning", "shared_beginning"]

_TURN = re.compile(r"(?:\A|\n)\s*(?:(?P<asks>Human|User)|Assistant)\s*:\s*")


@dataclass(frozen=True)
class SharedBeginning:
    """What two texts with the same beginning ask and answer."""

    prompt: str
    positive: str
    negative: str
    earlier_turns: bool
    """Whether turns before the last question were left out of the prompt."""


def shared_beginning(positive: str, negative: str, *, alone: bool) -> SharedBeginning | None:
    """Divides two texts into their shared question and their answers.

    Args:
        positive: a question and an answer to it, perhaps after other turns.
        negative: the same question and another answer.
        alone: whether there is nothing but these texts. Then the question need not be marked as one: it is the words
            that both begin with.

    Returns:
        None if they share no question.
    """
    pairs = zip(positive, negative, strict=False)
    length = next(
        (index for index, (one, other) in enumerate(pairs) if one != other), min(len(positive), len(negative))
    )
    shared = positive[:length]
    turns = list(_TURN.finditer(shared))
    if not turns:
        return _shared_words(positive, negative, shared) if alone else None
    if len(turns) < 2 or turns[-1]["asks"] or not turns[-2]["asks"]:
        return None
    question, answer = turns[-2], turns[-1]
    return _checked(
        shared[question.end() : answer.start()],
        _first_turn(positive[answer.end() :]),
        _first_turn(negative[answer.end() :]),
        earlier_turns=len(turns) > 2,
    )


def _first_turn(text: str) -> str:
    """The text up to the next turn, where it goes on after the answer."""
    following = _TURN.search(f":{text}")  # a mark at its very beginning is a part of the answer
    return text if following is None else text[: following.start() - 1]


def _shared_words(positive: str, negative: str, shared: str) -> SharedBeginning | None:
    """Whole words only: an answer does not begin within one."""
    if len(shared) in (len(positive), len(negative)):
        return None  # one text has nothing else
    length = max((place.end() for place in re.finditer(r"\s+", shared)), default=0)
    return _checked(shared[:length], positive[length:], negative[length:], earlier_turns=False)


def _checked(prompt: str, positive: str, negative: str, *, earlier_turns: bool) -> SharedBeginning | None:
    prompt, positive, negative = (part.strip() for part in (prompt, positive, negative))
    return SharedBeginning(prompt, positive, negative, earlier_turns) if prompt and positive and negative else None
