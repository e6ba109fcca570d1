"""Which edits a format cannot hold: refusals that several formats share."""

from __future__ import annotations

from collections.abc import Iterable

from sea_export.edit.layer_form import why_unfoldable
from sea_export.errors import InputError
from sea_export.export.formats import EditNeeds
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["check_blocks_alone", "check_foldable", "check_outputs_alone"]


def check_blocks_alone(targets: Iterable[Target], format: str) -> None:
    """Raises InputError for an edit of the embedding, which only a merge holds, in the format of another name."""
    if not all(target.in_decoder for target in targets):
        raise InputError(
            f"--format: {format} cannot hold an edit of the embedding. Choose --format merged, or leave it out of the "
            "edit."
        )


def check_outputs_alone(needs: EditNeeds, format: str, way_out: str) -> None:
    """Raises InputError for an edit that changes weights by themselves, in a format that holds edits of outputs alone.

    Args:
        needs: what the edit needs.
        format: the name of the format.
        way_out: what to do instead, as a sentence.
    """
    if needs.weights:
        raise InputError(
            f"--format: {format} cannot hold an edit that changes weights by themselves, such as that of "
            f"{needs.weights[0]}. {way_out}"
        )


def check_foldable(fit: FitOptions) -> None:
    """Raises InputError if weights cannot hold the edit that a fit would make.

    Args:
        fit: the options of the fit.
    """
    reason = why_unfoldable(fit.feature_function, fit.edit.normalization)
    if reason:
        raise InputError(reason)
