"""What no adapter can hold, in the words in which it is refused. Nothing here is heavy to import."""

from __future__ import annotations

__all__ = ["NO_EXACT_ADAPTER"]

NO_EXACT_ADAPTER = (
    "--projections: positive at strength 1 keeps nothing of the identity, so that an exact adapter would be larger "
    "than the weights. Choose --format merged, or --adapter-rank for an approximation."
)
