"""Every format, from the fit over a Hub to a process that knows nothing of sea-export; and what the Hub is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import PreTrainedModel

from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from tests.helpers.hub_client import OWNER, TOKEN, connected_hub, environment
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.messages import assert_names
from tests.helpers.parameters import UNMEASURED
from tests.helpers.tiny_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

FORMATS = {
    "merged": [],
    "adapter": ["--format", "adapter"],
    "custom-code": ["--format", "custom-code", "--feature-function", "tanh", "--center", "off"],
}
BASE = "org/tiny"
PROMPT = "Is the moon made of cheese?"

_STRANGER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "custom-code")
tokens = AutoTokenizer.from_pretrained(sys.argv[3], trust_remote_code=True)(sys.argv[4], return_tensors="pt")
generated = model.generate(tokens["input_ids"], max_new_tokens=16, do_sample=False)
assert "sea_export" not in sys.modules
print(json.dumps(generated[0].tolist()))
"""


@dataclass(frozen=True)
class PushedExport:
    """A format on the Hub, and what was pushed."""

    hub: LoopbackHub
    format: str
    repo_id: str
    output: Path


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with connected_hub(tmp_path_factory.mktemp("hub") / "home") as hub:
        hub.add_model(BASE, tiny_checkpoint)
        yield hub


