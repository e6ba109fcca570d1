"""The server of the page: bound to this machine alone, for one user, with one computation at a time."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any

from sea_export.chat.chat_session import ChatSession
from sea_export.chat.chat_words import chat_words
from sea_export.chat.page_actions import ACTIONS, page_state
from sea_export.chat.page_requests import PageAddress, Refused, parsed
from sea_export.errors import InputError, SeaExportError, first_line, reason

__all__ = ["PageServer"]

logger = logging.getLogger(__name__)

_FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_JSON, _EVENTS, _TEXT = "application/json", "application/x-ndjson", "text/plain; charset=utf-8"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_SECONDS_OF_A_REQUEST = 30
_BUSY = "Another answer or output is being made. Wait for it, or stop it."


class _Gone(Exception):
    """The page waits for no answer any more."""


class PageServer:
    """Serves the page of a chat on 127.0.0.1."""

    def __init__(self, session: ChatSession, port: int | None) -> None:
        """Takes the port. Requests are answered by `serve`.

        Args:
            session: the chat.
            port: the port; None for one that is free.

        Raises:
            InputError: the port is taken, or may not be.
        """
        try:
            self._server = _Server(("127.0.0.1", port or 0), _Handler)
        except OSError as error:
            raise InputError(f"--port: {port} cannot be used ({reason(error)}). Choose another one.") from error
        self.address = PageAddress(self._server.server_port)
        self._session = session
        self._computing = threading.Lock()
        self._stopping = threading.Event()
        self._server.page = self

    def serve(self) -> None:
        """Answers requests until an exception ends it. What is computed then is stopped."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._stopping.set()
            with self._computing:
                self._server.server_close()

    def close(self) -> None:
        """Ends `serve`, from another thread."""
        self._server.shutdown()

    @property
    def state(self) -> dict[str, Any]:
        """What the page shows."""
        return page_state(self._session)

    def stop(self) -> None:
        """Ends the answer that is being made, if there is one."""
        self._stopping.set()

    def act(self, name: str, request: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Does what the page asks for.

        Args:
            name: one of `ACTIONS`.
            request: what the page sent.
            tell: sends an event to the page; it raises `_Gone` if the page has gone.

        Raises:
            Refused: another request is being computed, or the request is none of this page.
        """
        if not self._computing.acquire(blocking=False):
            raise Refused(409, _BUSY)
        try:
            self._stopping.clear()

            def told(event: Mapping[str, Any]) -> bool:
                tell(event)
                return not self._stopping.is_set()

            try:
                ACTIONS[name](self._session, request, told)
            except SeaExportError as error:
                tell({"error": chat_words(str(error), "")})
            except OSError as error:
                tell({"error": reason(error)})
        finally:
            self._computing.release()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: PageServer

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # that of HTTPServer asks the network for the name of this machine
        self.server_name, self.server_port = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Errors of a connection that nobody waits for any more are nobody's business."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SECONDS_OF_A_REQUEST
    error_content_type = _TEXT
    error_message_format = "%(message)s\n"

    def version_string(self) -> str:
        return "sea-export"

    def log_message(self, format: str, *values: object) -> None:
        """Requests are not told: their paths hold the token."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, answer: Callable[[str], None]) -> None:
        try:
            answer(self.server.page.address.part(self.path, self.headers))
        except Refused as refused:
            self._send(refused.status, _TEXT, f"{refused}\n".encode())
        except (OSError, _Gone):
            return  # nobody waits for the answer
        except Exception as error:
            logger.error("the page: %s: %s.", type(error).__name__, first_line(error))
            raise

    def _get(self, part: str) -> None:
        if part == "state":
            self._send(200, _JSON, json.dumps(self.server.page.state).encode())
            return
        if part not in _FILES:
            raise Refused(404, "There is nothing here.")
        name, kind = _FILES[part]
        self._send(200, kind, (files("sea_export.data") / "chat_page" / name).read_bytes())

    def _post(self, part: str) -> None:
        page = self.server.page
        body = self.rfile.read(page.address.body_length(self.headers))
        if part == "stop":
            page.stop()
            self._send(200, _JSON, b"{}")
            return
        if part not in ACTIONS:
            raise Refused(404, "There is nothing here.")
        begun = False

        def tell(event: Mapping[str, Any]) -> None:
            nonlocal begun
            try:
                if not begun:
                    self._begin(200, _EVENTS)
                    begun = True
                self.wfile.write(json.dumps(event).encode() + b"\n")
            except OSError as error:
                raise _Gone from error

        page.act(part, parsed(body), tell)

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self._begin(status, kind, {"Content-Length": str(len(content))})
        self.wfile.write(content)

    def _begin(self, status: int, kind: str, further: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **_HEADERS, **(further or {})}.items():
            self.send_header(name, value)
        self.end_headers()
