"""The verdicts of a judge, in a file to which each is appended when it is known."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sea_export.errors import InputError, reason
from sea_export.evaluation.judge import JudgeRequest
from sea_export.files.reading import parse_json

__all__ = ["VerdictFile"]


_BEGINNING = b'{"key": "'
"""Of every line."""


class VerdictFile:
    """The verdicts of one judge, by a digest of its identity and of what it was asked, the answer included.

    A file may hold verdicts of several judges. What a run that was stopped has written of its last line is removed.
    """

    def __init__(self, judge: str, identity: str, file: Path | None) -> None:
        """Reads the file.

        Args:
            judge: the name of the judge, which the file tells.
            identity: what tells it from other judges, which the file does not tell.
            file: the JSONL file; None to keep verdicts in memory only.

        Raises:
            InputError: the file cannot be read, or has other lines.
        """
        self.judge = judge
        self._identity = identity
        self._file = file
        self._verdicts: dict[str, bool] = {}
        if file is not None and file.exists():
            self._read(file)

    def get(self, request: JudgeRequest) -> bool | None:
        """The verdict; None if there is none yet."""
        return self._verdicts.get(self._key(request))

    def add(self, request: JudgeRequest, verdict: bool) -> None:
        """Keeps a verdict, on the disk too.

        Raises:
            InputError: the file cannot be written.
        """
        key = self._key(request)
        self._verdicts[key] = verdict
        if self._file is None:
            return
        line = {
            "key": key,
            "judge": self.judge,
            "criterion": request.criterion,
            "question": request.question,
            "answer": request.answer,
            "verdict": verdict,
        }
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"{self._file}: it cannot be written ({reason(error)}). Choose another file.") from error

    def _key(self, request: JudgeRequest) -> str:
        return hashlib.sha256(json.dumps([self._identity, request.prompt]).encode()).hexdigest()

    def _read(self, file: Path) -> None:
        try:
            content = file.read_bytes()
            complete, rest = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        except OSError as error:
            raise InputError(f"{file}: it cannot be read ({reason(error)}). Choose another.") from error
        for row, line in enumerate(complete.split(b"\n")[:-1], start=1):
            key, verdict = _verdict_of(line)
            if not isinstance(key, str) or not isinstance(verdict, bool):
                raise InputError(f"{file}, row {row}: it is no verdict of a judge. Give a file of --judge-cache.")
            self._verdicts[key] = verdict
        if rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
            raise InputError(f"{file}: its end is no verdict of a judge. Give a file of --judge-cache.")
        if rest:
            os.truncate(file, len(complete))


def _verdict_of(line: bytes) -> tuple[Any, Any]:
    try:
        found = parse_json(line)
    except ValueError:
        return None, None
    return (found.get("key"), found.get("verdict")) if isinstance(found, dict) else (None, None)
