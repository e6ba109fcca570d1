"""What an edit does and costs, in sentences: for the model card, and for the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sea_export.text import interval_text

__all__ = ["EXAMPLE_RULE", "effect_sentences"]

EXAMPLE_RULE = (
    "{prompts} built-in prompts were answered greedily and sorted by how unlikely the base finds what the edited model "
    "says, loops last. Of the answers that the edit changes these are the first one, the one in the middle, and the "
    "last one, which is the worst."
)
"""How `sea_export.evaluation.example_answers` chooses what is shown."""

_MARGIN, _PREFERRED = "mean margin per token", "positive preferred per token"
_SMALL = 0.05
"""Nats per token. In the measurements of model_cards/README.md edits with a smaller effect gained on no benchmark."""


def effect_sentences(effect: Mapping[str, Any], strength: float) -> list[str]:
    """What was measured of an edit.

    Args:
        effect: the record of `sea_export.effect.measure.measured_edit`.
        strength: that of the edit.

    Returns:
        A sentence about the effect on held-out demonstrations, and one about the damage.
    """
    return [_effect(effect), _damage(effect, strength)]


def _effect(effect: Mapping[str, Any]) -> str:
    report = effect["held_out"]
    if report is None:
        return "Effect on held-out demonstrations: not measured, because too few could be held out."
    metrics = {metric["name"]: metric for metric in report["figures"]}
    margin, preferred = metrics[_MARGIN], metrics[_PREFERRED]
    kinds = f" of other kinds than were fitted ({', '.join(effect['kinds'])})" if effect["kinds"] else ""
    found = (
        f"on {report['rows']} held-out demonstrations{kinds} the mean margin changes by "
        f"{interval_text(margin['difference'], 'nats', signed=True)} nats per token, and the share whose positive "
        f"completion is preferred by {interval_text(preferred['difference'], '%', signed=True)} points, from "
        f"{interval_text(preferred['base'], '%')} %."
    )
    value, low, high = margin["difference"]
    if low > 0 and value >= _SMALL:
        return f"Effect: {found}"
    if low > 0:
        return f"Small effect: {found} Less than {_SMALL:g} nats may not show on any benchmark: measure one."
    return f"{'Harm' if high < 0 else 'No measurable effect'}: {found}"


def _damage(effect: Mapping[str, Any], strength: float) -> str:
    metrics = {metric["name"]: metric["value"] for metric in effect["damage"]["figures"]}
    where = [
        f"{interval_text(value, 'nats')} on {name.removeprefix('KL on ')}"
        for name, value in metrics.items()
        if name.startswith("KL on ")
    ]
    how = (
        f"found as the largest within a budget of {effect['max_kl']:g}" if effect["searched"] else "given, not searched"
    )
    return (
        f"Damage: the mean KL from the base is {' and '.join(where)}, in nats per token; the likeliest token stays the "
        f"same for {interval_text(metrics['top-1 agreement'], '%')} % of tokens. The strength is {strength:.3g}, {how}."
    )
