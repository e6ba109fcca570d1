"""Pushing an output to the Hub.

A push is one commit. Large files are uploaded before it. A branch therefore shows all of an output or nothing of it,
and after a push that broke off, the uploaded files are not sent again. Only huggingface_hub sees the token: it reads it
where `hf auth login` keeps it, or from HF_TOKEN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.capture.progress_callback import Progress, ProgressCallback, no_progress, progress_of
from sea_export.cards.description import check_describable, update_description
from sea_export.errors import InputError, SeaExportError
from sea_export.export.formats import ExportFormat, export_format
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.files.digests import file_digest
from sea_export.hub.destination import Destination, hub_client, open_destination
from sea_export.model.hub_errors import hub_errors_explained

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

    from sea_export.model.base import Base
    from sea_export.saving import SaveResult

__all__ = ["Pushed", "SavedAndPushed", "check_published_base", "prepare_push", "push", "push_files"]

_BYTES_AT_ONCE = 1_000_000_000
"""About how much is uploaded before the progress is told again."""


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        destination: where it went.
        url: the page of the commit, or of the pull request if one was opened.
        revision: the branch or the pull request, for `from_pretrained`.
        changed: False if the branch held the same files before.
    """

    destination: Destination
    url: str
    revision: str
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        where = {name: getattr(self.destination, name) for name in ("repo_id", "branch", "private")}
        return {**where, "url": self.url, "revision": self.revision, "changed": self.changed}


@dataclass(frozen=True)
class SavedAndPushed:
    """An output that was saved, and its push; None if it was not pushed."""

    saved: SaveResult
    pushed: Pushed | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {**self.saved.to_dict(), "pushed": None if self.pushed is None else self.pushed.to_dict()}


def push(
    output: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
) -> Pushed:
    """Pushes an output to the Hub in one commit. Before that, its files are compared with its manifest.

    Args:
        output: a checkpoint that sea-export wrote.
        repo_id: a Hub id. Without an organization it belongs to the user. The repository is made if it is missing.
        public: whether everybody may see a new repository, and whether a public one may be pushed to.
        revision: the branch, which is made if it is missing; None for the main branch.
        create_pr: whether to open a pull request instead of changing the main branch.
        announce: told facts about the base, and about files that are not pushed, one line at a time.
        progress: told a stage, how much of it is done, and how much there is to do. huggingface_hub shows bars of its
            own, unless they are disabled there.

    Raises:
        InputError: the output is not as it was written, or others could not load it; there is no token, it may not
            write, or the branch holds files that sea-export did not push.
        SeaExportError: the Hub or the connection failed. The same push again continues with what is missing.
    """
    shown = progress_of(progress)
    return push_files(
        *(Path(output), repo_id),
        public=public,
        revision=revision,
        create_pr=create_pr,
        announce=announce,
        progress=shown,
        uploading=shown,
    )


def push_files(
    output: Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: Progress = no_progress,
    uploading: Progress = no_progress,
) -> Pushed:
    """Like `push`, with progress as a command shows it.

    Args:
        output: see `push`.
        repo_id: see `push`.
        public: see `push`.
        revision: see `push`.
        create_pr: see `push`.
        announce: see `push`.
        progress: shows the progress of each stage but the upload. It is given the stage, and its bytes, or 0.
        uploading: shows the progress of the upload, during which huggingface_hub shows bars of its own.

    Raises:
        InputError: see `push`.
        SeaExportError: see `push`.
    """
    if create_pr and revision is not None:
        raise InputError(
            "--create-pr: a pull request is for the main branch, and --revision names another. Leave one of them out."
        )
    manifest = read_manifest(output)
    check_describable(manifest, str(output / MANIFEST), "Export the edit again.")
    check_published_base(export_format(manifest["format"]).base_of(output))
    digests = _checked_digests(output, manifest, progress)
    destination = open_destination(repo_id, public=public, revision=revision)
    if manifest.get("repository") != destination.repo_id:  # the code in the model card loads from there
        update_description(output, {"repository": destination.repo_id})
        manifest = read_manifest(output)
        digests = {**manifest["files"], MANIFEST: file_digest(output / MANIFEST)}
    api = hub_client()
    with hub_errors_explained(destination.repo_id, pushing=True):
        for remark in (*_unlisted(output, digests), *_base_remarks(api, manifest, private=destination.private)):
            if announce is not None:
                announce(remark)
        additions = _uploaded(api, destination, output, digests, uploading, create_pr=create_pr)
        with progress("Making the commit", 0):
            commit = _commit(api, destination, additions, manifest, create_pr=create_pr)
        missing = digests.keys() - set(api.list_repo_files(destination.repo_id, revision=commit.oid))
    if missing:
        raise SeaExportError(
            f"{destination.repo_id}: its .gitignore has left out {', '.join(sorted(missing))}. Remove the .gitignore, "
            "and push again."
        )
    return Pushed(
        destination,
        url=commit.pr_url or commit.commit_url,
        revision=commit.pr_revision or destination.branch,
        changed=commit.oid != destination.parent,
    )


