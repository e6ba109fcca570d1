"""Edits that are tried before they are baked: applied to their base at run time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.edit.stored_edit import DESCRIPTION_FILE, read_stored_edit
from sea_export.errors import InputError
from sea_export.options import check_strength

if TYPE_CHECKING:
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.evaluation.loaded_model import LoadedModel

__all__ = ["applied", "check_run_time_edit", "edit_name", "is_edit", "load_run_time_edit", "warn_of_other_base"]

logger = logging.getLogger(__name__)


def is_edit(name: str) -> bool:
    """Whether a name is that of an edit's directory, and not that of a model.

    Args:
        name: a directory, or anything else that names a model.
    """
    return (Path(name).expanduser() / DESCRIPTION_FILE).is_file()


def check_run_time_edit(edit: Path | None, strength: float | None, model: str) -> None:
    """Refuses an edit that cannot be read, and a strength that no edit can have here, without torch.

    Args:
        edit: the directory of the edit; None if a model is measured as it is.
        strength: the strength that it is to have; None for its own.
        model: the model that is measured as it is, if there is no edit.

    Raises:
        InputError: see above.
    """
    if strength is not None:
        check_strength(strength)
        if edit is None:
            baked = Path(model).expanduser() / "sea_edit"
            there = f", such as {baked}, beside its base" if is_edit(str(baked)) else " as `sea-export fit` writes it"
            raise InputError(
                f"--strength: it is of an edit that is applied at run time, and {model} is a model as it is. Give the "
                f"directory of an edit{there}."
            )
    if edit is not None:
        read_stored_edit(edit.expanduser())


def load_run_time_edit(edit: Path, strength: float | None) -> SpectralEdit:
    """An edit, at the strength that is asked for.

    Args:
        edit: its directory.
        strength: the strength that it is to have; None for its own.

    Raises:
        InputError: it cannot be read, or cannot have that strength.
    """
    from sea_export.edit.spectral_edit import SpectralEdit

    loaded = SpectralEdit.load(edit.expanduser())
    return loaded if strength is None else loaded.with_strength(strength)


def edit_name(edit: Path, strength: float | None) -> str:
    """What an edit is called beside its base.

    Args:
        edit: its directory.
        strength: the strength that it is given; None for its own.
    """
    name = edit.expanduser().resolve().name
    return name if strength is None else f"{name} at strength {strength:g}"


@contextmanager
def applied(edit: SpectralEdit, base: LoadedModel) -> Iterator[None]:
    """A context in which an edit is applied to its base in memory. Another base than its own is told in a warning.

    Args:
        edit: the edit.
        base: the model to apply it to.

    Raises:
        InputError: it does not fit the model.
    """
    warn_of_other_base(edit, base)
    with edit.apply(base.model):
        yield


def warn_of_other_base(edit: SpectralEdit, base: LoadedModel) -> None:
    """Tells in a warning if a model in memory is not the one that an edit was fitted on.

    Args:
        edit: the edit.
        base: the model.
    """
    fitted_on: Mapping[str, object] = edit.provenance.get("base") or {}
    weights = fitted_on.get("weights")
    if isinstance(weights, dict) and sorted(weights.values()) != sorted(base.weight_digests().values()):
        logger.warning(
            "%s: its weights are not those of %s, on which the edit was fitted.", base.name, fitted_on.get("name")
        )
