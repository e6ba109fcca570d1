"""The destination of a push: a branch of a repository on the Hub. It is made if it is missing, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.export.manifest import MANIFEST
from sea_export.files.reading import read_json
from sea_export.model.checkpoint import CARD
from sea_export.model.hub_errors import hub_errors_explained

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Destination", "hub_client", "open_destination"]

_MAIN = "main"
_ATTRIBUTES = ".gitattributes"
# What the form of the Hub for a new repository may put into it.
_FILES_OF_A_NEW_REPOSITORY = frozenset({_ATTRIBUTES, CARD, "LICENSE"})


@dataclass(frozen=True)
class Destination:
    """A branch of a repository that an output may be pushed to.

    Attributes:
        repo_id: its full Hub id.
        branch: the branch.
        private: whether the repository is private.
        parent: the commit that the branch points to. A push is refused if the branch has moved on.
        leftovers: files that must not stay beside an output: those of an earlier push; and if the branch has no content
            of its own yet, all files that it started with.
    """

    repo_id: str
    branch: str
    private: bool
    parent: str
    leftovers: frozenset[str]


def open_destination(repo_id: str, *, public: bool = False, revision: str | None = None) -> Destination:
    """Makes the repository and the branch if they are missing, and finds out whether they may be pushed to.

    A branch may be pushed to if it holds an earlier push of sea-export, what a new repository holds, or nothing of its
    own yet.

    Args:
        repo_id: a Hub id. Without an organization it belongs to the user.
        public: whether everybody may see a new repository, and whether a public one may be pushed to.
        revision: the branch; None for the main branch.

    Raises:
        InputError: there is no token, it may not write, or the branch may not be pushed to.
        SeaExportError: the Hub or the connection failed.
    """
    from huggingface_hub import errors

    with hub_errors_explained(repo_id, pushing=True):
        api = hub_client()
        repo_id = _full_name(api, repo_id)
        api.create_repo(repo_id, private=not public, exist_ok=True)
        main = api.model_info(repo_id)
        if not main.private and not public:
            raise InputError(f"{repo_id}: it is public. Confirm that with --public, or choose another repository.")
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
    """The client of huggingface_hub. It finds the token itself."""
    from huggingface_hub import HfApi

    return HfApi(library_name="sea-export", library_version=version("sea-export"))


def _full_name(api: HfApi, repo_id: str) -> str:
    """The Hub id, with the name of the user if it has none. The token of the user may write."""
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"{repo_id}: the token may read and not write. Log in with another token (`hf auth login`).")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _leftovers(api: HfApi, there: ModelInfo, *, is_own: bool) -> frozenset[str]:
    """See `Destination.leftovers`.

    Args:
        api: the client.
        there: the branch.
        is_own: whether the branch has content of its own, and not only what it started with.
    """
    held = {file.rfilename for file in there.siblings or ()} - {_ATTRIBUTES}
    if not is_own:
        return frozenset(held)
    if MANIFEST in held:
        earlier = read_json(Path(api.hf_hub_download(there.id, MANIFEST, revision=there.sha)))
        if not isinstance(earlier, dict) or not isinstance(earlier.get("files"), dict):
            raise InputError(
                f"{there.id}: it holds a {MANIFEST} that sea-export did not write. Choose another repository."
            )
        return frozenset(held & earlier["files"].keys())
    if others := sorted(held - _FILES_OF_A_NEW_REPOSITORY):
        raise InputError(
            f"{there.id}: it holds files that sea-export did not push "
            f"({', '.join(others[:3])}{', …' * (len(others) > 3)}). Choose another repository, or a new branch of this "
            "one with `sea-export push --revision NAME`."
        )
    return frozenset()
