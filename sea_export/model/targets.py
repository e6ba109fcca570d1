"""What is edited: the output of the MLP or of the attention block of one decoder layer, or the embedding."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["COMPONENTS", "EMBEDDING", "Target"]


COMPONENTS = ("mlp", "attention")
"""The blocks of a decoder layer, which a fit may edit."""


class Target(NamedTuple):
    """The MLP or the attention block of one decoder layer, whose output is edited. Layers are counted from 0.

    `EMBEDDING` is what the embedding of tokens gives, before the first layer.
    """

    layer: int
    component: str

    @property
    def in_decoder(self) -> bool:
        """Whether it is a block of a decoder layer."""
        return self.component in COMPONENTS

    def __str__(self) -> str:
        return f"{self.layer}.{self.component}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """The inverse of `str(target)`, such as `3.mlp`.

        Raises:
            ValueError: the text is not the name of a target.
        """
        if text == str(EMBEDDING):
            return EMBEDDING
        if not re.fullmatch(r"(0|[1-9][0-9]{0,5})\.\w+", text) or text.partition(".")[2] not in COMPONENTS:
            raise ValueError(f"{text!r} is not a layer and a component")
        layer, component = text.split(".")
        return cls(int(layer), component)


EMBEDDING = Target(0, "embedding")
"""What the embedding of tokens gives. It comes before the first layer."""
