"""What a message must name, whatever its words: its file, row, option, layer, number or value."""

from __future__ import annotations

import re

__all__ = ["assert_names", "naming"]


def naming(*facts: object) -> str:
    """A pattern for `pytest.raises(match=...)` of every text that names some facts, in any order.

    Args:
        facts: each is looked for as it is written, and not as a part of a longer word, option or number.
    """
    return "(?s)" + "".join(f"(?=.*{_whole(str(fact))})" for fact in facts)


def assert_names(text: str, *facts: object) -> None:
    """Asserts that a text names some facts.

    Args:
        text: a message, or all that a command printed.
        facts: see `naming`.
    """
    missing = [str(fact) for fact in facts if not re.search(_whole(str(fact)), text)]
    assert not missing, f"{missing} not named in: {text}"


def _whole(fact: str) -> str:
    before = r"(?<![\w-])(?<!\d\.)" if re.match(r"\w", fact) else ""
    after = r"(?![\w-]|\.\d)" if re.search(r"\w$", fact) else ""
    return before + re.escape(fact) + after
