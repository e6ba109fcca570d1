"""The check of demonstrations, as `check` does it. Without a model and a benchmark it needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sea_export.demonstrations.demonstration import LoadedDemonstrations
from sea_export.demonstrations.findings import Finding, text_findings
from sea_export.doctor.check_options import CheckOptions
from sea_export.files.frames import data_frame

if TYPE_CHECKING:
    from pandas import DataFrame

    from sea_export.capture.opened_model import OpenedModel

__all__ = ["DemonstrationCheck", "check_read_demonstrations"]


@dataclass(frozen=True)
class DemonstrationCheck:
    """What a check of demonstrations found.

    Attributes:
        demonstrations: how many there are.
        findings: what is wrong with them, each with what to do.
    """

    demonstrations: int
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"demonstrations": self.demonstrations, "findings": [one.to_dict() for one in self.findings]}

    def to_frame(self) -> DataFrame:
        """A row for each finding, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return data_frame([one.to_dict() for one in self.findings], ["name", "problem", "advice", "rows"])


def check_read_demonstrations(
    demonstrations: LoadedDemonstrations,
    options: CheckOptions,
    opened: Callable[[], AbstractContextManager[OpenedModel]] | None = None,
) -> DemonstrationCheck:
    """Looks for what is wrong with demonstrations.

    Args:
        demonstrations: n of them.
        options: what they are compared with, and which activations are looked at.
        opened: opens the model whose activations are looked at; None for none.

    Raises:
        InputError: a file or the model is not usable.
    """
    found: Sequence[Finding] = text_findings(demonstrations)
    if options.against or opened is not None:
        from sea_export.doctor.check_demonstrations import leakage_findings, model_findings  # with torch

        found = [*found, *leakage_findings(demonstrations, options)]
        if opened is not None:
            with opened() as model:
                found = [*found, *model_findings(demonstrations, model, options)]
    return DemonstrationCheck(len(demonstrations), tuple(found))
