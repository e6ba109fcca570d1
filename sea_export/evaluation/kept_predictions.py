"""Next-token distributions of a model on some texts, kept so that other models can be compared with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sea_export.errors import SeaExportError

__all__ = ["KeptPredictions"]


class KeptPredictions:
    """The log-probabilities of texts, in a file without a name that is mapped into memory."""

    def __init__(self, lengths: Sequence[int], vocabulary: int, directory: Path | None = None) -> None:
        """Makes the file, which is removed with this object.

        Args:
            lengths: of each text, how many tokens are predicted. At least one.
            vocabulary: the number of tokens that there are.
            directory: where the file is made; None for the directory of temporary files.

        Raises:
            SeaExportError: there is no room for it.
        """
        self.vocabulary = vocabulary
        self._starts = np.cumsum([0, *lengths]).tolist()
        size = 4 * self._starts[-1] * vocabulary
        place = Path(tempfile.gettempdir()) if directory is None else directory
        if shutil.disk_usage(place).free < size:
            raise SeaExportError(
                f"{place}: it has no room for {size / 1e9:.1f} GB of predictions of the base, with which those of the "
                "edited model are compared. Make room, or give fewer passages (--text)."
            )
        with tempfile.TemporaryFile(dir=place) as file:
            self._stored: NDArray[np.float32] = np.memmap(file, np.float32, "w+", shape=(self._starts[-1], vocabulary))

    def keep(self, index: int, log_probabilities: Tensor) -> None:
        """Keeps the (tokens, vocabulary) log-probabilities of a text."""
        self._rows(index)[:] = log_probabilities.cpu().numpy()

    def of(self, index: int) -> Tensor:
        """(tokens, vocabulary) the log-probabilities of a text, float32 on the CPU."""
        return torch.from_numpy(np.array(self._rows(index)))

    def _rows(self, index: int) -> NDArray[np.float32]:
        return self._stored[self._starts[index] : self._starts[index + 1]]