def prepare_push(base: Base, format: ExportFormat[Any, Any], repo_id: str, *, public: bool) -> None:
    """Finds out, before an output is made, whether it may be pushed. The repository is made if it is missing.

    Args:
        base: the base of the output.
        format: the format of the output.
        repo_id: see `push`.
        public: see `push`.

    Raises:
        InputError: see `push`.
        SeaExportError: see `push`.
    """
    if format.names_location:
        check_published_base(base.location)
    open_destination(repo_id, public=public)


def check_published_base(location: str | None) -> None:
    """Refuses to publish an adapter whose base others could not find.

    Args:
        location: what the adapter names as its base; None for an output that needs no base.

    Raises:
        InputError: it is a path on this machine.
    """
    if location is not None and Path(location).is_absolute():
        raise InputError(
            f"--base: the adapter names its base by a path of this machine ({location}), which others do not have. "
            "Make it with the Hub id of the base (`sea-export save EDIT OUTPUT --base ORG/NAME --format adapter`)."
        )


def _checked_digests(output: Path, manifest: Mapping[str, Any], progress: Progress) -> dict[str, str]:
    """SHA-256 of every file to push, by path. They are those of the manifest."""
    listed: dict[str, str] = manifest["files"]
    there = {file: (output / file).stat().st_size for file in listed if (output / file).is_file()}
    wrong = sorted(listed.keys() - there.keys())
    with progress("Checking the files", sum(there.values())) as advance:
        for file, size in there.items():
            if file_digest(output / file) != listed[file]:
                wrong.append(file)
            advance(size)
    if wrong:
        raise InputError(
            f"{output}: its {', '.join(wrong)} is missing or not as {MANIFEST} says. Push what was verified, or make "
            "the output again."
        )
    return {**listed, MANIFEST: file_digest(output / MANIFEST)}


def _uploaded(
    api: HfApi,
    destination: Destination,
    output: Path,
    digests: Mapping[str, str],
    uploading: Progress,
    *,
    create_pr: bool,
) -> list[CommitOperationAdd]:
    """Uploads the large files, which nobody sees yet.

    Returns:
        What a commit adds: these files, and the small ones, which go with it.
    """
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(file, output / file) for file in digests]
    total = sum(addition.upload_info.size for addition in additions)
    with uploading(f"Uploading {len(additions)} files", total) as advance:
        for group in _groups(additions):
            api.preupload_lfs_files(
                destination.repo_id,
                group,
                revision=destination.branch,
                create_pr=create_pr,
                free_memory=False,
            )
            advance(sum(addition.upload_info.size for addition in group))
    # What was uploaded must be what was checked, even if a file was changed in between.
    for addition in additions:
        if addition.upload_info.sha256.hex() != digests[addition.path_in_repo]:
            file = output / addition.path_in_repo
            raise SeaExportError(f"{file}: it was changed during the push, and nothing was committed. Push again.")
    return additions


def _groups(additions: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    """The files in groups, each of which is uploaded at once."""
    group: list[CommitOperationAdd] = []
    for addition in additions:
        group.append(addition)
        if sum(one.upload_info.size for one in group) >= _BYTES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _commit(
    api: HfApi,
    destination: Destination,
    additions: Sequence[CommitOperationAdd],
    manifest: Mapping[str, Any],
    *,
    create_pr: bool,
) -> CommitInfo:
    """Makes all files visible in one commit, and removes those of an earlier push."""
    from huggingface_hub import CommitOperationDelete

    added = {addition.path_in_repo for addition in additions}
    deletions = [CommitOperationDelete(file) for file in sorted(destination.leftovers - added)]
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
        yield f"Not pushed, because {MANIFEST} does not name them: {', '.join(others)}."


def _base_remarks(api: HfApi, manifest: Mapping[str, Any], *, private: bool) -> Iterator[str]:
    """What readers of the repository cannot load, or should not see, because of its base."""
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
    verified = "Verified" if manifest.get("verification") else "Not verified"
    version = manifest["versions"].get("sea-export", "of an unknown version")
    return (
        f"Base: {base['name']}{revision}. Edited: {targets}. {verified}, by sea-export {version}; {MANIFEST} has every "
        "option and measurement."
    )
