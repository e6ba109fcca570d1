"""What an edit does to each layer, as `inspect` tells it. Nothing here imports torch, but for a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.edit.stored_edit import read_stored_edit
from sea_export.edit.summary import LayerSummary, WeightSummary
from sea_export.export.fetch import fetch_edit
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.files.frames import data_frame

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """What is told of an edit.

    Attributes:
        directory: the edit, or the output that holds it.
        layers: the numbers of each layer edit, sorted by target.
        weights: the numbers of each change of a single weight, sorted by layer.
        provenance: how the edit was made, as plain JSON data.
        storage_errors: name of a requantized weight -> what its storage does to the edit: see
            `sea_export.export.formats.StorageError`.
    """

    directory: Path
    layers: tuple[LayerSummary, ...]
    weights: tuple[WeightSummary, ...]
    provenance: Mapping[str, Any]
    storage_errors: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "weights": [weight.to_dict() for weight in self.weights],
            "provenance": dict(self.provenance),
            "storage_errors": {name: dict(one) for name, one in self.storage_errors.items()},
        }

    def to_frame(self) -> DataFrame:
        """A row for each layer edit, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return data_frame([layer.to_dict() for layer in self.layers])

    def plot(self, file: Path | str) -> None:
        """Draws spectra, ranks and changes of each layer.

        Args:
            file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

        Raises:
            InputError: matplotlib is missing, or the file cannot be written.
        """
        from sea_export.edit.spectral_edit import SpectralEdit
        from sea_export.evaluation.edit_plot import plot_edit

        plot_edit(SpectralEdit.load(self.directory), Path(file))


def inspect(edit: str | Path) -> Inspection:
    """Reads what is told of an edit.

    Args:
        edit: a directory with an edit or with an exported checkpoint, or the latter's Hub id (`REPO_ID` or
            `REPO_ID@REVISION`).

    Raises:
        InputError: there is no edit, or it is damaged.
    """
    directory = fetch_edit(edit)
    stored = read_stored_edit(directory)
    manifest = read_manifest(directory) if (directory / MANIFEST).is_file() else {}
    errors = (manifest.get("verification") or {}).get("storage_errors", {})
    return Inspection(directory, stored.summary, stored.weight_summary, stored.provenance, errors)
