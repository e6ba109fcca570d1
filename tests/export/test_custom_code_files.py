"""A custom-code export holds the base as it was, code that can be trusted, and a tokenizer; others are refused."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.custom_code.code_plan import (
    CODE_FILE,
    EDIT_SHARD,
    CodePlan,
    find_edited_modules,
    plan_custom_code,
)
from sea_export.model.base import Base, open_base
from sea_export.model.checkpoint import Checkpoint
from tests.helpers.custom_code_models import LINEAR, TANH, hidden_states, load, logits, relative_error
from tests.helpers.messages import naming
from tests.helpers.tiny_models import random_model, tiny_config, tiny_model, tiny_tokenizer

# Files


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_nothing_of_the_base_is_rewritten(
    link: bool, sharded: bool, fit_tiny, llama, tiny_checkpoint, tiny_sharded_checkpoint, tmp_path
) -> None:
    shutil.copytree(tiny_sharded_checkpoint if sharded else tiny_checkpoint, tmp_path / "base")
    (tmp_path / "base" / "extra").mkdir()
    (tmp_path / "base" / "extra" / "notes.txt").write_bytes(b"\x00kept\r\n")
    original = {path: path.read_bytes() for path in (tmp_path / "base").rglob("*") if path.is_file()}
    sea_export.save(fit_tiny(llama), tmp_path / "base", tmp_path / "out", format="custom-code", verify=False, link=link)
    base, written = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "out")
    for file in base.weight_files:
        assert os.path.samefile(tmp_path / "base" / file, tmp_path / "out" / f"base-{file}") == link
    assert written.weight_files == (*(f"base-{file}" for file in base.weight_files), EDIT_SHARD)
    assert {name for name in written.tensors if name not in base.tensors} == {
        f"model.layers.{layer}.mlp.sea_edit.0.{name}" for layer in (1, 2, 3) for name in ("read", "write")
    }
    for file in base.side_files():
        if file not in ("config.json", base.index_file):
            assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "base" / file).read_bytes(), file
    # A user who saves over the export must not write into the base, through a link or otherwise.
    model = load(tmp_path / "out")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "base").rglob("*") if path.is_file()} == original


def test_where_links_are_not_possible_the_base_is_copied(fit_tiny, llama, tiny_checkpoint, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("links are not possible here")

    monkeypatch.setattr(os, "link", refuse)
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False, link=True)
    source, copied = tiny_checkpoint / "model.safetensors", tmp_path / "out" / "base-model.safetensors"
    assert not os.path.samefile(source, copied)
    assert source.read_bytes() == copied.read_bytes()
    load(tmp_path / "out")


def test_the_config_is_the_base_s_but_for_what_makes_it_custom_code(custom_code_of, tiny_checkpoint) -> None:
    output, _ = custom_code_of("llama", **LINEAR)
    base, written = (
        json.loads((directory / "config.json").read_text(encoding="utf-8")) for directory in (tiny_checkpoint, output)
    )
    changed = {"model_type", "architectures", "auto_map", "sea_edit", "tokenizer_class"}
    assert {key: value for key, value in written.items() if key not in changed} == {
        key: value for key, value in base.items() if key not in changed
    }
    assert written["model_type"] == "sea_llama"
    assert written["architectures"] == ["SeaLlamaForCausalLM"]
    assert set(written["sea_edit"]) == {f"layers.{layer}.mlp" for layer in (1, 2, 3)}


def test_code_that_the_base_offers_beside_transformers_own_is_not_offered_again(
    fit_tiny, llama, tiny_checkpoint, tmp_path
) -> None:
    """It would load the model without the edit."""
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_other.Other"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sea_export.save(fit_tiny(llama), tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    load(tmp_path / "out")


def test_a_checkpoint_without_the_prefix_of_the_base_model_keeps_its_names(fit_tiny, tokenizer, tmp_path) -> None:
    model = tiny_model("gpt2")
    model.transformer.save_pretrained(tmp_path / "base")
    edit = fit_tiny(model)
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    assert "h.3.mlp.sea_edit.0.read" in Checkpoint.open(tmp_path / "out").tensors
    with edit.apply(model):
        assert relative_error(logits(load(tmp_path / "out")), logits(model)) < 1e-5
        assert relative_error(hidden_states(load(tmp_path / "out", AutoModel)), hidden_states(model.transformer)) < 1e-5


def test_the_same_edit_gives_the_same_bytes(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    for name in ("one", "two"):
        edit = fit_tiny(llama, **LINEAR)
        sea_export.save(edit, tiny_checkpoint, tmp_path / name, format="custom-code", verify=False)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {Path(CODE_FILE), Path(EDIT_SHARD), Path("sea_edit/sea_edit.json")} <= files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


# Tokenizers


def test_the_tokenizer_is_the_base_s_own(custom_code_of, tiny_checkpoint) -> None:
    output, _ = custom_code_of("llama", **LINEAR)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (output / file).read_bytes() == (tiny_checkpoint / file).read_bytes()
    text = "Is the moon made of cheese? No."
    tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids


def test_the_config_names_the_tokenizer_s_class_for_pipelines_that_look_there(custom_code_of, tiny_checkpoint) -> None:
    output, _ = custom_code_of("llama", **LINEAR)
    named = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    assert "tokenizer_class" not in json.loads((tiny_checkpoint / "config.json").read_text(encoding="utf-8"))
    assert json.loads((output / "config.json").read_text(encoding="utf-8"))["tokenizer_class"] == named


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tokenizer_that_names_no_class_is_still_found(family: str, fit_tiny, tiny_checkpoint_of, tmp_path) -> None:
    shutil.copytree(tiny_checkpoint_of(family), tmp_path / "base")
    settings_file = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    del settings["tokenizer_class"]
    settings_file.write_text(json.dumps(settings), encoding="utf-8")
    edit = fit_tiny(tiny_model(family))
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    text = "Is the moon made of cheese? No."
    before = AutoTokenizer.from_pretrained(tmp_path / "base")
    after = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert after(text).input_ids == before(text).input_ids
    assert type(after) is type(before)


# The code


def test_the_code_imports_torch_and_transformers_and_says_what_it_is(custom_code_of, tiny_checkpoint) -> None:
    output, edit = custom_code_of("llama", **TANH)
    text = (output / CODE_FILE).read_text(encoding="utf-8")
    tree = ast.parse(text)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported == {"torch", "transformers"}
    header = ast.get_docstring(tree)
    assert f"Base: {tiny_checkpoint.name}." in header
    assert "3 modules; non-linear (tanh)" in header
    assert edit.provenance["demonstrations"]["sha256"] in header
    assert "sea-export 0." in header
    assert len(text.splitlines()) < 200
    assert max(map(len, text.splitlines())) <= 120


def test_code_is_formatted_as_this_project_s(custom_code_of, tmp_path) -> None:
    output, _ = custom_code_of("gpt2", **LINEAR)
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    for arguments in (["check", "--isolated", "--select", "E,F,B,UP", "--line-length", "120"], ["format", "--check"]):
        command = [str(ruff), *arguments, str(output / CODE_FILE)]
        if arguments[0] == "format":
            command[2:2] = ["--isolated", "--line-length", "120"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout


def test_a_name_cannot_become_code(fit_tiny, llama, tiny_checkpoint, custom_code_of) -> None:
    hostile = '"""\nimport os\nos.system("true")\n"""$model_type\\'
    with open_base(str(tiny_checkpoint)) as base:
        hostile_base = replace(base, name=hostile, revision=hostile)
        source = plan(fit_tiny(llama), hostile_base).source
    plain = (custom_code_of("llama")[0] / CODE_FILE).read_text(encoding="utf-8")

    def code(text: str) -> str:
        tree = ast.parse(text)
        assert isinstance(tree.body[0], ast.Expr)
        return ast.dump(ast.Module(tree.body[1:], []))

    assert code(source) == code(plain)


def plan(edit: SpectralEdit, base: Base) -> CodePlan:
    return plan_custom_code(edit, base, find_edited_modules(edit.targets, base))


# Refusals


def refused(edit: SpectralEdit, base: Path, output: Path, *facts: object) -> None:
    with pytest.raises(sea_export.InputError, match=naming(*facts)):
        sea_export.save(edit, base, output, format="custom-code", verify=False)
    assert not list(output.parent.glob(f"*{output.name}*"))


def test_a_base_that_is_custom_code_itself_is_refused_without_trust(custom_code_of, tmp_path) -> None:
    output, edit = custom_code_of("llama", **LINEAR)
    refused(replace(edit, provenance={}), output, tmp_path / "again", "trust_remote_code=True")


def test_an_edit_of_another_size_is_refused(fit_tiny, tiny_checkpoint, tmp_path) -> None:
    config = tiny_config("llama")
    config.hidden_size, config.head_dim = 32, 8
    refused(fit_tiny(random_model(config)), tiny_checkpoint, tmp_path / "out", 32)


def test_quantized_bases_are_planned_like_others(custom_code_of, fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    """Their stored tensors have other names, but their modules have the same."""
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open_base(str(tmp_path / "base")) as base:
        planned = plan(fit_tiny(llama), base)
    assert planned.config["quantization_config"]["quant_method"] == "gptq"
    assert "model.layers.3.mlp.sea_edit.0.read" in planned.tensors


def test_edits_that_do_not_fold_are_refused_by_other_formats_before_anything_is_written(
    fit_tiny, llama, tiny_checkpoint, tmp_path
) -> None:
    for options, setting in (
        ({"feature_function": "tanh"}, 'feature_function="identity"'),
        ({"normalization": "token"}, 'normalization="calibrated"'),
        ({"normalization": "sequence"}, 'normalization="calibrated"'),
    ):
        edit = sea_export.compose([fit_tiny(llama), fit_tiny(llama, **options)])
        for form in ("merged", "adapter"):
            with pytest.raises(sea_export.InputError, match=naming('format="custom-code"', setting)):
                sea_export.save(edit, tiny_checkpoint, tmp_path / "out", format=form, verify=False)
    assert not list(tmp_path.iterdir())
