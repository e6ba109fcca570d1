"""What this machine is, and what a job with a model would come to: found out without its weights.

**Whether it would work** is asked of the very checks that a job begins with, on the model's outline (see
`sea_export.model.header_only`): the targets are found, their folds are checked on random weights, and the format is
found to hold them.

**What it would take** is an estimate. The time of a fit, its writing and its verification is the sum of

- imports: two processes start, and each imports transformers;
- computing: 2 floating-point operations a parameter and token (of experts, for those that a token is sent to), at the
  rate that a small decoder layer of the same dtype reaches here. The fit computes the demonstrations' tokens up to the
  last edited layer, the verification some 400 tokens five times in float32, and 32 more steps that read all weights;
- spectra: the time of a smaller one, scaled;
- files: the weights are read by the fit, written, and read three times by the verification, at the rate at which the
  output's disk takes a small file.

Memory is what is held at the same time of weights (a layer at a time where the whole does not fit), hidden states and
activations, on top of what the program itself takes. Disk is what stays there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from sea_export.capture.offloaded import can_load_layers
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import tokenize
from sea_export.doctor.speed import Speed, free_memory, measure_speed, spectrum_seconds
from sea_export.errors import SeaExportError
from sea_export.export.formats import EditNeeds, ExportFormat, formats
from sea_export.fitting.layer_choice import choose_targets
from sea_export.model.architecture import context_length, decoder_layers, hidden_size
from sea_export.model.base import Base
from sea_export.model.memory import available_memory, fits_whole, weight_bytes
from sea_export.options import ExportOptions, FitOptions
from sea_export.text import dtype_name
from sea_export.verification.compare import COMPARED_TOKENS, PROMPTS
from sea_export.verification.compare_by_layer import verified_by_layer
from sea_export.versions import devices, library_versions, system

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sea_export.model.targets import Target

__all__ = ["FormatDiagnosis", "Machine", "ModelDiagnosis", "diagnose_machine", "diagnose_model"]

_VERIFICATION_PASSES = 5
_VERIFICATION_READS = 3
# The share of its weights that a model in memory takes beside them while it computes.
_OVERHEAD = 0.15


@dataclass(frozen=True)
class Machine:
    """What there is."""

    system: dict[str, str]
    versions: dict[str, str]
    devices: tuple[str, ...]
    free_memory: dict[str, int]
    """Bytes by device."""
    disk: str
    """The directory whose disk was looked at."""
    free_disk: int
    """Bytes."""


@dataclass(frozen=True)
class FormatDiagnosis:
    """Whether an export of one format would work, and what it would take."""

    format: str
    works: bool
    problem: str | None
    """Why not, and what to do."""
    seconds: float
    """An estimate."""
    memory_bytes: int
    """An estimate, of the main memory and, where the model is on another device, that device's."""
    disk_bytes: int


@dataclass(frozen=True)
class ModelDiagnosis:
    """What a job with a model would come to."""

    name: str
    architecture: str
    parameters: int
    stored_bytes: int
    dtype: str
    """What a fit computes in."""
    layers: int
    places: int
    """How many places would be edited."""
    demonstrations: int
    tokens: int
    """Of the demonstrations."""
    layerwise: bool
    """Whether the fit has a layer at a time in memory."""
    formats: tuple[FormatDiagnosis, ...]
    speed: Speed

    @property
    def works(self) -> bool:
        """Whether any format would."""
        return any(one.works for one in self.formats)


def diagnose_machine(directory: Path) -> Machine:
    """What there is, and how much of it is free.

    Args:
        directory: one on the disk that is to be written to.
    """
    return Machine(
        system=system(),
        versions=library_versions(optional=True),
        devices=devices(),
        free_memory=free_memory(),
        disk=str(directory),
        free_disk=shutil.disk_usage(directory).free,
    )


