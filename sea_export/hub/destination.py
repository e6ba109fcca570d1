"""Where a push goes: a branch of a repository on the Hub, made if need be and found to be free for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.export.manifest import MANIFEST
from sea_export.files.reading import read_json
from sea_export.model.checkpoint import CARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Destination", "explained", "hub_client", "open_destination"]

_MAIN = "main"
_ATTRIBUTES = ".gitattributes"
# What the Hub's form for a new repository may put into it.
_FILES_OF_A_NEW_REPOSITORY = frozenset({_ATTRIBUTES, CARD, "LICENSE"})


@dataclass(frozen=True)
class Destination:
    """A branch of a repository that an output may be pushed to.

    Attributes:
        repo_id: its full Hub id.
        branch: the branch.
        private: whether the repository is private.
        parent: the commit that the branch points to: a push is refused once it has moved on.
        leftovers: files there that must not stand beside an output: those of an earlier push, and in a branch that has
            nothing of its own yet all that it began with.
    """

    repo_id: str
    branch: str
    private: bool
    parent: str
    leftovers: frozenset[str]


def open_destination(repo_id: str, *, public: bool = False, revision: str | None = None) -> Destination:
    """Creates the repository and the branch if there are none, and finds out whether they may be pushed to.

    A branch may be if it holds an earlier push of sea-export's, what a new repository holds, or nothing of its own yet.

    Args:
        repo_id: a Hub id; without an organization it is the user's.
        public: whether everybody may see a new repository, and whether a public one may be pushed to.
        revision: the branch; None for the main branch.

    Raises:
        InputError: there is no token, it gives no right to write, or the branch may not be pushed to.
        SeaExportError: the Hub or the connection failed.
    """
    from huggingface_hub import errors

    with explained(repo_id):
        api = hub_client()
        repo_id = _full_name(api, repo_id)
        api.create_repo(repo_id, private=not public, exist_ok=True)
        main = api.model_info(repo_id)
        if not main.private and not public:
            raise InputError(f"{repo_id} is public: say that it is meant with --public, or choose another repository")
        there = main
        if revision not in (None, _MAIN):
            try:
                there = api.model_info(repo_id, revision=revision)
            except errors.RevisionNotFoundError:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
                there = api.model_info(repo_id, revision=revision)
        assert there.sha is not None
        leftovers = _leftovers(api, there, is_own=revision in (None, _MAIN) or there.sha != main.sha)
    return Destination(repo_id, revision or _MAIN, bool(main.private), there.sha, leftovers)


def hub_client() -> HfApi:
    """huggingface_hub's client, which finds the token by itself."""
    from huggingface_hub import HfApi

    return HfApi(library_name="sea-export", library_version=version("sea-export"))


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Says what went wrong while a repository was pushed to, and what to do about it.

    Raises:
        InputError: the token or the name is at fault.
        SeaExportError: the Hub or the connection is.
    """
    from huggingface_hub import errors

    again = "The same push again goes on with what is missing."
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise InputError(f"pushing to {repo_id} needs a token: log in with `hf auth login`, or set HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo_id} is not a Hub id (name or org/name)") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise InputError(
                f"the Hub does not let this token write to {repo_id}: check the name, and whose token it is (`hf auth "
                "whoami`)"
            ) from error
        if status in (409, 412):
            raise SeaExportError(f"{repo_id} was changed by somebody else meanwhile: nothing was committed") from error
        if status == 429:
            raise SeaExportError(f"the Hub is asked for too much: wait a while. {again}") from error
        raise SeaExportError(f"the Hub failed ({first_line(error).rstrip('.')}). {again}") from error
    except (OSError, errors.HTTPError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        assert isinstance(cause, Exception)
        raise SeaExportError(f"pushing to {repo_id} broke off ({first_line(cause).rstrip('.')}). {again}") from error


def _full_name(api: HfApi, repo_id: str) -> str:
    """The Hub id with the user's name, if it has none, of somebody whose token may write."""
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError("the token may read and not write: log in with another one (`hf auth login`)")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _leftovers(api: HfApi, there: ModelInfo, *, is_own: bool) -> frozenset[str]:
    """See `Destination.leftovers`.

    Args:
        api: the client.
        there: the branch.
        is_own: whether the branch has content of its own, and not just what it began with.
    """
    held = {file.rfilename for file in there.siblings or ()} - {_ATTRIBUTES}
    if not is_own:
        return frozenset(held)
    if MANIFEST in held:
        earlier = read_json(Path(api.hf_hub_download(there.id, MANIFEST, revision=there.sha)))
        if not isinstance(earlier, dict) or not isinstance(earlier.get("files"), dict):
            raise InputError(f"{there.id} holds a {MANIFEST} that sea-export did not write: choose another repository")
        return frozenset(held & earlier["files"].keys())
    if others := sorted(held - _FILES_OF_A_NEW_REPOSITORY):
        raise InputError(
            f"{there.id} holds other files than sea-export's ({', '.join(others[:3])}{', …' * (len(others) > 3)}): "
            "choose another repository, or a new branch of this one with `sea-export push --revision NAME`"
        )
    return frozenset()
