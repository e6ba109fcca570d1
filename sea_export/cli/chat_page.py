"""A chat in a web page of this machine."""

from __future__ import annotations

from sea_export.chat.chat_session import ChatSession
from sea_export.chat.page_server import PageServer
from sea_export.cli.stopping import Stopped, first_interrupt_kept
from sea_export.cli.terminal import console

__all__ = ["show_page"]


def show_page(session: ChatSession, port: int | None) -> None:
    """Prints the address of the page, and serves it until Ctrl-C.

    No browser is started: the address holds the token, and other users of a machine see the arguments of its programs.

    Args:
        session: the chat.
        port: the port of the page; None for one that is free.

    Raises:
        InputError: the port cannot be used.
    """
    server = PageServer(session, port)
    try:  # Ctrl-C may come as soon as the address is seen
        with first_interrupt_kept() as interrupted:  # a line is printed again if that interrupts its printing
            console.print("Open this address in a browser of this machine. Ctrl-C ends the chat.")
            console.print(server.address.url, soft_wrap=True)
        if not interrupted():
            server.serve()
    except Stopped as stopped:
        if not stopped.by_interrupt:
            raise
