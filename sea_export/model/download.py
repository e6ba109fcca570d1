"""Snapshots of Hub models in the local cache, with all files or with those that are needed, and what can fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sea_export.errors import InputError, first_line

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

    with _explained(model, revision):
        validate_repo_id(model)
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=None if wanted is None else list(wanted),
                ignore_patterns=None if not_wanted is None else list(not_wanted),
            )
        )


@contextmanager
def _explained(model: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(
            f"{model}: it is neither a directory, nor a .gguf file, nor a Hub id. Give one of them; a Hub id is NAME "
            "or ORG/NAME."
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"{model}: you have no access to it yet. Accept its terms on its page of the Hub, then log in with "
            "`hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{model}: there is no such directory here and no such model on the Hub. Check the name, and log in with "
            "`hf auth login` if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{model}: it has no revision {revision} on the Hub. Check the branch, tag or commit."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{model}: there is no such directory here, the local cache does not hold all of the model, and the Hub "
            "cannot be asked (no connection, or HF_HUB_OFFLINE is set). Download it first, or give a local copy."
        ) from error
    except (OSError, errors.HTTPError) as error:
        raise InputError(f"{model}: the download failed ({first_line(error)}). Try again later.") from error
