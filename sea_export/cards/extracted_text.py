"""What a model card says of an edit that was found between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sea_export.cards.markdown import Markdown, markdown

__all__ = ["extracted_text"]

_DIGEST_DIGITS = 16


def extracted_text(extracted: Mapping[str, Any]) -> Markdown:
    """Between which checkpoints an edit was found, in a sentence.

    Args:
        extracted: the entry of the manifest that tells it.
    """
    checkpoint = extracted["checkpoint"]
    digests = ", ".join(f"{digest[:_DIGEST_DIGITS]}…" for _, digest in sorted(checkpoint["weights"].items()))
    revision = "" if checkpoint["revision"] is None else f", revision {checkpoint['revision']}"
    return markdown(
        "Extracted from the weights of {}{} (SHA-256 {}): the edit of low rank by which they differ from those of the "
        "base.",
        checkpoint["name"],
        revision,
        digests,
    )
