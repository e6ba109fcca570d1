"""Answers that are not the Hub's, such as those of a network that wants a login first, end in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sea_export
from sea_export.errors import InputError, SeaExportError
from sea_export.model.download import download_snapshot
from sea_export.model.header_only import header_only_base
from tests.helpers.hub_client import OWNER, connected_hub
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_server import Answer, Request

REPO = "good/model"
ANSWERS = {
    "a page": b"<html>Log in to the network</html>",
    "nothing": b"",
    "a number": b"3",
    "a list": b'["a"]',
    "an empty object": b"{}",
    "other types": b'{"id": 3, "sha": ["a"], "siblings": {"a": 1}, "private": "no", "name": null, "auth": 7}',
    "half a character": b'{"id": "\\ud800", "sha": "\\ud800", "siblings": [{"rfilename": "\\ud800"}]}',
    "no JSON": b'{"id": ',
}


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[LoopbackHub]:
    with connected_hub(tmp_path / "home") as hub:
        hub.add_model(REPO, tiny_checkpoint)
        yield hub


@pytest.fixture(scope="module")
def output(fit_tiny, llama, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("answers") / "out"
    sea_export.save(fit_tiny(llama), tiny_checkpoint, output, verify=False)
    return output


def answering(hub: LoopbackHub, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the Hub answer every question about repositories and users with one body."""
    real = hub.answer

    def answer(request: Request) -> Answer:
        return Answer(body) if "/api/" in request.line else real(request)

    monkeypatch.setattr(hub, "answer", answer)


def opened(output: Path) -> None:
    with header_only_base(REPO):
        pass


ACTIONS: dict[str, Callable[[Path], object]] = {
    "download": lambda output: download_snapshot(REPO),
    "headers": opened,
    "push": lambda output: sea_export.push(output, f"{OWNER}/edited"),
    "verify": lambda output: sea_export.verify(REPO),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_is_not_the_hub_s_is_refused(
    body: bytes, action: Callable[[Path], object], hub: LoopbackHub, output: Path, monkeypatch
) -> None:
    # The library logs the answer, and half a character cannot be handed on to a test runner in another process.
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("huggingface_hub._tree_cache"), "disabled", True)
    answering(hub, body, monkeypatch)
    with pytest.raises(SeaExportError) as refused:
        action(output)
    assert str(refused.value).isprintable()


HEADERS = (
    b'{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32"}}',
    b'{"a":3}',
    b"no JSON",
    b"[]",
)


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_none_is_refused(header: bytes, hub: LoopbackHub, tiny_checkpoint: Path, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    hub.add_model("odd/header", model)
    with pytest.raises(InputError, match="odd/header"), header_only_base("odd/header"):
        pass
