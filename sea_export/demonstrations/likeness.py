"""How alike two texts are by their words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest_texts"]


def nearest_texts(texts: Sequence[str], others: Sequence[str]) -> list[tuple[float, int]]:
    """Of each text the likeness to the nearest of some other texts, and the index of that one.

    The likeness is the cosine of the words, each counted once and weighted by how rare it is in all texts (inverse
    document frequency; Spärck Jones 1972). 1 means the same words.

    Args:
        texts: n texts.
        others: at least one.

    Returns:
        n pairs, in the order of the texts.
    """
    table = _vectors([*texts, *others])
    likeness = table[: len(texts)] @ table[len(texts) :].T
    best = likeness.argmax(axis=1)
    return [(float(likeness[row, column]), int(column)) for row, column in enumerate(best)]


def _vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """(texts, words) unit vectors of the words of each text."""
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    counts = Counter(word for own in words for word in own)
    columns = {word: column for column, word in enumerate(counts)}
    table = np.zeros((len(texts), len(columns)), dtype=np.float32)
    for row, own in enumerate(words):
        for word in own:
            table[row, columns[word]] = log(len(texts) / counts[word]) + 1
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
