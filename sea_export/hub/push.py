"""Pushing an output to the Hub.

A push is one commit. Everything large is uploaded before it, so that a branch shows all of an output or nothing of it,
and what was uploaded before a push broke off is not sent again. The token is huggingface_hub's affair: it is read where
`hf auth login` keeps it, or from HF_TOKEN, and never passes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.cards.description import update_description
from sea_export.errors import InputError, SeaExportError
from sea_export.export.adapter.adapter_plan import ADAPTER_CONFIG
from sea_export.export.formats import export_format
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.files.digests import file_digest
from sea_export.files.reading import read_json
from sea_export.hub.destination import Destination, explained, hub_client, open_destination

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

__all__ = ["Pushed", "check_published_base", "push"]


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
        repo_id: a Hub id; without an organization it is the user's. The repository is made if there is none.
        public: whether everybody may see a new repository, and whether a public one may be pushed to.
        revision: the branch, which is made if there is none; None for the main branch.
        create_pr: whether to open a pull request instead of changing the main branch.
        announce: told what is to be known about the base, and about files that are not pushed, a line at a time.

    Raises:
        InputError: the output is not as it was written, or could not be loaded by others; there is no token, it gives
            no right to write, or the branch holds what sea-export has not pushed.
        SeaExportError: the Hub or the connection failed: the same push again goes on with what is missing.
    """
    output = Path(output)
    if create_pr and revision is not None:
        raise InputError("a pull request is opened against the main branch: leave out --revision, or --create-pr")
    manifest = read_manifest(output)
    if export_format(manifest["format"]).loads_beside_base:
        check_published_base(read_json(output / ADAPTER_CONFIG)["base_model_name_or_path"])
    digests = _checked_digests(output, manifest)
    destination = open_destination(repo_id, public=public, revision=revision)
    if manifest.get("repository") != destination.repo_id:  # the card's snippets load from there from now on
        update_description(output, {"repository": destination.repo_id})
        manifest = read_manifest(output)
        digests = {**manifest["files"], MANIFEST: file_digest(output / MANIFEST)}
    api = hub_client()
    with explained(destination.repo_id):
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
    if kept is not None and export_format(manifest["format"]).loads_beside_base:
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
