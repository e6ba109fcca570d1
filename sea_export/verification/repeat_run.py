"""Repeating a run: its base is opened and its edits are fitted as they were then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit, combined
from sea_export.edit.summary import log_warnings
from sea_export.fitting.fit_base import fit_base, with_weight_digests
from sea_export.model.base import open_base
from sea_export.model.load_model import choose_device, dtype_named
from sea_export.model.location import ModelLocation
from sea_export.verification.recorded_run import RecordedRun
from sea_export.verification.reproduce_options import ReproduceOptions

__all__ = ["changed_circumstances", "fit_again", "open_again"]


@contextmanager
def open_again(
    run: RecordedRun, location: ModelLocation, options: ReproduceOptions, scratch: Path
) -> Iterator[OpenedModel]:
    """Opens the base of a run, to be loaded as it was loaded then.

    Args:
        run: the run.
        location: where its base is.
        options: what the repeated run computes on, and whether code of the base may run.
        scratch: a directory for hidden states that do not fit into memory.

    Yields:
        the base.

    Raises:
        InputError: the base cannot be opened.
    """
    base = run.base
    with open_base(
        location,
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
        The edit that was made of them.

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
        found = {"tuning": fit.tuning, "effect": fit.effect, "examples": fit.examples}
        known = {name: record for name, record in found.items() if record is not None}
        edit = replace(edit, provenance={**edit.provenance, **known})
        log_warnings(edit.summary)
        edits.append(edit)
    return combined(run.edit, iter(edits))


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
