"""An OpenAI-compatible server on this machine that judges, and can be told to fail: see `LoopbackServer.fail`."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.helpers.loopback_server import Answer, LoopbackServer, Request

CHAT = "POST /v1/chat/completions"


class LoopbackJudge(LoopbackServer):
    """Its `says` gives the reply to the messages of a request, or the bytes of the whole answer."""

    def __init__(self, says: Callable[[list[str]], str | bytes]) -> None:
        super().__init__()
        self.says = says

    @property
    def url(self) -> str:
        return f"{self.endpoint}/v1"

    @property
    def prompts(self) -> list[str]:
        """The first message of each request, in order."""
        return [request.json()["messages"][0]["content"] for request in self.requests]

    def answer(self, request: Request) -> Answer:
        if request.line != CHAT:
            return Answer(b"there is nothing here", 404)
        reply = self.says([message["content"] for message in request.json()["messages"]])
        if isinstance(reply, bytes):
            return Answer(reply)
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        return Answer(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())