def diagnose_model(
    base: Base,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    output: Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    layerwise: bool | None,
) -> ModelDiagnosis:
    """What `fit-and-save` would come to in each format.

    Args:
        base: the base, or its outline.
        demonstrations: those to fit on.
        options: of the fit.
        output: what would be written.
        dtype: what to compute in; None for the dtype in which the base is stored.
        device: where.
        layerwise: whether a layer at a time is in memory; None lets that be chosen.

    Raises:
        InputError: the config or the tokenizer cannot be used, or the demonstrations do not fit the model.
    """
    config, model = base.config, base.skeleton
    targets = choose_targets(model, options)
    context = context_length(config)
    tokenized = tokenize(demonstrations, base.tokenizer, template=options.template, context_length=context)
    tokens = sum(len(one.prompt) + len(one.positive) + len(one.negative) for one in tokenized)
    computed = dtype or getattr(config, "dtype", None) or torch.float32
    if layerwise is None:
        layerwise = can_load_layers(config) and not fits_whole(base, dtype, device)
    plan = _Plan(base, config, model, targets, len(demonstrations), tokens, computed, device, layerwise, options.center)
    speed = measure_speed(device, computed, plan.size, output.resolve().parent)
    seconds, memory = plan.seconds(speed), plan.memory()
    found = []
    rank = min(2 * len(demonstrations), plan.size // 2)  # the most that they can give, but a half of the hidden size
    for format in formats():
        disk = format.disk_bytes(base, output, targets=len(targets), rank=rank)
        problem = _problem(base, targets, options, format) or _no_room(output, disk, memory, device)
        found.append(FormatDiagnosis(format.name, problem is None, problem, seconds + disk / speed.disk, memory, disk))
    return ModelDiagnosis(
        name=base.name,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stored_bytes=weight_bytes(base.checkpoint, None),
        dtype=dtype_name(computed),
        layers=len(decoder_layers(model)[1]),
        places=len(targets),
        demonstrations=len(demonstrations),
        tokens=tokens,
        layerwise=layerwise,
        formats=tuple(found),
        speed=speed,
    )


def _problem(base: Base, targets: Sequence[Target], options: FitOptions, format: ExportFormat[Any, Any]) -> str | None:
    """Why a format cannot hold the edit of a base, and what to do."""
    export = ExportOptions(format=format.name)
    try:
        format.check_options(options, export)
        format.locate(base, targets, EditNeeds.of_fit(options), export)
    except SeaExportError as error:
        return str(error)
    return None


def _no_room(output: Path, disk: int, memory: int, device: torch.device) -> str | None:
    """What there is too little of."""
    free = shutil.disk_usage(output.resolve().parent).free
    if disk > free:
        return f"the disk of {output} has {free / 1e9:.1f} GB free and {disk / 1e9:.1f} GB are needed: make room"
    available = available_memory(device)
    if memory > available:
        return (
            f"{device} has {available / 1e9:.1f} GB of memory left and about {memory / 1e9:.1f} GB are needed: choose "
            "a machine with more, or fewer tokens at a time (--batch-tokens)"
        )
    return None


@dataclass(frozen=True)
class _Plan:
    """What a job would compute and hold."""

    base: Base
    config: PretrainedConfig
    model: PreTrainedModel
    targets: Sequence[Target]
    demonstrations: int
    tokens: int
    dtype: torch.dtype
    device: torch.device
    layerwise: bool
    center: str

    @property
    def size(self) -> int:
        return hidden_size(self.config)

    def seconds(self, speed: Speed) -> float:
        """But for the writing."""
        layers = decoder_layers(self.model)[1]
        in_layers = [_active_parameters(layer, self.config) for layer in layers]
        fitted = sum(in_layers[: max(target.layer for target in self.targets) + 1])
        head = self.model.get_output_embeddings()
        everything = sum(in_layers) + (0 if head is None else sum(one.numel() for one in head.parameters()))
        verified = len(PROMPTS) * (COMPARED_TOKENS + 10)
        stored = weight_bytes(self.base.checkpoint, None)
        return (
            2 * speed.start
            + 2.0 * fitted * self.tokens / speed.batches
            + len(self.targets) * spectrum_seconds(self.demonstrations, self.size, self.center)
            + 2.0 * everything * verified * _VERIFICATION_PASSES / speed.single_texts
            + COMPARED_TOKENS * 4.0 * everything / speed.memory
            + (1 + _VERIFICATION_READS) * stored / speed.disk
        )

    def memory(self) -> int:
        """Bytes at the worst moment."""
        layers = decoder_layers(self.model)[1]
        embedding = self.model.get_input_embeddings()
        parts = [sum(one.numel() for one in part.parameters()) for part in (*layers, embedding)]
        activations = 3 * 4 * self.demonstrations * self.size * len(self.targets)
        if self.layerwise:
            states = 2 * self.tokens * self.size * self.dtype.itemsize
            fit = int(max(parts) * self.dtype.itemsize * (1 + _OVERHEAD)) + states
        else:
            fit = int(weight_bytes(self.base.checkpoint, self.dtype) * (1 + _OVERHEAD))
        by_layer = self.layerwise or verified_by_layer(self.base, self.device, 0)
        whole = 2 * weight_bytes(self.base.checkpoint, torch.float32)
        verification = int((max(parts) * 4 if by_layer else whole) * (1 + _OVERHEAD))
        program = psutil.Process(os.getpid()).memory_info().rss
        return program + max(fit + activations, program + verification)  # a second process takes part in the latter


def _active_parameters(layer: torch.nn.Module, config: PretrainedConfig) -> float:
    """The parameters of a layer that compute with one token: of experts, those of the few it is sent to."""
    text: Any = config.get_text_config(decoder=True)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((getattr(text, name) for name in names if getattr(text, name, None)), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    share = chosen / experts if experts and chosen else 1.0
    return sum(one.numel() * (share if ".experts." in f".{name}" else 1.0) for name, one in layer.named_parameters())
