"""What a failed call of huggingface_hub means, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sea_export.errors import InputError, SeaExportError, first_line, reason
from sea_export.files.nearest_name import meant, neighbours

__all__ = ["hub_errors_explained"]

_AGAIN = "The same push again continues with what is missing."


@contextmanager
def hub_errors_explained(repo_id: str, *, revision: str | None = None, pushing: bool = False) -> Iterator[None]:
    """Turns errors of huggingface_hub and of the connection into errors of ours.

    Args:
        repo_id: the repository that is read or pushed to.
        revision: the branch, tag or commit that is read; None for the main branch.
        pushing: whether the repository is pushed to.

    Raises:
        InputError: the name, the revision or the token is wrong, or what is read cannot be reached.
        SeaExportError: the Hub or the connection failed during a push.
    """
    try:
        yield
    except SeaExportError:
        raise
    except Exception as error:  # an answer that is not what the Hub gives makes huggingface_hub raise anything
        raise _not_pushed(error, repo_id) if pushing else _not_read(error, repo_id, revision) from error


def _not_read(error: Exception, model: str, revision: str | None) -> InputError:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return InputError(
            f"{model}: it is neither a directory, nor a .gguf file, nor a Hub id{_meant(model)}. Give one of them; a "
            "Hub id is NAME or ORG/NAME."
        )
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"{model}: you have no access to it yet. Accept its terms on its page of the Hub, then log in with `hf "
            "auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{model}: there is no such directory here and no such model on the Hub{_meant(model)}. Check the name, "
            "and log in with `hf auth login` if it is private."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{model}: it has no revision {revision} on the Hub. Check the branch, tag or commit.")
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return InputError(
            f"{model}: there is no such directory here{_meant(model)}, the local cache does not hold all of the model, "
            "and the Hub cannot be asked (no connection, or HF_HUB_OFFLINE is set). Download it first, or give a local "
            "copy."
        )
    return InputError(
        f"{model}: there is no such directory here{_meant(model)}, and the download from the Hub failed "
        f"({_told(error)}). Check the name, or try again later."
    )


def _meant(model: str) -> str:
    """Asks whether a model beside the missing one, or one in the local cache, was meant; empty if none is near."""
    from huggingface_hub import constants

    cached = (path.name.split("--") for path in Path(constants.HF_HUB_CACHE).glob("models--*"))
    known = ["/".join(parts[1:]) for parts in cached]
    return meant(model, [*known, *neighbours(Path(model).expanduser())])


def _not_pushed(error: Exception, repo_id: str) -> SeaExportError:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalTokenNotFoundError):
        return InputError(
            f"{repo_id}: a push needs a token, and there is none. Log in with `hf auth login`, or set HF_TOKEN."
        )
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{repo_id}: it is not a Hub id. Give NAME or ORG/NAME.")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403, 404):
            return InputError(
                f"{repo_id}: the Hub does not let this token write to it. Check the name, and whose token it is (`hf "
                "auth whoami`)."
            )
        if status in (409, 412):
            return SeaExportError(
                f"{repo_id}: somebody else has changed it meanwhile, and nothing was committed. Push again."
            )
        if status == 429:
            return SeaExportError(f"{repo_id}: the Hub gets too many requests. Please wait a while. {_AGAIN}")
        return SeaExportError(f"{repo_id}: the Hub failed ({first_line(error)}). {_AGAIN}")
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    return SeaExportError(f"{repo_id}: the push broke off ({_told(cause)}). {_AGAIN}")


def _told(error: BaseException) -> str:
    """What an error says, with its kind where the text alone says little."""
    if isinstance(error, (OSError, RuntimeError)):
        return reason(error)
    return f"{type(error).__name__}: {first_line(error)}"
