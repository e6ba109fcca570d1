"""Steps that several commands take: opening a model, fitting with a progress bar, printing what came out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn
from rich.table import Table

from sea_export.capture.cache import cached_bytes
from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cli.terminal import console, errors, progress_bar, silenced, waiting
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.load import load_demonstrations
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.custom_code.code_plan import EditedModules
from sea_export.export.stored_projections import StoredProjections
from sea_export.fitting.distributed import Processes, joined_processes, local_device
from sea_export.fitting.fit import fit_edit, no_op_warning, sequence_warning
from sea_export.fitting.layer_choice import choose_targets, left_out_note
from sea_export.model.base import BaseModel, is_hub_id, resolve_base, weight_digests
from sea_export.model.load_model import (
    load_config,
    load_model,
    load_tokenizer,
    parse_dtype,
    quiet_transformers,
    skeleton,
)
from sea_export.model.memory import fits_whole
from sea_export.options import FitOptions, SaveOptions
from sea_export.saving import SaveResult, checkpoint_bytes, targets_of_fit
from sea_export.verification.verify import Verification

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "OpenedModel",
    "base_of",
    "byte_progress",
    "chosen_device",
    "fit_with_progress",
    "joined_job",
    "opened_model",
    "print_layers",
    "print_saved",
    "print_verification",
    "print_warnings",
    "read_demonstrations",
    "with_base_digests",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedModel:
    """A resolved base model whose parts are loaded when they are first needed."""

    base: BaseModel
    dtype: torch.dtype | None
    device: str
    device_map: str | None
    layerwise: bool | None
    trust_remote_code: bool
    scratch: Path

    @cached_property
    def config(self) -> PretrainedConfig:
        return load_config(self.base, trust_remote_code=self.trust_remote_code)

    @cached_property
    def model(self) -> PreTrainedModel | StoredModel:
        """The model in memory; a layer at a time, if that was asked for or if it does not fit as a whole."""
        device = torch.device(self.device)
        layerwise = self.layerwise
        if layerwise is None:
            layerwise = (
                self.device_map is None
                and can_load_layers(self.config)
                and not fits_whole(self.base, self.dtype, device)
            )
            if layerwise:
                logger.info("%s does not fit into memory: it is fitted layer by layer", self.base.name)
        if not layerwise:
            return load_model(
                self.base,
                dtype=self.dtype,
                device=self.device,
                device_map=self.device_map,
                trust_remote_code=self.trust_remote_code,
            )
        return StoredModel(
            self.base,
            self.config,
            dtype=self.dtype,
            device=device,
            scratch=self.scratch,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def whole_model(self) -> PreTrainedModel:
        """The model, for what runs it from end to end."""
        if isinstance(self.model, StoredModel):
            raise InputError(
                f"{self.base.name} has to be in memory as a whole for this: give --no-layerwise if it is not asked to "
                "be anywhere else, or a machine with more memory"
            )
        return self.model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base, trust_remote_code=self.trust_remote_code)

    def places(self, options: FitOptions, saving: SaveOptions) -> StoredProjections | EditedModules:
        """The places that a fit with `options` will edit, found to have room for it, before any weight is loaded."""
        model = skeleton(self.config, trust_remote_code=self.trust_remote_code)
        return targets_of_fit(choose_targets(model, options), self.base, options, saving)


def chosen_device(values: dict[str, Any]) -> str:
    """The device that `model_options` name, for this process."""
    device: str = values["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return local_device(device)


@contextmanager
def opened_model(model: str, values: dict[str, Any], output: Path) -> Iterator[OpenedModel]:
    """The model that a command line names, with `model_options` (and `--trust-remote-code`) applied.

    What does not fit into memory is put beside `output`, into files without a name.
    """
    quiet_transformers()
    dtype = parse_dtype(values["dtype"])
    if values["device_map"] is not None and values["layerwise"]:
        raise InputError("--device-map has all layers in memory, and --layerwise one at a time: choose one of them")
    device = chosen_device(values)
    with ExitStack() as stack:
        with waiting(f"Opening {model}"):
            base = stack.enter_context(
                resolve_base(model, revision=values["revision"], dtype=dtype, dequantized=values["dequantize"])
            )
        if warning := license_warning(base.name, base_metadata(base)):
            logger.warning(warning)
        files = len(base.checkpoint.weight_files)
        logger.debug("%s: %d tensors in %d files", base.name, len(base.checkpoint.tensors), files)
        scratch = output.resolve().parent
        yield OpenedModel(
            base, dtype, device, values["device_map"], values["layerwise"], values["trust_remote_code"], scratch
        )


def read_demonstrations(values: dict[str, Any]) -> tuple[Demonstration, ...]:
    """The demonstrations that `demonstration_options` name."""
    return load_demonstrations(
        values["demonstrations"],
        prompt_field=values["prompt_field"],
        positive_field=values["positive_field"],
        negative_field=values["negative_field"],
        limit=values["limit"],
        seed=values["seed"],
    )


@contextmanager
def joined_job() -> Iterator[Processes]:
    """The processes that share the job. All but the first keep quiet, and have nothing to do after the fit."""
    with joined_processes() as processes, nullcontext() if processes.is_first else silenced():
        yield processes


def fit_with_progress(
    opened: OpenedModel,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    cache: Path | None,
    processes: Processes,
) -> SpectralEdit:
    """Fits behind a progress bar, and warns of an edit that does nothing."""
    if note := left_out_note(skeleton(opened.config, trust_remote_code=opened.trust_remote_code), options):
        logger.info(note)
    columns = (MofNCompleteColumn(), TextColumn("demonstrations"), TextColumn("{task.fields[rate]}"))
    with progress_bar(*columns) as progress:
        # Each process shows what it has to do itself.
        task = progress.add_task("Capturing", total=math.ceil(len(demonstrations) / processes.count), rate="")

        def advance(count: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, advance=count, rate=f"{speed:.1f}/s" if speed else "")

        edit = fit_edit(
            opened.model, opened.tokenizer, demonstrations, options, advance, cache=cache, processes=processes
        )
    named = {"name": opened.base.name, "revision": opened.base.revision}
    edit = replace(edit, provenance={**edit.provenance, "base": named})
    print_warnings(edit)
    if cache is not None:
        logger.info("%s keeps %.1f MB of activations", cache, cached_bytes(cache) / 1e6)
    return edit


def print_warnings(edit: SpectralEdit) -> None:
    """Warns of an edit that does nothing, and of one whose results depend on the batch."""
    for warning in (no_op_warning(edit), sequence_warning(edit)):
        if warning:
            logger.warning(warning)


def with_base_digests(edit: SpectralEdit, opened: OpenedModel) -> SpectralEdit:
    """The edit with the digests of the weights that it was fitted on."""
    named = {**edit.provenance["base"], "weights": weight_digests(opened.base.checkpoint)}
    return replace(edit, provenance={**edit.provenance, "base": named})


def base_of(edit: SpectralEdit) -> str:
    """The Hub id of the base that an edit names."""
    name: str = (edit.provenance.get("base") or {}).get("name", "")
    if not is_hub_id(name):
        raise InputError(f"the edit was fitted on the local model {name!r}: say where it is with --base")
    return name


@contextmanager
def byte_progress(description: str, base: BaseModel) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of the base's checkpoint."""
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(description, total=checkpoint_bytes(base))
        yield lambda count: progress.advance(task, count)


