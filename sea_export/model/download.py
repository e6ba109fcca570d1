"""Snapshots of Hub models in the local cache, with all files or with those that are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sea_export.model.hub_errors import hub_errors_explained

__all__ = ["download_snapshot"]


def download_snapshot(
    model: str,
    *,
    revision: str | None = None,
    wanted: Sequence[str] | None = None,
    not_wanted: Sequence[str] | None = None,
) -> Path:
    """The snapshot directory of a Hub model. Its name is the commit.

    Args:
        model: a Hub id.
        revision: branch, tag or commit; the main branch if None.
        wanted: shell patterns of the files to download; all files if None.
        not_wanted: shell patterns of files to leave out.

    Raises:
        InputError: there is no such model or revision, the user has no access to it, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import validate_repo_id

    with hub_errors_explained(model, revision=revision):
        validate_repo_id(model)
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=None if wanted is None else list(wanted),
                ignore_patterns=None if not_wanted is None else list(not_wanted),
            )
        )
