"""Messages about options in the words of a chat, where `/strength` is what `--strength` is on the command line."""

from __future__ import annotations

import re

__all__ = ["chat_words"]

_OPTION = re.compile(r"(?<![\w-])--(strength|layers|system)\b")


def chat_words(message: str, prefix: str = "/") -> str:
    """A message with the names that things have in a chat.

    Args:
        message: as it is written for the command line.
        prefix: what stands before the name.
    """
    return _OPTION.sub(lambda found: prefix + found[1], message)
