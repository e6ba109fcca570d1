"""Which requests a local page answers: those of its own address, with its token, from itself.

Other users and other pages of the same machine can reach a port of it. Three things keep them out. The token stands in
the address, and is compared in constant time. The Host must be the address itself, so that no name of somebody else
that resolves to this machine (DNS rebinding) reaches it. What changes something must come from the page (Origin).
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from sea_export.files.reading import parse_json

__all__ = ["LARGEST_BODY", "PageAddress", "Refused", "parsed"]

LARGEST_BODY = 1_000_000
"""The most bytes that a request may have."""


class Refused(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class PageAddress:
    """The address of a page on this machine.

    Attributes:
        port: the port.
        token: what its path begins with, which nobody can guess.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def host(self) -> str:
        """The only Host that requests may name."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address as a user opens it."""
        return f"http://{self.host}/{self.token}/"

    def part(self, path: str, headers: Message) -> str:
        """Which part of the page a request asks for: the path behind the token.

        Args:
            path: the path of the request.
            headers: its headers.

        Raises:
            Refused: it is not a request to this address, or lacks the token.
        """
        if headers.get_all("Host") != [self.host]:
            raise Refused(403, "The request names another host than this page.")
        token, _, part = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise Refused(404, "There is nothing here. Open the address that sea-export has printed.")
        return part

    def body_length(self, headers: Message) -> int:
        """The length of the body of a request that changes something, in bytes.

        Args:
            headers: its headers.

        Raises:
            Refused: the request comes from another page, is no JSON, or is too long.
        """
        if headers.get_all("Origin") != [f"http://{self.host}"]:
            raise Refused(403, "The request comes from another page.")
        if headers.get_content_type() != "application/json":
            raise Refused(415, "The request is no JSON.")
        length = headers.get("Content-Length", "")
        if "Transfer-Encoding" in headers or not (length.isascii() and length.isdigit()):
            raise Refused(411, "The request does not say how long it is.")
        if len(length) > len(str(LARGEST_BODY)) or int(length) > LARGEST_BODY:
            raise Refused(413, "The request is too long.")
        return int(length)


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Args:
        body: the body.

    Raises:
        Refused: it is none.
    """
    try:
        value = parse_json(body)
    except ValueError as error:
        raise Refused(400, "The request is no JSON.") from error
    if not isinstance(value, dict):
        raise Refused(400, "The request is no JSON object.")
    return value
