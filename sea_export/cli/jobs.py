"""Steps that several commands take: opening a model, fitting with a progress bar, printing what came out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn
from rich.table import Table

from sea_export.capture.cache import cached_bytes
from sea_export.capture.opened_model import OpenedModel
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cli.terminal import console, errors, progress_bar, silenced, waiting
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.load import load_demonstrations
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.formats import export_format
from sea_export.fitting.distributed import Processes, joined_processes, local_device
from sea_export.fitting.fit import fit_edit, no_op_warning, sequence_warning
from sea_export.fitting.layer_choice import choose_targets, left_out_note
from sea_export.model.base import Base, is_hub_id, open_base
from sea_export.model.load_model import parse_dtype, quiet_transformers
from sea_export.model.run_options import RunOptions
from sea_export.model.targets import Target
from sea_export.options import FitOptions
from sea_export.saving import SaveResult
from sea_export.verification.verify import Verification

__all__ = [
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


def chosen_device(run: RunOptions) -> str:
    """The device that `--device` names, for this process."""
    if run.device == "auto":
        return local_device("cuda" if torch.cuda.is_available() else "cpu")
    return local_device(run.device)


@contextmanager
def opened_model(model: str, run: RunOptions, output: Path) -> Iterator[OpenedModel]:
    """The model that a command line names, opened as its options say.

    What does not fit into memory is put beside `output`, into files without a name.
    """
    quiet_transformers()
    dtype, device = parse_dtype(run.dtype), chosen_device(run)
    with ExitStack() as stack:
        with waiting(f"Opening {model}"):
            base = stack.enter_context(
                open_base(
                    model,
                    revision=run.revision,
                    dtype=dtype,
                    dequantize=run.dequantize,
                    trust_remote_code=run.trust_remote_code,
                )
            )
        if warning := license_warning(base.name, base_metadata(base)):
            logger.warning(warning)
        files = len(base.checkpoint.weight_files)
        logger.debug("%s: %d tensors in %d files", base.name, len(base.checkpoint.tensors), files)
        scratch = output.resolve().parent
        yield OpenedModel(base, dtype, device, run.device_map, run.layerwise, scratch)


def read_demonstrations(data: DemonstrationOptions, seed: int) -> tuple[Demonstration, ...]:
    """The demonstrations that a command line names.

    Args:
        data: where they are, and which of them are used.
        seed: seed of the sample that `--limit` draws.
    """
    return load_demonstrations(
        data.demonstrations,
        prompt_field=data.prompt_field,
        positive_field=data.positive_field,
        negative_field=data.negative_field,
        limit=data.limit,
        seed=seed,
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
    targets: Sequence[Target] | None = None,
) -> SpectralEdit:
    """Fits behind a progress bar, and warns of an edit that does nothing.

    Args:
        opened: the base.
        demonstrations: at least two.
        options: those of the fit.
        cache: a directory that keeps captured activations.
        processes: those that share the demonstrations.
        targets: what `choose_targets` gave, if that was asked before.
    """
    if targets is None:
        targets = choose_targets(opened.base.skeleton, options)
    if note := left_out_note(opened.base.skeleton, options, targets):
        logger.info(note)
    columns = (MofNCompleteColumn(), TextColumn("demonstrations"), TextColumn("{task.fields[rate]}"))
    with progress_bar(*columns) as progress:
        # Each process shows what it has to do itself.
        task = progress.add_task("Capturing", total=math.ceil(len(demonstrations) / processes.count), rate="")

        def advance(count: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, advance=count, rate=f"{speed:.1f}/s" if speed else "")

        edit = fit_edit(
            opened.model,
            opened.base.tokenizer,
            demonstrations,
            options,
            advance,
            cache=cache,
            processes=processes,
            projections=opened.base.output_projections(targets),
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
    named = {**edit.provenance["base"], "weights": dict(opened.base.weight_digests)}
    return replace(edit, provenance={**edit.provenance, "base": named})


def base_of(edit: SpectralEdit) -> str:
    """The Hub id of the base that an edit names."""
    name: str = (edit.provenance.get("base") or {}).get("name", "")
    if not is_hub_id(name):
        raise InputError(f"the edit was fitted on the local model {name!r}: say where it is with --base")
    return name


@contextmanager
def byte_progress(description: str, base: Base) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of the base's checkpoint."""
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(description, total=base.checkpoint.size)
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
    table = Table("compared with", "largest logit difference", "mean KL (nats)", "top-1 agreement")
    rows = {
        "run-time edit / export in memory (fold error)": verification.fold_error,
        f"{reference} / as stored, base in {verification.dtype} (rounding error)": verification.rounding_error,
        f"base / base computed in {verification.dtype} (its own rounding)": verification.base_rounding,
        "base / run-time edit (what the edit does)": verification.effect,
    }
    for name, agreement in rows.items():
        table.add_row(
            name,
            f"{agreement.max_logit_difference:.1e}",
            f"{agreement.mean_divergence:.1e}",
            f"{agreement.top1_agreement:.2%}",
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
    trust = ", trust_remote_code=True" if export_format(result.format).runs_code else ""
    console.print(f'  AutoModelForCausalLM.from_pretrained("{result.output}"{trust})', soft_wrap=True)
