"""`sea-export push`: an output to the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import visibility_option
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported


@click.command("push")
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("repo_id")
@visibility_option
@click.option("--revision", help="Branch to push to; it is made if there is none. By default the main one.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of changing the main branch.")
@reported
@json_option
def command(output: Path, repo_id: str, public: bool, revision: str | None, create_pr: bool) -> None:
    """Push the checkpoint OUTPUT to the Hub repository REPO_ID, which is made if there is none.

    Its files must be those of its manifest. It becomes one commit, so that nobody sees a half of it; a push that broke
    off goes on with what is missing. The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from sea_export.cli.push_output import push_output

    pushed = push_output(output, repo_id, public=public, revision=revision, create_pr=create_pr)
    give_result("push", pushed)
