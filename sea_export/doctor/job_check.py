"""What a description of a job needs to exist. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from sea_export.errors import InputError
from sea_export.model.location import check_model_name

__all__ = ["check_job"]


def check_job(model: str | None, output: Path) -> None:
    """Refuses a job that could not begin, whatever the machine is.

    Args:
        model: the name of the model; None for none.
        output: what would be written.

    Raises:
        InputError: there is no such model, or no directory in which the output would be written.
    """
    directory = output.resolve().parent
    if not directory.is_dir():
        raise InputError(
            f"--output: {directory}, where {output.name} would be written, is not a directory. Create it first."
        )
    if model is not None:
        check_model_name(model)