def print_layers(edit: SpectralEdit) -> None:
    """Prints ranks, spectra and relative change of each layer."""
    table = Table("layer", "component", "kept", "dropped", "of", "first σ² (+)", "change", "signature", "reader error")
    for target in edit.targets:
        for layer in edit.layers[target]:
            values = layer.positive_values
            table.add_row(
                str(target.layer),
                target.component,
                str(layer.positive.shape[1]),
                str(layer.negative.shape[1]),
                str(values.numel()),
                f"{layer.first_share:.2%}",
                f"{layer.relative_change:.2%}",
                f"{layer.signature:.4g}",
                "" if layer.reader_error is None else f"{layer.reader_error:.3f}",
            )
    console.print(table)


def print_verification(verification: Verification) -> None:
    """Prints the figures of a verification, and what is wrong if anything is."""
    reference = "run-time edit" if verification.exact else "export in memory"
    table = Table("compared with", "largest logit difference", "mean KL (nats)", "equal greedy tokens")
    rows = {
        "run-time edit / export in memory (mathematics)": verification.mathematics,
        f"{reference} / as stored, base in {verification.dtype} (storage)": verification.storage,
        f"base / base computed in {verification.dtype} (its own rounding)": verification.base_rounding,
        "base / run-time edit (what the edit does)": verification.effect,
    }
    for name, agreement in rows.items():
        table.add_row(
            name,
            f"{agreement.max_logit_difference:.1e}",
            f"{agreement.mean_divergence:.1e}",
            f"{agreement.equal_greedy:.2%}",
        )
    console.print(table)
    console.print(verification.statement)
    for problem in verification.problems:
        errors.print(f"Problem: {problem}", style="red", soft_wrap=True)


def print_saved(result: SaveResult, edit: SpectralEdit) -> None:
    """Prints what was written and how to use it."""
    print_layers(edit)
    if result.verification is not None:
        print_verification(result.verification)
    verified = "verified" if result.verification is not None else "not verified"
    console.print(f"Saved to {result.output} ({verified}). Load it with")
    trust = ", trust_remote_code=True" if result.format == "custom-code" else ""
    console.print(f'  AutoModelForCausalLM.from_pretrained("{result.output}"{trust})', soft_wrap=True)
