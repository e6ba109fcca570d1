"""What a model card says of what was imported: from where, and what it was taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sea_export.cards.markdown import Markdown, markdown

__all__ = ["imported_text", "listed"]

_SITES = {
    "residual": "the residual stream after its layer",
    "mlp": "what the MLP of its layer gives",
    "attention": "what the attention block of its layer gives",
}
_DIGEST_DIGITS = 16


def imported_text(imported: Mapping[str, Any]) -> Markdown:
    """The source of an imported edit, and what it means, in a sentence.

    Args:
        imported: the entry of the manifest that tells it.
    """
    site, meaning = imported["site"], imported["meaning"]
    if meaning == "adapter":
        return markdown(
            "Imported from the adapter {} ({}, SHA-256 {}… of its weights, {}… of its config), with coefficient {}: at "
            "1 the changes of weights are those of the adapter.",
            imported["source"],
            imported["form"],
            imported["sha256"][:_DIGEST_DIGITS],
            imported["config_sha256"][:_DIGEST_DIGITS],
            f"{imported['coefficient']:.6g}",
        )
    place = _SITES[site]
    if meaning == "add":
        does = f"each vector is added to {place}"
    elif "keep_norm" in imported:
        blocks = {"mlp": "MLPs", "attention": "attention blocks"}.get(site, "attention blocks and MLPs")
        does = (
            f"directions are removed from the weights that write the outputs of {blocks}, whose rows keep their norms"
        )
        if (strength := imported.get("strength", 1.0)) != 1:
            does += f" (that change times {strength:.6g})"
    elif meaning == "ablate" and site == "residual":
        does = "a direction is removed from everything that the embedding, the attention blocks and the MLPs write"
    elif meaning == "keep":
        does = f"directions are all that is kept of {place}"
    else:
        does = f"directions are removed from {place}"
    of_layer = imported["source_layer"]
    used = "" if of_layer is None else f", its vector {of_layer}"
    text = "Imported from {} ({}, SHA-256 {}…){}, and taken for this: {}, with coefficient {}."
    return markdown(
        text,
        imported["source"],
        imported["form"],
        imported["sha256"][:_DIGEST_DIGITS],
        used,
        does,
        f"{imported['coefficient']:.6g}",
    )


def listed(parts: Sequence[str]) -> str:
    """Some things in words: `a, b and c`.

    Args:
        parts: at least one.
    """
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
