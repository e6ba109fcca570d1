"""`sea-export chat`: a base and its edit answer side by side."""

from __future__ import annotations

from contextlib import ExitStack

import click

from sea_export.chat.chat_options import ChatOptions
from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.reporting import reported
from sea_export.model.run_options import RunOptions


@click.command("chat")
@click.argument("edit", shell_complete=complete_files)
@options(chat=ChatOptions, run=RunOptions)
@reported
def command(edit: str, chat: ChatOptions, run: RunOptions) -> None:
    """Talk with a base and with its EDIT at once, and try strengths and layers of the edit.

    EDIT is the directory of an edit or of an output of sea-export, or the Hub id of an output (REPO_ID or
    REPO_ID@REVISION). One model is in memory, and the edit is applied to it at run time. Both answer greedily, and each
    remembers its own answers. /help lists what can be typed besides prompts; --web shows the same in a web page.

    Where standard input is no terminal, each of its lines is a prompt or a command, and the first error ends the chat.
    """
    from sea_export.chat.chat_source import find_chat_source

    source = find_chat_source(edit, chat, run)

    # Nothing before this needs torch, which takes seconds to import.
    from sea_export.chat.chat_session import open_chat
    from sea_export.cli.opening import begin_computing
    from sea_export.cli.terminal import waiting

    begin_computing(run.threads)
    with ExitStack() as stack:
        with waiting(f"Loading {source.base}"):
            session = stack.enter_context(open_chat(source, chat, run))
        if chat.web:
            from sea_export.cli.chat_page import show_page

            show_page(session, chat.port)
        else:
            from sea_export.cli.chat_terminal import talk

            talk(session)
