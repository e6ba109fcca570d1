"""The base that edits name. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from sea_export.edit.stored_edit import StoredEdit
from sea_export.errors import InputError
from sea_export.model.location import is_hub_id

__all__ = ["base_of_edits"]


def base_of_edits(edits: Sequence[StoredEdit]) -> str:
    """The Hub id of the base that the first of some edits names.

    Args:
        edits: at least one.

    Raises:
        InputError: it names a local model, and only the user may say where that is.
    """
    name: str = (edits[0].provenance.get("base") or {}).get("name", "")
    if not is_hub_id(name):
        raise InputError(
            f"--base: it is missing, and the edit names the local model {name!r}. Say where that model is."
        )
    return name
