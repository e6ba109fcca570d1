"""Code that comes with a model: never run unless that is asked for, whatever file names it and whatever is asked.

The doors through which it could come in: the current folder; the config, a part of the config, the tokenizer or the
folder for generation of a base or of an export; Python files beside any of them; the config of an adapter, and the base
that it names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sea_export
from sea_export.model.isolated_python import run_python
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
    elif place == "part of the config":
        part = {"model_type": "nonesuch", "auto_map": {"AutoConfig": "other.Config", "AutoModel": "other.Model"}}
        change_json(directory / "config.json", lambda whole: whole | {"text_config": part})
    elif place == "files beside":
        for name in ("transformers", "torch", "peft", "configuration_llama", "modeling_llama", "sitecustomize"):
            (directory / f"{name}.py").write_text(code, encoding="utf-8")
    elif place == "tokenizer":
        named = {"AutoTokenizer": ["other.Tokenizer", "other.Tokenizer"]}
        change_json(directory / "tokenizer_config.json", lambda whole: whole | {"auto_map": named})
    else:
        named = {"AutoConfig": "other.Config", "AutoModelForCausalLM": "other.Model", "AutoModel": "other.Model"}
        change_json(directory / "config.json", lambda whole: whole | {"auto_map": named, "model_type": model_type})


PLACES = ("known architecture", "unknown architecture", "part of the config", "tokenizer", "generation", "files beside")
REFUSED = ("unknown architecture", "part of the config")
"""Where code is that a model cannot be loaded without."""


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
    place: str, arena: Path, commands: Commands, tiny_checkpoint: Path, count_case: Callable[[], None]
) -> None:
    model, edit, trace, new = arena / "model", arena / "edit", arena / "trace", arena / "new"
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, arena / "saved", verify=False)
    bring_code(model, trace, place)
    data = ("--demonstrations", arena / "rows.jsonl", "--layers", "last:1")
    save = ("save", edit, new, "--base", model, "--format")
    for arguments in (
        ("fit", model, new, *data, *UNMEASURED),
        ("fit", model, new, *data, *UNMEASURED, "--dequantize"),
        ("fit-and-save", model, new, *data, *UNMEASURED, "--no-verify"),
        (*save, "merged"),
        (*save, "adapter", "--no-verify"),
        (*save, "custom-code"),
        ("verify", arena / "saved", "--base", model),
        ("inspect", edit),
        ("diff", model, model),
        ("compare", model, model, "--prompt", "Why?", "--new-tokens", "2"),
        ("evaluate", model, "--benchmark", "damage", "--text", arena / "text.txt"),
        ("tune", model, new, "--demonstrations", arena / "rows.jsonl", "--trials", "1"),
        ("reproduce", arena / "saved" / "sea_export.json", new, "--base", model),
        ("doctor", model, *data, "--output", new),
        ("push", arena / "saved", "org/name"),
    ):
        count_case()
        outcome = commands.run(*arguments)
        assert outcome.status in (0, 1, 2), outcome.output
        assert "Traceback" not in outcome.output
        assert "Do you wish" not in outcome.output
        assert not trace.exists(), arguments
        if place in REFUSED and arguments[0] not in ("diff", "inspect", "push", "reproduce"):
            assert outcome.status == 2, outcome.output
        shutil.rmtree(new, ignore_errors=True)


@pytest.mark.guarantee(NEVER_RUN)
@pytest.mark.parametrize("form", ["merged", "adapter", "custom-code"])
@pytest.mark.parametrize("place", PLACES)
def test_no_code_beside_an_export_s_own_is_run(
    place: str, form: str, arena: Path, commands: Commands, tiny_checkpoint: Path
) -> None:
    out, trace = arena / "out", arena / "trace"
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, out, format=form, verify=False)
    if form == "adapter":  # which takes these files from its base
        shutil.copytree(tiny_checkpoint, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    bring_code(out, trace, place)
    outcome = commands.run("verify", out, "--base", arena / "model")
    assert not trace.exists()
    if form == "custom-code" and place != "files beside":
        commands.refuses(arena, "verify", out, "--base", arena / "model", names=["--trust-remote-code"])
    if form == "merged" and place not in ("tokenizer", "generation", "files beside"):
        assert outcome.status != 0, outcome.output


@pytest.mark.guarantee(NEVER_RUN)
@pytest.mark.parametrize("place", PLACES)
def test_no_code_of_the_base_that_an_adapter_names_is_run(
    place: str, arena: Path, commands: Commands, tiny_checkpoint: Path
) -> None:
    out, trace = arena / "out", arena / "trace"
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, out, format="adapter", verify=False)
    bring_code(arena / "model", trace, place)
    named = {"base_model_name_or_path": str(arena / "model")}
    change_json(out / "adapter_config.json", lambda whole: whole | named)
    for arguments in (
        ("verify", out),
        ("verify", out, "--base", tiny_checkpoint),
        ("compare", tiny_checkpoint, out, "--prompt", "Why?", "--new-tokens", "2"),
        ("evaluate", out, "--benchmark", "damage", "--text", arena / "text.txt"),
    ):
        outcome = commands.run(*arguments)
        assert "Do you wish" not in outcome.output
        assert not trace.exists(), arguments


ADAPTERS = {
    "a module to import": {"megatron_config": {"hidden_size": 24}, "megatron_core": "antigravity"},
    "an endless expression": {"target_modules": "([a-z._0-9]+)+!"},
    "an endless expression for ranks": {"rank_pattern": {"([a-z._0-9]+)+!": 2}},
    "an endless expression among names": {"exclude_modules": ["down_proj", "([a-z._0-9]+)+!"]},
    "another kind of adapter": {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}},
}


@pytest.mark.guarantee(NEVER_RUN)
@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_asks_for_more_than_numbers_is_refused(
    case: str, arena: Path, commands: Commands, tiny_checkpoint: Path
) -> None:
    out = arena / "out"
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, out, format="adapter", verify=False)
    change_json(out / "adapter_config.json", lambda whole: whole | ADAPTERS[case])
    commands.refuses(arena, "compare", tiny_checkpoint, out, "--prompt", "Why?", names=["adapter_config.json"])
    commands.refuses(arena, "verify", out, "--base", tiny_checkpoint, names=["adapter_config.json"])


@pytest.mark.guarantee(NEVER_RUN)
def test_a_config_that_names_a_kernel_of_the_hub_is_refused(arena: Path, commands: Commands) -> None:
    change_json(arena / "model" / "config.json", lambda whole: whole | {"attn_implementation": "someone/kernel"})
    arguments = ("--base", arena / "model")
    commands.refuses(arena, "save", arena / "edit", arena / "new", *arguments, names=["attn_implementation"])


@pytest.mark.guarantee(NEVER_RUN)
def test_no_process_searches_the_current_folder(arena: Path) -> None:
    """Also not the main one, which starts with an import of what the folder seems to hold."""
    folder, trace = arena / "model", arena / "trace"
    for name in ("transformers", "torch", "click", "json"):
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'w').close()\n", encoding="utf-8")
    command = [sys.executable, "-m", "sea_export", "doctor", ".", "--limit", "10", "--output", str(arena / "new")]
    environment = {**os.environ, "PYTHONPATH": str(Path(sea_export.__file__).parents[1])}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert not trace.exists()


@pytest.mark.guarantee(NEVER_RUN)
def test_another_process_has_no_input_and_its_own_path(arena: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(arena)
    Path("planted.py").write_text("", encoding="utf-8")
    assert run_python(["-c", "import planted"]).returncode != 0
    assert run_python(["-c", "input()"]).returncode != 0
    assert run_python(["-c", "import json"]).returncode == 0


def test_the_code_runs_where_it_is_trusted(arena: Path, commands: Commands) -> None:
    """Otherwise the tests above would show nothing."""
    bring_code(arena / "model", arena / "trace", "unknown architecture")
    arguments = ("--demonstrations", arena / "rows.jsonl", "--layers", "last:1", *UNMEASURED, "--trust-remote-code")
    commands.run("fit", arena / "model", arena / "new", *arguments)
    assert (arena / "trace").exists()
