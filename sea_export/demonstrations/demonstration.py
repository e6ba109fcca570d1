"""Demonstrations: a prompt with a completion to move towards and one to move away from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "Demonstration",
    "DemonstrationOrigin",
    "LoadedDemonstrations",
    "demonstrations_digest",
    "demonstrations_record",
]


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a completion to move towards and one to move away from.

    Attributes:
        prompt: The prompt, before any template.
        positive: The completion whose activations the edit keeps.
        negative: The completion whose activations the edit drops.
        source: Where it was read, such as "halueval.jsonl, row 17", for messages.
    """

    prompt: str
    positive: str
    negative: str
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class DemonstrationOrigin:
    """Where demonstrations were read, and which of them: what `load_demonstrations` was given.

    Attributes:
        source: A built-in set, a Hub dataset, or the bare name of a local file: no path is ever published.
        prompt_field: See `load_demonstrations`; so are the others.
        positive_field: Likewise.
        negative_field: Likewise.
        limit: Likewise.
        seed: Likewise.
    """

    source: str
    prompt_field: str | None = None
    positive_field: str | None = None
    negative_field: str | None = None
    limit: int | None = None
    seed: int = 0


class LoadedDemonstrations(tuple[Demonstration, ...]):
    """Demonstrations just as they were read: a part or a change of them is a tuple like any other."""

    origin: DemonstrationOrigin

    def __new__(cls, demonstrations: Sequence[Demonstration], origin: DemonstrationOrigin) -> LoadedDemonstrations:
        loaded = super().__new__(cls, demonstrations)
        loaded.origin = origin
        return loaded


def demonstrations_record(demonstrations: Sequence[Demonstration]) -> dict[str, Any]:
    """What an edit says of the demonstrations that it was fitted on, as plain JSON data.

    Args:
        demonstrations: The demonstrations.

    Returns:
        Their number and digest, and their origin where they are just what was read there.
    """
    record: dict[str, Any] = {"count": len(demonstrations), "sha256": demonstrations_digest(demonstrations)}
    if isinstance(demonstrations, LoadedDemonstrations):
        record["origin"] = asdict(demonstrations.origin)
    return record


def demonstrations_digest(demonstrations: Sequence[Demonstration]) -> str:
    """Digest of the demonstrations' texts, in their order, wherever they came from.

    Args:
        demonstrations: The demonstrations.

    Returns:
        SHA-256, in hexadecimal, of the canonical JSON of the list of [prompt, positive, negative].
    """
    texts = [[one.prompt, one.positive, one.negative] for one in demonstrations]
    canonical = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
