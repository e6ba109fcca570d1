"""Pushing an output, as `push` and `fit-and-save --push` do it, and what is printed about it."""

from __future__ import annotations

from pathlib import Path

from sea_export.cli.progress import saving_progress
from sea_export.cli.terminal import console
from sea_export.cli.upload_progress import upload_progress
from sea_export.errors import SeaExportError
from sea_export.export.manifest import further_arguments, read_manifest
from sea_export.hub.push import Pushed, push_files

__all__ = ["push_output", "push_saved"]


def push_output(
    output: Path, repo_id: str, *, public: bool, revision: str | None = None, create_pr: bool = False
) -> Pushed:
    """Pushes an output, and prints where it is and how it is loaded from there."""

    def announce(remark: str) -> None:
        console.print(remark, soft_wrap=True)

    pushed = push_files(
        *(output, repo_id),
        public=public,
        revision=revision,
        create_pr=create_pr,
        announce=announce,
        progress=saving_progress,
        uploading=upload_progress,
    )
    there = pushed.destination
    visibility = "private" if there.private else "public"
    if not pushed.changed:
        console.print(f"{there.repo_id} ({visibility}) holds these files already.", soft_wrap=True)
    else:
        what = "Opened the pull request" if create_pr else "Pushed in the commit"
        console.print(f"{what} {pushed.url} ({visibility}). Load it with", soft_wrap=True)
    named = f', revision="{pushed.revision}"' if pushed.revision != "main" else ""
    arguments = further_arguments(read_manifest(output))
    console.print(f'  AutoModelForCausalLM.from_pretrained("{there.repo_id}"{named}{arguments})', soft_wrap=True)
    return pushed


def push_saved(output: Path, repo_id: str, *, public: bool) -> Pushed:
    """Pushes an output that was just saved. If that fails, the error says how to push it later."""
    try:
        return push_output(output, repo_id, public=public)
    except SeaExportError as error:
        again = f"sea-export push {output} {repo_id}{' --public' if public else ''}"
        raise SeaExportError(
            f"{output}: it is complete, but it was not pushed. Push it with `{again}`. The reason: {error}"
        ) from error