@pytest.fixture(scope="module")
def demonstrations_file(demonstrations: tuple[Demonstration, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "demonstrations.jsonl"
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module", params=FORMATS)
def pushed(
    request: pytest.FixtureRequest,
    hub: LoopbackHub,
    demonstrations_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> PushedExport:
    hub.reset()
    output, repo_id = tmp_path_factory.mktemp("output") / request.param, f"{OWNER}/{request.param}"
    fit = ["--demonstrations", demonstrations_file, *UNMEASURED, "--layers", "last:2", "--no-verify"]
    result = run("fit-and-save", BASE, output, *fit, *FORMATS[request.param], "--push", repo_id)
    assert result.exit_code == 0, result.output
    assert f'from_pretrained("{repo_id}"' in result.output
    return PushedExport(hub, request.param, repo_id, output)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def greedy_tokens(model: PreTrainedModel) -> list[int]:
    tokens = tiny_tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        generated: list[int] = model.generate(tokens, max_new_tokens=16, do_sample=False)[0].tolist()
    return generated


def test_another_program_generates_what_the_run_time_edit_generates(pushed: PushedExport, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")  # the repository is private
    tokenizer = BASE if pushed.format == "adapter" else pushed.repo_id
    process = subprocess.run(
        [sys.executable, "-I", "-c", _STRANGER, pushed.repo_id, pushed.format, tokenizer, PROMPT],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment(pushed.hub, tmp_path)},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    generated = json.loads(process.stdout.splitlines()[-1])
    model = tiny_model("llama")
    with SpectralEdit.load(pushed.output).apply(model):
        assert generated == greedy_tokens(model)
    assert generated != greedy_tokens(model), "the edit changes what is generated"
    assert TOKEN not in process.stdout + process.stderr


def test_verify_fetches_each_file_of_the_output_once_and_nothing_else(pushed: PushedExport) -> None:
    repository = pushed.hub.repositories[pushed.repo_id]
    held = repository.commits[repository.branches["main"]].files
    repository.commit("main", "Add another form", "", {**held, "model.gguf": held["sea_export.json"]})
    pushed.hub.reset()
    result = run("verify", pushed.repo_id)
    assert result.exit_code == 0, result.output
    assert "run-time edit" in result.output
    fetched = pushed.hub.lines(f"^GET /{pushed.repo_id}/resolve/|^GET /storage/{OWNER}%2F{pushed.format}/")
    assert len(fetched) == len(set(fetched))
    files = [path for path in pushed.output.rglob("*") if path.is_file()]
    large = [path for path in files if path.suffix == ".safetensors"]
    assert len([line for line in fetched if "/storage/" in line]) <= len(large)
    assert not [line for line in fetched if "README.md" in line or "model.gguf" in line]
    assert not pushed.hub.lines("^(POST|PUT)"), "nothing is written there"
    assert repository.files()["sea_export.json"] == (pushed.output / "sea_export.json").read_bytes()


def test_inspect_fetches_the_edit_and_nothing_else(
    pushed: PushedExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    pushed.hub.reset()
    result = run("inspect", f"{pushed.repo_id}@main")
    assert result.exit_code == 0, result.output
    assert result.output == run("inspect", pushed.output).output
    edit = sum(path.stat().st_size for path in (pushed.output / "sea_edit").iterdir())
    contents = [request for request in pushed.hub.requests if not request.line.startswith("GET /api/")]
    assert sum(request.sent for request in contents) == edit
    assert len(pushed.hub.requests) <= 2 + 3 * 2, "the commit, the tree, and for each file its head, address and bytes"


def test_what_is_not_ours_on_the_hub(hub: LoopbackHub) -> None:
    for command, missing in (("inspect", "sea_edit"), ("verify", "sea_export.json")):
        result = run(command, BASE)
        assert result.exit_code == 2
        assert_names(result.stderr, BASE, missing)
        for name, fact in (("org/nothing", "org/nothing"), (f"{BASE}@v9", "v9")):
            result = run(command, name)
            assert result.exit_code == 2
            assert_names(result.stderr, fact)


@pytest.mark.usefixtures("no_capture")
def test_a_push_that_cannot_be_is_refused_before_anything_is_fitted(
    hub: LoopbackHub, demonstrations_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    hub.reset()
    given = ("--demonstrations", demonstrations_file, "--push")
    output = tmp_path / "out"
    result = run("fit-and-save", BASE, output, *given, BASE, "--public")
    assert result.exit_code == 2
    assert_names(result.stderr, BASE, "config.json")
    result = run("fit-and-save", tiny_checkpoint, output, "--format", "adapter", *given, f"{OWNER}/new")
    assert result.exit_code == 2
    assert_names(result.stderr, "--base")
    assert f"{OWNER}/new" not in hub.repositories
    assert not output.exists()


def test_a_fit_whose_push_fails_says_how_to_push_what_it_made(
    hub: LoopbackHub, demonstrations_file: Path, tmp_path: Path
) -> None:
    hub.reset()
    hub.fail("POST .*/commit/", 500)
    output = tmp_path / "out"
    fit = ("--demonstrations", demonstrations_file, *UNMEASURED, "--layers", "last:2", "--no-verify")
    result = run("fit-and-save", BASE, output, *fit, "--push", f"{OWNER}/late")
    assert result.exit_code == 1, result.output
    assert f"sea-export push {output} {OWNER}/late" in result.stderr
    hub.reset()
    assert run("push", output, f"{OWNER}/late").exit_code == 0


def test_the_token_appears_nowhere(hub: LoopbackHub, demonstrations_file: Path, tmp_path: Path) -> None:
    """With everything that logs or shows tracebacks turned on, in processes of their own that are watched."""
    hub.reset()
    home, output = tmp_path / "home", tmp_path / "output"
    home.mkdir()
    (home / "token").write_text(TOKEN, encoding="utf-8")
    fit = ("--demonstrations", demonstrations_file, *UNMEASURED, "--layers", "last:2", "--push", f"{OWNER}/watched")
    status, command_lines = _watched(("fit-and-save", BASE, output, *fit), hub, tmp_path)
    assert status == 0, (tmp_path / "printed").read_text(encoding="utf-8")
    hub.fail("POST .*/commit/", 403)
    status, more = _watched(("push", output, f"{OWNER}/refused"), hub, tmp_path)
    assert status != 0
    printed = (tmp_path / "printed").read_bytes()
    assert b"Traceback" in printed
    assert b"authorization" in printed, "requests are logged"
    assert any(b"sea_export" in line for line in command_lines)
    assert any(b"verification_probe.py" in line for line in command_lines), "children are watched"
    assert not [line for line in (*command_lines, *more) if TOKEN.encode() in line]
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert holding == [home / "token"], "where huggingface_hub keeps it, and nowhere else"
    for commit in hub.repositories[f"{OWNER}/watched"].commits.values():
        assert TOKEN not in commit.title + commit.description
        assert not any(TOKEN.encode() in file.content for file in commit.files.values())
    assert any(request.token == TOKEN for request in hub.requests), "it was used"


def _watched(arguments: tuple[object, ...], hub: LoopbackHub, directory: Path) -> tuple[int, set[bytes]]:
    """The exit status of a command, and the command lines that could be seen while it ran."""
    logs = {"HF_HUB_VERBOSITY": "debug", "TRANSFORMERS_VERBOSITY": "debug", "HF_DEBUG": "1", "TMPDIR": str(directory)}
    with open(directory / "printed", "ab") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "sea_export", "--debug", *map(str, arguments)],
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            env={"PATH": os.environ["PATH"], **logs, **environment(hub, directory / "home")},
        )
        seen: set[bytes] = set()
        while process.poll() is None:
            seen |= set(_command_lines(process.pid))
            time.sleep(0.02)
    return process.returncode, seen


def _command_lines(process: int) -> Iterator[bytes]:
    """The command lines of a process and of those that it has started."""
    tasks = Path(f"/proc/{process}/task")
    try:
        yield Path(f"/proc/{process}/cmdline").read_bytes()
        children = [child for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return  # ended meanwhile
    for child in children:
        yield from _command_lines(int(child))
