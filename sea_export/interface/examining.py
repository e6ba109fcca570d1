"""`sea_export.check` and `sea_export.diagnose`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sea_export.capture.progress_callback import ProgressCallback, waiting_of
from sea_export.demonstrations.demonstration import DemonstrationOrigin, LoadedDemonstrations
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.load import DemonstrationData, demonstrations_of, read_demonstrations
from sea_export.doctor.check_options import CheckOptions
from sea_export.doctor.demonstration_check import DemonstrationCheck, check_read_demonstrations
from sea_export.doctor.diagnose import Diagnosis
from sea_export.doctor.diagnose import diagnose as diagnose_job
from sea_export.doctor.doctor_options import DoctorOptions
from sea_export.interface.loaded_base import LoadedBase, opened_base
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions

__all__ = ["check", "diagnose", "read_data"]

_RUN, _DATA, _FIT = RunOptions(), DemonstrationOptions(), FitOptions()


def check(
    demonstrations: DemonstrationData,
    model: str | Path | LoadedBase | None = None,
    *,
    against: str | Sequence[str] = (),
    likeness: float = CheckOptions.likeness,
    layer: int | None = None,
    template: str = CheckOptions.template,
    prompt_field: str | None = None,
    positive_field: str | None = None,
    negative_field: str | None = None,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    seed: int = CheckOptions.seed,
    run: RunOptions = _RUN,
    progress: ProgressCallback | None = None,
) -> DemonstrationCheck:
    """Looks for what is wrong with demonstrations, and with a model also for what their activations show.

    Args:
        demonstrations: see `fit`. What follows about columns and rows is of a file or a dataset.
        model: the model whose activations are looked at; None for none.
        against: rows that the demonstrations must not contain, `NAME=FILE`, one or several.
        likeness: from which likeness of two prompts on, 1 for the same words.
        layer: the decoder layer whose activations are looked at; None for the middle one.
        template: `qa`, `primer`, `chat` or `none`: how a prompt becomes text.
        prompt_field: the column of the prompts.
        positive_field: the column of the good completions.
        negative_field: the column of the bad completions.
        limit: the size of a sample; None for all.
        skip_bad_rows: leave out rows that cannot be used.
        seed: seed of the sample.
        run: how the model is opened, if it is not open.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: the demonstrations, the model or a file is not usable.
    """
    options = CheckOptions(
        against=(against,) if isinstance(against, str) else tuple(against),
        likeness=likeness,
        layer=layer,
        template=template,
        prompt_field=prompt_field,
        positive_field=positive_field,
        negative_field=negative_field,
        limit=limit,
        skip_bad_rows=skip_bad_rows,
        seed=seed,
    )
    read = read_data(demonstrations, options.demonstrations(""), seed)
    if model is None:
        return check_read_demonstrations(read, options)
    scratch, opening = Path(tempfile.gettempdir()), model
    return check_read_demonstrations(read, options, lambda: opened_base(opening, run, scratch, progress))


def diagnose(
    model: str | Path | None = None,
    *,
    output: str | Path = DoctorOptions.output,
    data: DemonstrationOptions = _DATA,
    fit: FitOptions = _FIT,
    run: RunOptions = _RUN,
    progress: ProgressCallback | None = None,
) -> Diagnosis:
    """What `sea-export doctor` tells: this machine, and what `fit_and_save` would cost on it. No weights are read.

    Args:
        model: a Hub id, a directory or a `.gguf` file; None to describe the machine only.
        output: what would be written.
        data: the demonstrations of the fit.
        fit: the options of the fit.
        run: how the model would be opened.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: the model, the demonstrations or the directory of the output is not usable.
    """
    name = None if model is None else str(model)
    return diagnose_job(name, Path(output), data, fit, run, waiting_of(progress))


def read_data(data: DemonstrationData, options: DemonstrationOptions, seed: int) -> LoadedDemonstrations:
    """Demonstrations from whatever holds them in Python.

    Args:
        data: see `sea_export.demonstrations.load.demonstrations_of`.
        options: how a file or a dataset is read. They need not name it.
        seed: seed of the sample that `options.limit` draws.

    Raises:
        InputError: see `sea_export.demonstrations.load.load_demonstrations`.
    """
    if isinstance(data, (str, Path)):
        return read_demonstrations(replace(options, demonstrations=str(data)), seed)
    found = demonstrations_of(data)
    if isinstance(found, LoadedDemonstrations):
        return found
    return LoadedDemonstrations(found, DemonstrationOrigin("demonstrations"))
