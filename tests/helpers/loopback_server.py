"""An HTTP server on this machine that counts what it is asked, and can be told to fail."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_BLOCK = 1024


@dataclass
class Failure:
    """What is to go wrong with a request whose `METHOD /path` matches."""

    pattern: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the answer's body after which the connection is closed."""
    pause: float = 0
    """Seconds to wait before each block of the answer's body."""
    times: int = 1


@dataclass
class Request:
    """What was asked, with which token, and how many bytes of bodies that took."""

    line: str
    host: str
    token: str
    query: Mapping[str, list[str]]
    body: bytes = b""
    received: int = 0
    sent: int = 0

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What is sent, or of which a part is sent if a part was asked for."""

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class LoopbackServer:
    """A server whose `answer` a subclass defines."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.allowance: int | None = None
        """How many more bytes of bodies are received before the network is down; None for no end."""
        self.waits: list[float] = []
        """Seconds that a client would have waited before it tried again."""
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}/storage"

    def answer(self, request: Request) -> Answer:
        raise NotImplementedError

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def fail(self, pattern: str, status: int | None = None, **how: Any) -> None:
        """Makes requests fail: see Failure."""
        self._failures.append(Failure(pattern, status, **how))

    def reset(self) -> None:
        """Works again, and has counted nothing."""
        self._failures, self.requests, self.allowance = [], [], None
        self.waits.clear()

    @property
    def is_down(self) -> bool:
        return self.allowance is not None and self.allowance <= 0

    @property
    def received(self) -> int:
        """Bytes of bodies received since the last reset."""
        return sum(request.received for request in self.requests)

    def lines(self, pattern: str) -> list[str]:
        """The `METHOD /path` of the requests that match."""
        return [request.line for request in self.requests if re.search(pattern, request.line)]

    def _respond(self, request: Request) -> tuple[Answer, Failure | None]:
        with self._lock:
            for failure in self._failures:
                if failure.times > 0 and re.search(failure.pattern, request.line):
                    failure.times -= 1
                    if failure.status is not None:
                        message = json.dumps({"error": "the test has this fail"}).encode()
                        return Answer(message, failure.status, failure.headers), failure
                    return self.answer(request), failure
            return self.answer(request), None

    def _count(self, request: Request, size: int) -> None:
        with self._lock:
            request.received += size
            if self.allowance is not None:
                self.allowance -= size


class _Cut(Exception):
    """The connection is gone."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: LoopbackServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return not self.owner.is_down


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *values: object) -> None:
        pass

    def _serve(self) -> None:
        owner, address = self.server.owner, urlsplit(self.path)
        host = self.headers["Host"].partition(":")[0]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        request = Request(f"{self.command} {address.path}", host, token, parse_qs(address.query))
        try:
            if owner.is_down:
                raise _Cut
            owner.requests.append(request)
            request.body = self._read_body(request)
            answer, failure = owner._respond(request)
            self._send(answer, request, failure)
        except (_Cut, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _read_body(self, request: Request) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)), request)
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self._read(size, request)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _read(self, size: int, request: Request) -> bytes:
        content = b""
        while len(content) < size:
            block = self.rfile.read(min(size - len(content), _BLOCK))
            content += block
            self.server.owner._count(request, len(block))
            if not block or self.server.owner.is_down:
                raise _Cut
        return content

    def _send(self, answer: Answer, request: Request, failure: Failure | None) -> None:
        content, headers, status = answer.content, dict(answer.headers), answer.status
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) and status == 200:
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        end = len(content) if failure is None or failure.cut_after is None else failure.cut_after
        for start in range(0, 0 if self.command == "HEAD" else end, _BLOCK):
            time.sleep(0 if failure is None else failure.pause)
            block = content[start : min(start + _BLOCK, end)]
            self.wfile.write(block)
            request.sent += len(block)
        if end < len(content):
            raise _Cut
