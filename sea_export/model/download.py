"""Snapshots of Hub models in the local cache, of all their files or of those that are needed, and what can go wrong."""

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
    """The snapshot directory, named after its commit, of a Hub model.

    Args:
        model: a Hub id.
        revision: branch, tag or commit; the main branch if None.
        wanted: shell patterns of the files to fetch, all if None.
        not_wanted: shell patterns of files to leave out.

    Raises:
        InputError: there is no such model or revision, it is not for this user, or the Hub cannot be reached.
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
            f"{model} is neither a directory, nor a .gguf file, nor a Hub id (name or org/name)."
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"Access to {model} has to be asked for: accept its terms on its page of the Hub, then log in with "
            "`hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"There is no directory {model} here and no such model on the Hub; check the name, and log in with "
            "`hf auth login` if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{model} has no revision {revision} on the Hub; check the branch, tag or commit.") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"There is no directory {model} here, and the Hub cannot be asked (no connection, or HF_HUB_OFFLINE is "
            "set) while the model is not complete in the local cache; download it first, or name a local copy."
        ) from error
    except (OSError, errors.HTTPError) as error:
        raise InputError(f"Downloading {model} failed ({first_line(error)}); try again later.") from error
