"""What a model card says of what is edited: the outputs of blocks, and weights that are changed by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sea_export.cards.imported_text import listed
from sea_export.cards.markdown import Markdown, table
from sea_export.text import ranges_text

__all__ = ["edit_name", "places", "tables_of", "what_is_changed"]

_COMPONENT_NAMES = {"mlp": "MLP blocks", "attention": "attention blocks"}


def edit_name(manifest: Mapping[str, Any], *, spectral: bool) -> str:
    """What the edit of an output is called.

    Args:
        manifest: that of the output.
        spectral: whether it is a spectral edit.
    """
    if spectral:
        return "a spectral edit of its activations (SEA)"
    if not manifest.get("weights"):
        return "an edit of its activations"
    return "an edit of its activations and weights" if manifest["layers"] else "an edit of its weights"


def places(manifest: Mapping[str, Any]) -> str:
    """What is edited, in sentences.

    Args:
        manifest: that of the output.
    """
    weights = manifest.get("weights", ())
    restricted = "targets" in manifest["edit"]
    left_out = " The edit was made for more layers, and the others were left out." if restricted else ""
    outputs = _edited_outputs(manifest["layers"]) if manifest["layers"] or not weights else ""
    return " ".join(filter(None, (outputs, _changed_weights(weights)))) + left_out


def _edited_outputs(layers: Sequence[Mapping[str, Any]]) -> str:
    targets = dict.fromkeys(tuple(row["target"].split(".")) for row in layers)
    parts = ["the embedding of tokens"] if any(component == "embedding" for _, component in targets) else []
    for component, name in _COMPONENT_NAMES.items():
        numbers = [int(layer) for layer, edited in targets if edited == component]
        if numbers:
            parts.append(f"the {name} of layer{'s' if len(numbers) > 1 else ''} {ranges_text(numbers)}")
    return f"What is edited is the output of {listed(parts)}, counted from 0."


def _changed_weights(weights: Sequence[Mapping[str, Any]]) -> str:
    """Which weights are changed by themselves, in a sentence; nothing for none."""
    kinds: dict[str, set[int]] = {}
    parts = []
    for weight in weights:
        kind = weight["module"].rpartition(".")[2]
        if weight["layer"] is None:
            parts.append(weight["module"])
        else:
            kinds.setdefault(kind, set()).add(weight["layer"])
    of_layers = [
        f"{kind} of layer{'s' if len(layers) > 1 else ''} {ranges_text(layers)}" for kind, layers in kinds.items()
    ]
    parts = [*of_layers, *dict.fromkeys(parts)]
    return f"The weights of these linear maps are changed, of layers counted from 0: {listed(parts)}." if parts else ""


def what_is_changed(manifest: Mapping[str, Any], *, spectral: bool) -> str:
    """What the measured changes are relative to.

    Args:
        manifest: that of the output.
        spectral: whether the edit is a spectral edit.
    """
    if not manifest["layers"]:
        return "these weights"
    return "the activations that prompts alone have there" if spectral else "these outputs"


def tables_of(layers: Markdown, weights: Sequence[Mapping[str, Any]]) -> Markdown:
    """The tables of what is edited.

    Args:
        layers: that of the layers.
        weights: the entry of the manifest on changed weights.
    """
    if not weights:
        return layers
    rows = [
        (
            weight["module"],
            str(weight["rank"]),
            "scaled" if weight["scaled_rows"] else "",
            f"{weight['strength']:.6g}",
            "" if weight["relative_change"] is None else f"{weight['relative_change']:.1%}",
        )
        for weight in weights
    ]
    own = table(("weight of", "rank", "rows", "strength", "relative change"), rows)
    return Markdown("\n\n".join(filter(None, (layers, own))))
