"""Demonstrations: a prompt with a completion to move towards and one to move away from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = [
    "Demonstration",
    "DemonstrationOrigin",
    "LoadedDemonstrations",
    "demonstrations_digest",
    "demonstrations_record",
    "without",
]


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a completion to move towards and one to move away from.

    Attributes:
        prompt: the prompt, before any template.
        positive: the completion to move towards.
        negative: the completion to move away from.
        source: where it was read, such as "halueval.jsonl, row 17", for messages.
        kind: what kind of demonstration it is, from a column `kind` or `category`; empty if there is none.
    """

    prompt: str
    positive: str
    negative: str
    source: str = field(default="", compare=False)
    kind: str = field(default="", compare=False)


@dataclass(frozen=True)
class DemonstrationOrigin:
    """Where demonstrations were read, and which of them: the arguments of `load_demonstrations`.

    Attributes:
        source: a built-in set, a Hub dataset, or the name of a local file without its path, which is never published.
        prompt_field: see `load_demonstrations`.
        positive_field: see `load_demonstrations`.
        negative_field: see `load_demonstrations`.
        limit: see `load_demonstrations`.
        seed: see `load_demonstrations`.
        held_out: the share that was held out of them: see `sea_export.demonstrations.hold_out.hold_out`.
        skip_bad_rows: see `load_demonstrations`.
        left_out: the positions, from 0 and separated by commas, of those that the tokenizer of the model refused.
    """

    source: str
    prompt_field: str | None = None
    positive_field: str | None = None
    negative_field: str | None = None
    limit: int | None = None
    seed: int = 0
    held_out: float = 0.0
    skip_bad_rows: bool = False
    left_out: str = ""


class LoadedDemonstrations(tuple[Demonstration, ...]):
    """Demonstrations exactly as they were read, or those of them that a fit uses. Any other part is a plain tuple."""

    origin: DemonstrationOrigin

    def __new__(cls, demonstrations: Sequence[Demonstration], origin: DemonstrationOrigin) -> LoadedDemonstrations:
        loaded = super().__new__(cls, demonstrations)
        loaded.origin = origin
        return loaded


def without(demonstrations: Sequence[Demonstration], positions: Sequence[int]) -> Sequence[Demonstration]:
    """Demonstrations but for some, which their origin, if it is known, then tells.

    Args:
        demonstrations: all of them.
        positions: those to leave out, from 0, in rising order.
    """
    if not positions:
        return demonstrations
    left_out = set(positions)
    kept = [one for position, one in enumerate(demonstrations) if position not in left_out]
    if not isinstance(demonstrations, LoadedDemonstrations):
        return kept
    told = ",".join(map(str, positions))
    return LoadedDemonstrations(kept, replace(demonstrations.origin, left_out=told))


def demonstrations_record(demonstrations: Sequence[Demonstration]) -> dict[str, Any]:
    """What an edit records of the demonstrations that it was fitted on, as plain JSON data.

    Args:
        demonstrations: the demonstrations.

    Returns:
        Their number and digest, and their origin if they are exactly what was read there.
    """
    record: dict[str, Any] = {"count": len(demonstrations), "sha256": demonstrations_digest(demonstrations)}
    if isinstance(demonstrations, LoadedDemonstrations):
        record["origin"] = asdict(demonstrations.origin)
    return record


def demonstrations_digest(demonstrations: Sequence[Demonstration]) -> str:
    """The digest of the texts of demonstrations in their order. It does not depend on their source.

    Args:
        demonstrations: the demonstrations.

    Returns:
        The SHA-256, in hexadecimal, of the canonical JSON of the list of [prompt, positive, negative].
    """
    texts = [[one.prompt, one.positive, one.negative] for one in demonstrations]
    canonical = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
