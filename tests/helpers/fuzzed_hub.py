"""Answers of the Hub, changed at random, and what must hold of whatever asks it: see `fuzzing`."""

from __future__ import annotations

import atexit
import functools
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import sea_export
from sea_export.errors import InputError, SeaExportError
from sea_export.model.download import download_snapshot
from sea_export.model.header_only import header_only_base
from tests.helpers.changed_files import changed_safetensors, changed_text
from tests.helpers.hub_client import OWNER, connected_to
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_server import Answer, Request
from tests.helpers.template_folders import scratch_folder, template_folder

_REPO = "org/tiny"
_ABOUT_A_MODEL = "GET /api/models/[^/]+/[^/]+(/revision/[^/]+)?"
_FILES = "GET /api/models/.*/tree/.*"
_WEIGHTS = "GET /storage/.*"
_ANYTHING_BUT_FILES = "[A-Z]+ /api/(?!.*/tree/).*"
_PUSHED = f"{OWNER}/edited"


@functools.cache
def _hub() -> LoopbackHub:
    """It serves until this process ends."""
    hub, stack = LoopbackHub(), ExitStack()
    stack.enter_context(hub.serving())
    atexit.register(stack.close)
    hub.add_model(_REPO, template_folder("weights"))
    hub.add_model(_PUSHED, template_folder("output"))
    return hub


def _commit(repo_id: str) -> str:
    return _hub().repositories[repo_id].branches["main"]


@contextmanager
def _answering(question: str, answer: bytes) -> Iterator[None]:
    """A Hub that gives one answer to every request whose `METHOD /path` matches, to a client with an empty cache."""
    hub = _hub()
    real = hub.answer

    def answered(request: Request) -> Answer:
        return Answer(answer) if re.fullmatch(question, request.line) else real(request)

    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as home,
        connected_to(hub, Path(home)),
        pytest.MonkeyPatch.context() as patch,
    ):
        for logger in ("huggingface_hub", "huggingface_hub._tree_cache"):
            patch.setattr(logging.getLogger(logger), "disabled", True)  # it quotes the answer
        patch.setattr(hub, "answer", answered)
        yield
    hub.reset()


def model_is_downloaded_or_refused(answer: bytes, question: str) -> None:
    with _answering(question, answer):
        assert download_snapshot(_REPO).is_dir()


def headers_are_read_or_refused(answer: bytes, question: str) -> None:
    with _answering(question, answer), header_only_base(_REPO) as base:
        assert isinstance(base.revision, str)
        assert base.checkpoint.tensors


def output_is_pushed_or_refused(answer: bytes, question: str) -> None:
    with _answering(question, answer), scratch_folder("output") as output:
        try:
            sea_export.push(output, _PUSHED)
        except SeaExportError as error:  # a Hub that fails is no bad input, and is told in a sentence like it
            raise InputError(str(error)) from error


def _paths(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _about_a_model() -> Any:
    files = [{"rfilename": path} for path in _paths(template_folder("weights"))]
    return {"id": _REPO, "sha": _commit(_REPO), "private": True, "gated": False, "siblings": files, "tags": ["tiny"]}


def _list_of_files() -> Any:
    return [
        {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
        for path in sorted(template_folder("weights").iterdir())
    ]


def _to_a_push() -> Any:
    """Everything that one of the answers to the requests of a push has."""
    paths = _paths(template_folder("output"))
    return {
        "id": _PUSHED,
        "sha": _commit(_PUSHED),
        "private": True,
        "gated": False,
        "siblings": [{"rfilename": path} for path in paths],
        "name": OWNER,
        "orgs": [{"name": "org"}],
        "auth": {"accessToken": {"role": "write"}},
        "url": f"{_hub().endpoint}/{_PUSHED}",
        "errors": [],
        "warnings": [],
        "files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths],
        "commitOid": _commit(_PUSHED),
        "commitUrl": f"{_hub().endpoint}/{_PUSHED}/commit/{_commit(_PUSHED)}",
        "pullRequestUrl": None,
    }


HUB_PROPERTIES: dict[str, tuple[Callable[[bytes], None], st.SearchStrategy[bytes]]] = {
    "what the Hub says of a model": (
        functools.partial(model_is_downloaded_or_refused, question=_ABOUT_A_MODEL),
        st.deferred(lambda: changed_text(_about_a_model())),
    ),
    "list of files on the Hub": (
        functools.partial(headers_are_read_or_refused, question=_FILES),
        st.deferred(lambda: changed_text(_list_of_files())),
    ),
    "safetensors header on the Hub": (
        functools.partial(headers_are_read_or_refused, question=_WEIGHTS),
        changed_safetensors(lambda: (template_folder("weights") / "model.safetensors").read_bytes()),
    ),
    "what the Hub says to a push": (
        functools.partial(output_is_pushed_or_refused, question=_ANYTHING_BUT_FILES),
        st.deferred(lambda: changed_text(_to_a_push())),
    ),
}
