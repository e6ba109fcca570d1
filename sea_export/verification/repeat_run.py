"""Repeating a run: its base is opened and its edits are fitted as they were then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit, compose
from sea_export.errors import InputError
from sea_export.export.output import check_output
from sea_export.fitting.fit_base import fit_base, log_warnings, with_weight_digests
from sea_export.model.base import open_base
from sea_export.model.load_model import choose_device, dtype_named
from sea_export.verification.recorded_run import RecordedRun
from sea_export.verification.reproduce_options import ReproduceOptions

__all__ = ["changed_circumstances", "check_repeatable", "fit_again", "open_again"]


def check_repeatable(run: RecordedRun, directory: Path, output: Path, options: ReproduceOptions) -> None:
    """Refuses what would fail only after work was done.

    Args:
        run: the run.
        directory: where its manifest is.
        output: the directory that the repeated run writes.
        options: those of the repeated run.

    Raises:
        InputError: the output cannot be written or is the first run itself, or code of the base may not run.
    """
    check_output(output, overwrite=options.overwrite)
    if output.resolve() == directory.resolve():
        raise InputError(f"{output}: it is the run that is to be repeated. Choose another output.")
    if run.trust_remote_code and not options.trust_remote_code:
        raise InputError(
            "--trust-remote-code: the run used code that comes with its base. Read that code, and allow it with "
            "--trust-remote-code."
        )


@contextmanager
def open_again(run: RecordedRun, options: ReproduceOptions, scratch: Path) -> Iterator[OpenedModel]:
    """Opens the base of a run, to be loaded as it was loaded then.

    Args:
        run: the run.
        options: where the base is, if the manifest does not say it, and what the repeated run computes on.
        scratch: a directory for hidden states that do not fit into memory.

    Yields:
        the base.

    Raises:
        InputError: the base cannot be found or opened.
    """
    base = run.base
    if options.base is None and base["revision"] is None:
        raise InputError(f"--base: the manifest names the local model {base['name']!r}. Say where that model is.")
    model = options.base or base["name"]
    with open_base(
        model,
        revision=None if Path(model).expanduser().exists() else base["revision"],
        dtype=dtype_named(base["dtype"]),
        dequantize=base["dequantized"],
        trust_remote_code=options.trust_remote_code,
    ) as opened:
        yield OpenedModel(
            opened,
            dtype_named(run.computation["dtype"]),
            choose_device(options.device or run.computation["device"]),
            device_map=None,
            layerwise=run.computation["layerwise"] or None,
            scratch=scratch,
        )


def fit_again(
    run: RecordedRun,
    demonstrations: Sequence[Sequence[Demonstration]],
    opened: OpenedModel,
    progress: Callable[[int], AbstractContextManager[Callable[[int], None]]],
) -> SpectralEdit:
    """Fits all edits of a run again.

    Args:
        run: the run.
        demonstrations: those of each fit.
        opened: the base.
        progress: given a number of demonstrations, a context whose value is told how many are done.

    Returns:
        Their product.

    Raises:
        InputError: see `sea_export.fitting.fit.fit`.
    """
    edits: list[SpectralEdit] = []
    for fit, fitted_on in zip(run.fits, demonstrations, strict=True):
        with progress(len(fitted_on)) as advance:
            fitted = fit_base(opened, fitted_on, fit.fitted_options, advance).edit()
        if fit.fitted_strength is not None:
            fitted = fitted.with_strength(fit.options.edit.strength)
        edit = with_weight_digests(fitted, opened.base)
        # Searches and measurements are not repeated, only what they chose.
        found = {"tuning": fit.tuning, "effect": fit.effect}
        known = {name: record for name, record in found.items() if record is not None}
        edit = replace(edit, provenance={**edit.provenance, **known})
        log_warnings(edit)
        edits.append(edit)
    return compose(edits)


def changed_circumstances(run: RecordedRun, device: str) -> list[str]:
    """What is different now and may change the last digits of a result: versions, device, threads and processes."""
    now = {"device": device.partition(":")[0], "threads": torch.get_num_threads(), "processes": 1}
    return [
        *run.changed_versions(),
        *(
            f"{name} {run.computation[name]} then, {value} now"
            for name, value in now.items()
            if run.computation[name] != value
        ),
    ]
