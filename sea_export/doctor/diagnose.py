"""Whether a job with a model would work in each format, and what it would cost, without the weights of the model.

Whether a format works is found out by the checks with which every job begins, on a header-only checkpoint (see
`sea_export.model.header_only`): the targets are found, their folds are checked on random weights, and the format says
whether it can hold such an edit. What a job costs is an estimate: see `sea_export.doctor.costs`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.capture.offloaded import can_load_layers, check_layers_loadable
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.load import read_demonstrations
from sea_export.doctor.costs import Job
from sea_export.doctor.job_check import check_job
from sea_export.doctor.machine import Machine, describe_machine
from sea_export.doctor.speed import Speed, measure_speed
from sea_export.errors import SeaExportError
from sea_export.export.formats import ExportFormat, formats
from sea_export.export.output import check_output
from sea_export.files.frames import data_frame
from sea_export.fitting.collect import demonstrations_to_fit
from sea_export.fitting.distributed import local_device
from sea_export.fitting.fit_base import usable_by
from sea_export.fitting.layer_choice import choose_targets
from sea_export.model.architecture import decoder_layers
from sea_export.model.available_memory import available_memory
from sea_export.model.base import Base
from sea_export.model.compatible_config import missing_entries
from sea_export.model.compute_dtype import compute_dtype
from sea_export.model.header_only import header_only_base
from sea_export.model.load_model import check_quantizer, choose_device, parse_dtype
from sea_export.model.memory import fits_whole, weight_bytes
from sea_export.model.run_options import RunOptions
from sea_export.model.threads import Threads
from sea_export.options import ExportOptions, FitOptions
from sea_export.saving import check_room_for, locate_fit
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from pandas import DataFrame

    from sea_export.model.targets import Target

__all__ = ["Diagnosis", "FormatDiagnosis", "ModelDiagnosis", "diagnose", "diagnose_model"]


@dataclass(frozen=True)
class FormatDiagnosis:
    """Whether an export of one format would work, and what it would cost.

    Attributes:
        format: the name of the format.
        works: whether it would work.
        problem: why not, and what to do; None if it works.
        seconds: an estimate.
        memory_bytes: an estimate of the memory of the device of the model, and of the main memory.
        disk_bytes: bytes of the output.
    """

    format: str
    works: bool
    problem: str | None
    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class ModelDiagnosis:
    """What a job with a model would be.

    Attributes:
        name: the name of the model.
        architecture: its class.
        parameters: the number of its parameters.
        stored_bytes: the bytes of its weight files.
        dtype: the dtype of a fit.
        dtype_reason: why it is that one.
        layers: the number of its decoder layers.
        targets: the number of targets that would be edited.
        demonstrations: the number of demonstrations.
        tokens: the number of tokens of all demonstrations.
        layerwise: whether the fit would have one layer at a time in memory.
        formats: one for each format.
        speed: what was measured.
        remarks: what else is to know about the model, in sentences.
    """

    name: str
    architecture: str
    parameters: int
    stored_bytes: int
    dtype: str
    dtype_reason: str
    layers: int
    targets: int
    demonstrations: int
    tokens: int
    layerwise: bool
    formats: tuple[FormatDiagnosis, ...]
    speed: Speed
    remarks: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether any format would work."""
        return any(one.works for one in self.formats)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"places" if name == "targets" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Diagnosis:
    """A machine, and what a job with a model would be on it; None if no model was named."""

    machine: Machine
    model: ModelDiagnosis | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"machine": asdict(self.machine), "model": None if self.model is None else self.model.to_dict()}

    def to_frame(self) -> DataFrame:
        """A row for each format of an output, as a data frame of pandas; no row without a model.

        Raises:
            InputError: pandas is not installed.
        """
        formats = () if self.model is None else self.model.formats
        return data_frame([asdict(one) for one in formats], [item.name for item in fields(FormatDiagnosis)])


