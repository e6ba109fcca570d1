"""What is wrong with demonstrations: of their texts, beside a benchmark, and in the activations of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sea_export.capture.in_memory import capture
from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import LoadedDemonstrations
from sea_export.demonstrations.findings import Finding, leaks
from sea_export.demonstrations.load import load_demonstrations
from sea_export.demonstrations.tokenize import tokenize
from sea_export.doctor.activation_findings import activation_findings
from sea_export.doctor.check_options import CheckOptions
from sea_export.errors import InputError
from sea_export.evaluation.bbq import load_bbq
from sea_export.evaluation.crows_pairs import load_crows_pairs
from sea_export.evaluation.truthfulqa import load_truthfulqa
from sea_export.fitting.fit_base import usable_by
from sea_export.model.architecture import context_length, decoder_layers
from sea_export.model.targets import Target

__all__ = ["leakage_findings", "model_findings"]


def leakage_findings(demonstrations: LoadedDemonstrations, options: CheckOptions) -> list[Finding]:
    """Demonstrations that come near a row of what they are compared with.

    Args:
        demonstrations: n of them.
        options: `against` and `likeness` are used.

    Raises:
        InputError: a file cannot be read.
    """
    found = []
    for name, _, file in (one.partition("=") for one in options.against):
        finding = leaks(demonstrations, _texts(name, file), name, options.likeness)
        found += [] if finding is None else [finding]
    return found


def model_findings(demonstrations: LoadedDemonstrations, opened: OpenedModel, options: CheckOptions) -> list[Finding]:
    """What the activations of one MLP show of demonstrations.

    Args:
        demonstrations: n of them.
        opened: the model.
        options: `template` and `layer` are used.

    Raises:
        InputError: the model has no such layer, does not fit into memory, or cannot read a demonstration.
    """
    count = len(decoder_layers(opened.base.skeleton)[1])
    layer = count // 2 if options.layer is None else options.layer
    if layer >= count:
        raise InputError(f"--layer: {opened.base.name} has no layer {layer}. Give a number below {count}.")
    usable = usable_by(opened.base, demonstrations, options.template)
    tokenized = tokenize(
        usable,
        opened.base.tokenizer,
        template=options.template,
        context_length=context_length(opened.base.config),
    )
    target = Target(layer, "mlp")
    activations = capture(opened.whole_model, tokenized, [target])[target]
    lengths = torch.tensor([len(one.positive) - len(one.negative) for one in tokenized])
    rows = [one.source or f"demonstration {number}" for number, one in enumerate(usable, start=1)]
    return activation_findings(activations, lengths, rows, f"MLP of layer {layer}")


def _texts(name: str, file: str) -> Sequence[str]:
    if name == "truthfulqa":
        return [row.question for row in load_truthfulqa(file)]
    if name == "bbq":
        return [row.prompt for row in load_bbq(file)]
    if name == "crows-pairs":
        return [sentence for row in load_crows_pairs(file) for sentence in (row.more, row.less)]
    return [row.prompt for row in load_demonstrations(file)]
