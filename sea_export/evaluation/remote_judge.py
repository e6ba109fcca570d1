"""A judge behind an OpenAI-compatible address."""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from sea_export.errors import InputError, first_line
from sea_export.evaluation.judge import JudgeUnavailable, read_verdict
from sea_export.files.reading import parse_json

__all__ = ["RemoteJudge"]

_REMINDER = "Reply with one word, yes or no."
# Requests that one answer may make wrong, by its length or its words. Other requests can still succeed.
_REFUSED_ANSWER = (400, 413, 422)
# Refusals that end by themselves: timeout, conflict, too early, too many requests.
_TRANSIENT = (408, 409, 425, 429)
_LONGEST_WAIT = 300.0
_FAILURES_IN_A_ROW = 3
_LARGEST_REPLY = 2**24
_BLOCK = 2**16


class _Failed(Exception):
    """A prompt got no reply."""


@dataclass(frozen=True)
class RemoteJudge:
    """Asks one prompt after the other, again if the server or the connection fails."""

    name: str
    """The name of the model there."""
    url: str
    """The address that `/chat/completions` follows."""
    key: str | None = field(default=None, repr=False)
    """Sent to that address alone, and never shown."""
    timeout: float = 120.0
    """The longest time for one request, in seconds."""
    attempts: int = 6
    """How often one request is sent before it counts as failed."""
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
    """The time in seconds since 1970."""

    def __post_init__(self) -> None:
        # A library would quote such a key in its error.
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise InputError("SEA_EXPORT_JUDGE_KEY: the key has characters that no key has. Set it again.")

    def verdicts(self, prompts: Sequence[str]) -> Iterator[bool | None]:
        """See `sea_export.evaluation.judge.Judge`. A prompt that gets no reply has no verdict.

        Raises:
            JudgeUnavailable: three prompts in a row got no reply, or the server refuses the key, the model or the
                address.
        """
        failures = 0
        for prompt in prompts:
            try:
                verdict = self._verdict(prompt)
                failures = 0
            except _Failed as error:
                verdict = None
                failures += 1
                if failures == _FAILURES_IN_A_ROW:
                    raise JudgeUnavailable(
                        f"--judge-url: {failures} requests in a row failed, the last with: {first_line(error)}. Run "
                        "the same command again when the judge works."
                    ) from error
            yield verdict

    def _verdict(self, prompt: str) -> bool | None:
        messages = [{"role": "user", "content": prompt}]
        reply = self._reply(messages)
        verdict = read_verdict(reply)
        if verdict is None:
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": _REMINDER}]
            verdict = read_verdict(self._reply(messages))
        return verdict

    def _reply(self, messages: Sequence[dict[str, str]]) -> str:
        """The reply of the model, after as many attempts as it takes, up to `attempts`."""
        reason = ""
        for attempt in range(self.attempts):
            wait = 2.0**attempt
            try:
                return self._post(messages)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"status {error.code}"
                    if error.code in _REFUSED_ANSWER:
                        raise _Failed(reason) from error
                    if error.code not in _TRANSIENT and error.code < 500:
                        raise JudgeUnavailable(
                            f"--judge-url: {self.url} refuses the request with status {error.code}. Check the "
                            "address, --judge, and the key in SEA_EXPORT_JUDGE_KEY."
                        ) from error
                    wait = self._asked_wait(error.headers.get("Retry-After"), wait)
            # The connection failed or stalled, or what came is no reply.
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = first_line(error)
            if attempt + 1 < self.attempts:
                self.sleep(min(wait, _LONGEST_WAIT))
        raise _Failed(reason)

    def _post(self, messages: Sequence[dict[str, str]]) -> str:
        body = {"model": self.name, "messages": list(messages), "temperature": 0, "seed": 0}
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "sea-export"},
        )
        if self.key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        deadline = self.now() + self.timeout
        content = b""
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            while block := response.read1(_BLOCK):
                content += block
                if self.now() > deadline:
                    raise TimeoutError("timed out")
                if len(content) > _LARGEST_REPLY:
                    raise ValueError("the reply is too long")
        return _text_of(parse_json(content))

    def _asked_wait(self, retry_after: str | None, otherwise: float) -> float:
        """Seconds to wait, as the header Retry-After says in seconds or as a date."""
        if retry_after is None:
            return otherwise
        try:
            seconds = float(retry_after)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(retry_after).timestamp() - self.now()
            except ValueError:
                return otherwise
        return otherwise if math.isnan(seconds) else max(seconds, 0.0)


def _text_of(completion: Any) -> str:
    """The text of a chat completion."""
    try:
        text = completion["choices"][0]["message"]["content"]
    except (TypeError, LookupError) as error:
        raise ValueError("what it answers is no chat completion") from error
    return text if isinstance(text, str) else ""
