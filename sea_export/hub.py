"""Pushing an output to the Hub.

A push is one commit. Everything large is uploaded before it, so that a branch shows all of an output or nothing of it,
and what was uploaded before a push broke off is not sent again. The token is huggingface_hub's affair: it is read where
`hf auth login` keeps it, or from HF_TOKEN, and never passes through here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.digest import file_digest
from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.export.adapter_plan import ADAPTER_CONFIG
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.export.output import read_json
from sea_export.model_card import CARD

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Destination", "Pushed", "check_published_base", "open_destination", "push"]

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


@dataclass(frozen=True)
class Pushed:
    """What a push has come to.

    Attributes:
        destination: where it went.
        url: the page of the commit, or of the pull request if one was opened.
        revision: the branch or the pull request, for `from_pretrained`.
        changed: False if the branch held the very same files before.
    """

    destination: Destination
    url: str
    revision: str
    changed: bool


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

    with _explained(repo_id):
        api = _api()
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


def push(
    output: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Pushed:
    """Pushes an output to the Hub in one commit, once its files have been found to be those of its manifest.

    Args:
        output: a checkpoint that sea-export wrote.
        repo_id: see `open_destination`.
        public: see `open_destination`.
        revision: see `open_destination`.
        create_pr: whether to open a pull request instead of changing the main branch.
        announce: told what is to be known about the base, and about files that are not pushed, a line at a time.

    Raises:
        InputError: the output is not as it was written, or could not be loaded by others; see also `open_destination`.
        SeaExportError: the Hub or the connection failed: the same push again goes on with what is missing.
    """
    output = Path(output)
    if create_pr and revision is not None:
        raise InputError("a pull request is opened against the main branch: leave out --revision, or --create-pr")
    manifest = read_manifest(output)
    if manifest["format"] == "adapter":
        check_published_base(read_json(output / ADAPTER_CONFIG)["base_model_name_or_path"])
    digests = _checked_digests(output, manifest)
    destination = open_destination(repo_id, public=public, revision=revision)
    api = _api()
    with _explained(destination.repo_id):
        for remark in (*_unlisted(output, digests), *_base_remarks(api, manifest, private=destination.private)):
            if announce is not None:
                announce(remark)
        commit = _commit(api, destination, output, digests, manifest, create_pr=create_pr)
        missing = digests.keys() - set(api.list_repo_files(destination.repo_id, revision=commit.oid))
    if missing:
        raise SeaExportError(
            f"a .gitignore in {destination.repo_id} has kept out {', '.join(sorted(missing))}: remove it and push again"
        )
    return Pushed(
        destination,
        url=commit.pr_url or commit.commit_url,
        revision=commit.pr_revision or destination.branch,
        changed=commit.oid != destination.parent,
    )


def check_published_base(location: str | None) -> None:
    """Refuses to publish an adapter whose base others could not find.

    Args:
        location: what the adapter names as its base.

    Raises:
        InputError: it is a path on this machine.
    """
    if location is not None and Path(location).is_absolute():
        raise InputError(
            f"the adapter names its base by a path of this machine ({location}), where nobody else finds it: make it "
            "with the base's Hub id (`sea-export save EDIT OUTPUT --base ORG/NAME --format adapter`)"
        )


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="sea-export", library_version=version("sea-export"))


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
        earlier = json.loads(Path(api.hf_hub_download(there.id, MANIFEST, revision=there.sha)).read_bytes())
        return frozenset(held & {*earlier["files"]})
    if others := sorted(held - _FILES_OF_A_NEW_REPOSITORY):
        raise InputError(
            f"{there.id} holds other files than sea-export's ({', '.join(others[:3])}{', …' * (len(others) > 3)}): "
            "choose another repository, or a new branch of this one with `sea-export push --revision NAME`"
        )
    return frozenset()


def _checked_digests(output: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file to push, found to be what the manifest says, by path."""
    listed: dict[str, str] = manifest["files"]
    wrong = [file for file in listed if not (output / file).is_file() or file_digest(output / file) != listed[file]]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)} of {output} missing or not as {MANIFEST} says: push what was verified, and make it "
            "anew if need be"
        )
    return {**listed, MANIFEST: file_digest(output / MANIFEST)}


def _commit(
    api: HfApi,
    destination: Destination,
    output: Path,
    digests: Mapping[str, str],
    manifest: Mapping[str, Any],
    *,
    create_pr: bool,
) -> CommitInfo:
    """Uploads the files, and then makes them visible at once."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(file, output / file) for file in digests]
    deletions = [CommitOperationDelete(file) for file in sorted(destination.leftovers - digests.keys())]
    api.preupload_lfs_files(
        destination.repo_id,
        additions,
        revision=destination.branch,
        create_pr=create_pr,
        free_memory=False,
    )
    # What has gone up must be what was checked, even if a file was changed in between.
    if any(addition.upload_info.sha256.hex() != digests[addition.path_in_repo] for addition in additions):
        raise SeaExportError(f"{output} was changed while it was pushed: nothing was committed")
    return api.create_commit(
        destination.repo_id,
        [*additions, *deletions],
        commit_message=f"Push {_title(manifest)}",
        commit_description=_description(manifest),
        revision=destination.branch,
        create_pr=create_pr,
        parent_commit=destination.parent,
    )


def _unlisted(output: Path, digests: Mapping[str, str]) -> Iterator[str]:
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    if others := sorted(files - digests.keys()):
        yield f"Not pushed, because {MANIFEST} does not name them: {', '.join(others)}"


def _base_remarks(api: HfApi, manifest: Mapping[str, Any], *, private: bool) -> Iterator[str]:
    """What readers of the repository will find, or should not find, because of its base."""
    from huggingface_hub import errors

    base = manifest["base"]["name"]
    if "/" not in base:
        return
    try:
        found = api.model_info(base)
    except errors.RepositoryNotFoundError:
        yield f"Note: the base {base} cannot be found on the Hub with this token."
        return
    kept = "private" if found.private else "gated" if found.gated else None
    if kept is not None and manifest["format"] == "adapter":
        yield f"Note: the base {base} is {kept}: only those who have access to it can load the adapter."
    elif kept is not None and not private:
        yield f"Warning: the base {base} is {kept}, and this makes weights made from it public."


def _title(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['base']['name'].rpartition('/')[2]} with a spectral edit ({manifest['format']})"


def _description(manifest: Mapping[str, Any]) -> str:
    base = manifest["base"]
    revision = f" at revision {base['revision']}" if base["revision"] else ""
    targets = ", ".join(layer["target"] for layer in manifest["layers"])
    verified = "Verified" if manifest["verification"] else "Not verified"
    return (
        f"Base: {base['name']}{revision}. Edited: {targets}. {verified}, by sea-export "
        f"{manifest['versions']['sea-export']}; {MANIFEST} has every option and figure."
    )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Says what went wrong, and what to do about it."""
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
            raise SeaExportError(
                f"The Hub is asked too much of ({first_line(error)}). {again} Wait a while."
            ) from error
        raise SeaExportError(f"The Hub failed ({first_line(error)}). {again}") from error
    except (OSError, errors.HTTPError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        assert isinstance(cause, Exception)
        raise SeaExportError(f"Pushing to {repo_id} broke off ({first_line(cause).rstrip('.')}). {again}") from error
