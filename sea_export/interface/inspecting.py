"""`sea_export.inspect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.capture.progress_callback import ProgressCallback
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.evaluation_options import InspectOptions
from sea_export.evaluation.inspection import Inspection
from sea_export.evaluation.inspection import inspect as read_inspection
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from sea_export.demonstrations.load import DemonstrationData
    from sea_export.interface.loaded_base import LoadedBase

__all__ = ["inspect"]

_RUN, _DATA = RunOptions(), DemonstrationOptions()


def inspect(
    edit: str | Path,
    *,
    plot: str | Path | None = None,
    plot_activations: str | Path | None = None,
    model: str | Path | LoadedBase | None = None,
    plot_layers: str | None = None,
    demonstrations: DemonstrationData = DemonstrationOptions.demonstrations,
    data: DemonstrationOptions = _DATA,
    seed: int = InspectOptions.seed,
    run: RunOptions = _RUN,
    progress: ProgressCallback | None = None,
) -> Inspection:
    """Tells what an edit does to each layer, and draws it.

    Args:
        edit: a directory with an edit or with an exported checkpoint, or the latter's Hub id (`REPO_ID` or
            `REPO_ID@REVISION`).
        plot: a picture to write of spectra, ranks and changes, as `Inspection.plot` does.
        plot_activations: a picture to write of the activations of demonstrations, and of what the edit makes of them.
            It needs `model`. The ending of a picture decides its format (.png, .pdf, .svg).
        model: the model that the edit was fitted on: a Hub id, a directory or a `.gguf` file, or a base that `load` has
            opened.
        plot_layers: the layers in the picture of activations, such as `18,29`; None for the three that change most.
        demonstrations: those in the picture of activations: see `sea_export.fit`.
        data: how a file or a dataset of demonstrations is read.
        seed: seed of the sample that `data.limit` draws.
        run: how the model is opened, if it is not open.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: there is no edit, or it is damaged; the model is another one; matplotlib is missing, or a picture
            cannot be written.
    """
    for picture in (plot, plot_activations):
        if picture is not None:
            check_picture(Path(picture))
    options = InspectOptions(
        plot=None if plot is None else Path(plot),
        plot_activations=None if plot_activations is None else Path(plot_activations),
        model=None if model is None else str(model),
        plot_layers=plot_layers,
        seed=seed,
    )
    found = read_inspection(edit)  # without torch, which takes longer than everything else here
    if options.plot is not None:
        found.plot(options.plot)
    if options.plot_activations is None or model is None:
        return found

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.evaluation.activation_plot import plot_activations as draw
    from sea_export.evaluation.edited_activations import edited_activations
    from sea_export.interface.examining import read_data
    from sea_export.interface.loaded_base import opened_base

    loaded, read = SpectralEdit.load(found.directory), read_data(demonstrations, data, seed)
    with opened_base(model, run, Path(tempfile.gettempdir()), progress) as opened:
        draw(edited_activations(loaded, opened, read, plot_layers), loaded, options.plot_activations)
    return found
