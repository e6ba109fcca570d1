"""Code that comes with a model: never run unless that is asked for, whatever file names it and whatever is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sea_export
from tests.helpers.hostile_checkpoints import change_json
from tests.helpers.parameters import UNMEASURED
from tests.helpers.refusals import Commands
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit

pytestmark = pytest.mark.slow

NEVER_RUN = "Code that comes with a model does not run unless --trust-remote-code says so"

CODE = """
open({trace!r}, "w").close()

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class Config(LlamaConfig):
    model_type = "{model_type}"


class Model(LlamaForCausalLM):
    config_class = Config


class Tokenizer(PreTrainedTokenizerFast):
    pass


def generate(model, *arguments, **options):
    return None
"""


def bring_code(directory: Path, trace: Path, place: str) -> None:
    """Adds code that leaves a trace when it runs, and a file that has it run."""
    model_type = "nonesuch" if place == "unknown architecture" else "llama"
    code = CODE.format(trace=str(trace), model_type=model_type)
    (directory / "other.py").write_text(code, encoding="utf-8")
    if place == "generation":
        (directory / "custom_generate").mkdir()
        (directory / "custom_generate" / "generate.py").write_text(code, encoding="utf-8")
    elif place == "tokenizer":
        named = {"AutoTokenizer": ["other.Tokenizer", "other.Tokenizer"]}
        change_json(directory / "tokenizer_config.json", lambda whole: whole | {"auto_map": named})
    else:
        named = {"AutoConfig": "other.Config", "AutoModelForCausalLM": "other.Model", "AutoModel": "other.Model"}
        change_json(directory / "config.json", lambda whole: whole | {"auto_map": named, "model_type": model_type})


PLACES = ("known architecture", "unknown architecture", "tokenizer", "generation")


@pytest.fixture
def arena(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    spectral_edit(MLP_TARGETS).save(tmp_path / "edit")
    rows = [{"prompt": f"Is {number} a number?", "positive": " Yes.", "negative": " No."} for number in range(4)]
    (tmp_path / "text.txt").write_text("Water boils at one hundred degrees.\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.guarantee(NEVER_RUN)
@pytest.mark.parametrize("place", PLACES)
def test_no_command_runs_code_of_a_model(
    place: str, arena: Path, commands: Commands, count_case: Callable[[], None]
) -> None:
    model, edit, trace = arena / "model", arena / "edit", arena / "trace"
    bring_code(model, trace, place)
    save = ("save", edit, arena / "out", "--base", model, "--format")
    for arguments in (
        ("fit", model, arena / "new", "--demonstrations", arena / "rows.jsonl", "--layers", "last:1", *UNMEASURED),
        (*save, "merged"),
        (*save, "adapter", "--no-verify"),
        (*save, "custom-code"),
        ("diff", model, model),
        ("compare", model, model, "--prompt", "Why?", "--new-tokens", "2"),
        ("evaluate", model, "--benchmark", "damage", "--text", arena / "text.txt"),
    ):
        count_case()
        outcome = commands.run(*arguments)
        assert outcome.status in (0, 2), outcome.output
        assert "Traceback" not in outcome.output
        assert not trace.exists(), arguments
        if place == "unknown architecture" and arguments[0] != "diff":
            assert outcome.status == 2, outcome.output
        for made in ("out", "new"):
            shutil.rmtree(arena / made, ignore_errors=True)


@pytest.mark.guarantee(NEVER_RUN)
@pytest.mark.parametrize("place", PLACES)
def test_no_code_beside_an_export_s_own_is_run(
    place: str, arena: Path, commands: Commands, tiny_checkpoint: Path
) -> None:
    out, trace = arena / "out", arena / "trace"
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, out, format="custom-code", verify=False)
    bring_code(out, trace, place)
    commands.refuses(arena, "verify", out, "--base", arena / "model", names=["--trust-remote-code"])
    assert not trace.exists()


def test_the_code_runs_where_it_is_trusted(arena: Path, commands: Commands) -> None:
    """Otherwise the tests above would show nothing."""
    bring_code(arena / "model", arena / "trace", "unknown architecture")
    arguments = ("--demonstrations", arena / "rows.jsonl", "--layers", "last:1", *UNMEASURED, "--trust-remote-code")
    commands.run("fit", arena / "model", arena / "new", *arguments)
    assert (arena / "trace").exists()
