"""What is edited: the output of the MLP or of the attention block of one decoder layer."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["COMPONENTS", "Target"]


COMPONENTS = ("mlp", "attention")


class Target(NamedTuple):
    """A place whose output is edited: the MLP or the attention block of one decoder layer, counted from 0."""

    layer: int
    component: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.component}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """The inverse of `str(target)`. Raises ValueError for anything else."""
        if not re.fullmatch(r"(0|[1-9][0-9]{0,5})\.\w+", text) or text.partition(".")[2] not in COMPONENTS:
            raise ValueError(f"{text!r} is no layer and component")
        layer, component = text.split(".")
        return cls(int(layer), component)
