"""The page of a chat: who is answered, what is told, and that nothing comes from elsewhere."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import sea_export
from sea_export.chat.chat_options import ChatOptions
from sea_export.chat.chat_session import ChatSession, Watch, open_chat
from sea_export.chat.chat_source import find_chat_source
from sea_export.chat.page_requests import LARGEST_BODY, PageAddress
from sea_export.chat.page_server import PageServer
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.files.digests import file_digests
from sea_export.model.run_options import RunOptions
from tests.helpers.messages import assert_names, naming

CONTROLS = {"strength": None, "layers": None, "system": ""}
PROMPT = "Is the moon made of rock?"
PAGE = files("sea_export.data") / "chat_page"


@pytest.fixture(scope="module")
def session(
    llama: PreTrainedModel,
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ChatSession]:
    directory = tmp_path_factory.mktemp("page") / "edit"
    fit_tiny(llama).save(directory)
    options, run = ChatOptions(base=str(tiny_checkpoint), new_tokens=6), RunOptions()
    with open_chat(find_chat_source(str(directory), options, run), options, run) as opened:
        yield opened


@pytest.fixture
def page(session: ChatSession) -> Iterator[PageServer]:
    session.reset()
    server = PageServer(session, None)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.close()
    thread.join()


def request(page: PageServer, method: str, part: str, body: bytes | None = None, **headers: str | None) -> Any:
    """The answer to a request that a page of that address would send, with other headers; None leaves one out."""
    own = {"Host": page.address.host}
    if method == "POST":
        own |= {"Origin": f"http://{page.address.host}", "Content-Type": "application/json"}
    given = {name: value for name, value in (own | headers).items() if value is not None}
    connection = http.client.HTTPConnection("127.0.0.1", page.address.port, timeout=30)
    path = part if part.startswith("/") else f"/{page.address.token}/{part}"
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    if body is not None and "Content-Length" not in given and "Transfer-Encoding" not in given:
        given["Content-Length"] = str(len(body))
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    response.content = response.read()
    connection.close()
    return response


def act(page: PageServer, action: str, **content: object) -> list[dict[str, Any]]:
    """The events that an action is answered with."""
    response = request(page, "POST", action, json.dumps({**CONTROLS, **content}).encode())
    assert response.status == 200, response.content
    return [json.loads(line) for line in response.content.splitlines()]


def text_of(answer: dict[str, Any]) -> str:
    return "".join(piece["text"] for piece in answer["pieces"])


# Who is answered


def test_only_who_knows_the_token_is_answered(page: PageServer) -> None:
    assert request(page, "GET", "").status == 200
    token = page.address.token
    for path in ("/", "/state", f"/{token[:-1]}/", f"/{token}x/", f"/{token[::-1]}/state"):
        response = request(page, "GET", path)
        assert response.status == 404, path
        assert token not in response.content.decode()
    assert request(page, "POST", "/ask", b"{}").status == 404
    assert len(token) > 40
    assert PageAddress(page.address.port).token != token


@pytest.mark.parametrize("host", ["evil.example", "localhost:{port}", "127.0.0.1", "127.0.0.1:1", "", None])
def test_a_name_that_leads_here_is_not_answered(host: str | None, page: PageServer) -> None:
    named = None if host is None else host.format(port=page.address.port)
    for method, body in (("GET", None), ("POST", b"{}")):
        response = request(page, method, "state" if body is None else "reset", body, Host=named)
        assert response.status == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://{host}", "http://{host}.evil.example", None]
)
def test_another_page_changes_nothing(origin: str | None, page: PageServer, session: ChatSession) -> None:
    act(page, "ask", prompt=PROMPT)
    named = None if origin is None else origin.format(host=page.address.host)
    for part in ("reset", "stop", "save", "ask"):
        assert request(page, "POST", part, json.dumps(CONTROLS).encode(), Origin=named).status == 403
    assert len(session.turns) == 1


def test_bodies_are_bounded(page: PageServer) -> None:
    for status, body, headers in (
        (413, None, {"Content-Length": str(LARGEST_BODY + 1)}),
        (413, None, {"Content-Length": "9" * 5000}),
        (411, None, {}),
        (411, None, {"Content-Length": "-1"}),
        (411, None, {"Content-Length": "²"}),
        (411, b"0\r\n\r\n", {"Transfer-Encoding": "chunked"}),
        (415, b"{}", {"Content-Type": "text/plain"}),
        (415, b"{}", {"Content-Type": "application/x-www-form-urlencoded"}),
    ):
        if any(not value.isascii() for value in headers.values()):
            headers = {name: value.encode().decode("latin-1") for name, value in headers.items()}
        assert request(page, "POST", "ask", body, **headers).status == status, (status, headers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        json.dumps({**CONTROLS, "strength": "1", "prompt": "?"}).encode(),
        json.dumps({**CONTROLS, "strength": True, "prompt": "?"}).encode(),
        json.dumps({**CONTROLS, "layers": 3, "prompt": "?"}).encode(),
        json.dumps({**CONTROLS, "prompt": ["?"]}).encode(),
        b'{"strength": NaN, "layers": null, "system": "", "prompt": "?"}',
        json.dumps(CONTROLS).encode(),
    ],
)
def test_requests_that_are_none_of_this_page(body: bytes, page: PageServer, session: ChatSession) -> None:
    assert request(page, "POST", "ask", body).status == 400
    assert session.turns == ()
    assert session.setting.strength is None


def test_nothing_else_is_there(page: PageServer) -> None:
    for part in ("../state", "page.py", "../../sea_export/__init__.py", "%2e%2e/state", "chat_page/page.js", "state/"):
        assert request(page, "GET", part).status == 404
    for part in ("", "state", "page.js", "run", "__init__"):
        assert request(page, "POST", part, b"{}").status == 404
    assert request(page, "PUT", "state", b"{}").status == 501


def test_nothing_comes_from_elsewhere(page: PageServer) -> None:
    for part in ("", "page.css", "page.js", "state"):
        response = request(page, "GET", part)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        assert not re.search(rb"https?:|[\"'(]//|@import|url\(", response.content)
    assert page._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(page: PageServer, session: ChatSession) -> None:
    with pytest.raises(InputError, match=naming("--port", page.address.port)):
        PageServer(session, page.address.port)


# The page itself


class Elements(HTMLParser):
    """The ids, the names of labels and the controls of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.controls: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.feed((PAGE / "page.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        own = dict(attributes)
        self.handlers += [name for name in own if name.startswith("on") or name == "style"]
        if own.get("id"):
            self.ids.append(str(own["id"]))
        if tag == "label":
            self.labelled.add(str(own["for"]))
        if tag in ("input", "textarea", "select"):
            self.controls.append(own)


def test_every_control_has_a_label() -> None:
    elements = Elements()
    assert len(elements.controls) >= 5
    for control in elements.controls:
        assert control["id"] in elements.labelled or control.get("aria-label"), control
    assert len(set(elements.ids)) == len(elements.ids)
    assert not elements.handlers, "the content security policy forbids them"


def test_the_script_inserts_text_only_and_knows_its_page() -> None:
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)
    used = set(re.findall(r'element\("([\w-]+)"\)', script))
    assert len(used) > 8
    assert used <= set(Elements().ids)


# What is told


def test_asking_and_moving_the_strength(page: PageServer, session: ChatSession) -> None:
    *growing, last = act(page, "ask", prompt="What boils?")
    assert {event["side"] for event in growing} == {"base", "edited"}
    turn = last["turn"]
    assert text_of(turn["base"]) != text_of(turn["edited"])
    assert growing[-1]["text"] == text_of(turn["edited"])
    again = act(page, "again", strength=3)[-1]["turn"]
    assert text_of(again["base"]) == text_of(turn["base"])
    assert text_of(again["edited"]) != text_of(turn["edited"])
    assert_names(again["setting"], "strength 3")
    state = json.loads(request(page, "GET", "state").content)
    assert state["turns"] == [again]
    assert state["strength"] == 3
    assert state["edited_layers"] == "1-3"
    assert act(page, "again", strength=0)[-1]["turn"]["edited"] == again["base"]
    part = act(page, "again", strength=3, layers="last:1")[-1]["turn"]
    assert text_of(part["edited"]) != text_of(again["edited"])
    assert act(page, "reset")[-1]["state"]["turns"] == []


def test_what_is_written_comes_back_as_text(page: PageServer) -> None:
    attack = "<img src=x onerror=alert(1)>\u202e\x1b[31m"
    turn = act(page, "ask", prompt=attack)[-1]["turn"]
    assert turn["prompt"] == "<img src=x onerror=alert(1)>\\u202e\\x1b[31m"


def test_errors_are_told_without_hyphens(page: PageServer) -> None:
    for action, content, facts in (
        ("ask", {"prompt": " "}, ["the prompt"]),
        ("ask", {"prompt": PROMPT, "strength": 1e31}, ["strength"]),
        ("ask", {"prompt": PROMPT, "layers": "seven"}, ["layers", "seven"]),
        ("again", {}, ["no prompt"]),
        ("save", {"output": " "}, ["the output"]),
        ("save", {"output": "no/such/place"}, ["place"]),
    ):
        (event,) = act(page, action, **content)
        assert_names(event["error"], *facts)
        assert "--strength" not in event["error"]


@pytest.mark.slow
def test_saving(
    page: PageServer, session: ChatSession, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strength is a whole number in JSON, and the same number in every file."""
    monkeypatch.chdir(tmp_path)
    saved = act(page, "save", strength=1, output="tried")[-1]["saved"]
    sea_export.save(session.setting.fitted.with_strength(1.0), tiny_checkpoint, tmp_path / "baked")
    digests = file_digests(tmp_path / "tried")
    assert digests == file_digests(tmp_path / "baked")
    assert saved["digests"] == {"model.safetensors": digests["model.safetensors"]}
    assert "--strength 1.0" in saved["command"]
    (event,) = act(page, "save", strength=1, output="tried")
    assert_names(event["error"], "tried")


# One computation at a time


def endless(asked: threading.Event, ended: threading.Event) -> Callable[[str, Watch], None]:
    def ask(prompt: str, watch: Watch) -> None:
        asked.set()
        try:
            while watch("base", "and so on"):
                time.sleep(0.01)
        finally:
            ended.set()

    return ask


def test_a_second_request_is_told_and_the_first_can_be_stopped(
    page: PageServer, session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(session, "ask", endless(asked, ended))
    events: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: events.extend(act(page, "ask", prompt=PROMPT)))
    first.start()
    assert asked.wait(10)
    response = request(page, "POST", "again", json.dumps(CONTROLS).encode())
    assert response.status == 409
    assert_names(response.content.decode(), "Wait")
    assert json.loads(request(page, "GET", "state").content)["turns"] == []
    assert not ended.is_set()
    assert request(page, "POST", "stop", b"{}").status == 200
    first.join(10)
    assert events[-1] == {"stopped": True}
    monkeypatch.undo()
    assert "turn" in act(page, "ask", prompt=PROMPT)[-1]


def test_an_answer_ends_when_its_page_has_gone(
    page: PageServer, session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(session, "ask", endless(asked, ended))
    connection = http.client.HTTPConnection("127.0.0.1", page.address.port, timeout=30)
    headers = {"Origin": f"http://{page.address.host}", "Content-Type": "application/json"}
    body = json.dumps({**CONTROLS, "prompt": PROMPT})
    connection.request("POST", f"/{page.address.token}/ask", body, headers)
    response = connection.getresponse()
    response.read(20)
    response.close()
    connection.close()
    assert ended.wait(10)
    monkeypatch.undo()
    deadline = time.monotonic() + 10
    while page._computing.locked() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "turn" in act(page, "ask", prompt=PROMPT)[-1]