def diagnose(
    model: str | None,
    output: Path,
    data: DemonstrationOptions,
    fit: FitOptions,
    run: RunOptions,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
    *,
    threads: Threads | None = None,
) -> Diagnosis:
    """Describes this machine, and what `fit-and-save` of a model would be on it.

    Args:
        model: a Hub id, a directory or a `.gguf` file. Its weights are neither read nor downloaded. None to describe
            the machine only.
        output: what would be written.
        data: the demonstrations of the fit.
        fit: the options of the fit.
        run: how the model would be opened.
        waiting: is told what goes on; its context is open meanwhile.
        threads: with how many threads it would compute, if that is decided.

    Raises:
        InputError: the model, the demonstrations or the directory of the output is not usable.
    """
    check_job(model, output)
    machine = describe_machine(output.resolve().parent, threads)
    if model is None:
        return Diagnosis(machine, None)
    demonstrations, dtype = read_demonstrations(data, fit.capture.seed), parse_dtype(run.dtype)
    with (
        waiting(f"Looking at {model}"),
        header_only_base(
            model,
            revision=run.revision,
            dtype=dtype,
            dequantize=run.dequantize,
            trust_remote_code=run.trust_remote_code,
        ) as base,
    ):
        device = torch.device(local_device(choose_device(run.device)))
        usable = usable_by(base, demonstrations, fit.template)
        return Diagnosis(
            machine,
            diagnose_model(base, usable, fit, output, dtype=dtype, device=device, layerwise=run.layerwise),
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
    """Finds out what `fit-and-save` would be in each format.

    Args:
        base: the base; a header-only checkpoint is enough.
        demonstrations: those to fit on.
        options: those of the fit.
        output: what would be written.
        dtype: the dtype of the fit; None to choose it as the fit does.
        device: where the fit computes.
        layerwise: whether the fit has one layer at a time in memory; None decides by the free memory.

    Raises:
        InputError: the config or the tokenizer is not usable, or the demonstrations do not fit the model.
    """
    config, model = base.config, base.skeleton
    check_quantizer(config, base.name)
    targets = choose_targets(model, options)
    faster = None if dtype is not None else compute_dtype(base, device)
    reason = "as given" if dtype is not None else "as stored" if faster is None else "the fastest on this processor"
    dtype = dtype or faster
    if layerwise is None:
        layerwise = can_load_layers(config) and not fits_whole(base, dtype, device)
    if layerwise:
        check_layers_loadable(base)
    tokenized = demonstrations_to_fit(model, base.tokenizer, demonstrations, options, in_memory=not layerwise)
    tokens = sum(len(one.prompt) + len(one.positive) + len(one.negative) for one in tokenized)
    computed = dtype or base.dtype
    job = Job(base, targets, len(demonstrations), tokens, computed, device, layerwise, options.center)
    speed = measure_speed(device, computed, job.size, output.resolve().parent)
    seconds, memory = job.seconds(speed), job.memory()
    found = []
    rank = min(2 * len(demonstrations), job.size // 2)  # the largest possible, but half of the hidden size
    for format in formats():
        disk = format.disk_bytes(base, output, ExportOptions(format=format.name), targets=len(targets), rank=rank)
        problem = _problem(base, targets, options, output, format) or _no_room(output, disk, memory, device)
        found.append(FormatDiagnosis(format.name, problem is None, problem, seconds + disk / speed.disk, memory, disk))
    return ModelDiagnosis(
        name=base.name,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stored_bytes=weight_bytes(base.checkpoint, None),
        dtype=dtype_name(computed),
        dtype_reason=reason,
        layers=len(decoder_layers(model)[1]),
        targets=len(targets),
        demonstrations=len(demonstrations),
        tokens=tokens,
        layerwise=layerwise,
        formats=tuple(found),
        speed=speed,
        remarks=_remarks(base),
    )


def _remarks(base: Base) -> tuple[str, ...]:
    missing = ", ".join(missing_entries(base.checkpoint.config))
    if not missing:
        return ()
    return (
        f"config.json has {missing} in rope_parameters only, where transformers 4 (and CTranslate2 with it), mlx-lm "
        "and mistral.rs do not look. They would compute with a value of their own, but for mistral.rs, which may "
        "refuse the model. For them add --compatible-config.",
    )


def _problem(
    base: Base, targets: Sequence[Target], options: FitOptions, output: Path, format: ExportFormat[Any, Any]
) -> str | None:
    """Why a format cannot hold the edit of a base, or not in this output, and what to do; None if it can."""
    export = ExportOptions(format=format.name)
    try:
        format.check_options(options, export)
        check_output(output, overwrite=True)
        check_room_for(base, output, export)
        locate_fit(base, targets, options, export)
    except SeaExportError as error:
        return str(error)
    return None


def _no_room(output: Path, disk: int, memory: int, device: torch.device) -> str | None:
    """What there is too little of, and what to do; None if there is enough of all."""
    free = shutil.disk_usage(output.resolve().parent).free
    if disk > free:
        return f"{output}: its disk has {free / 1e9:.1f} GB free, and {disk / 1e9:.1f} GB are needed. Make room."
    available = available_memory(device)
    if memory > available:
        return (
            f"{device}: {available / 1e9:.1f} GB of its memory are free, and about {memory / 1e9:.1f} GB are needed. "
            "Choose a machine with more, or fewer tokens at a time (--batch-tokens)."
        )
    return None
