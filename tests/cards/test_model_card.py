"""The model card: its metadata are what the Hub's client reads, its snippets run as they stand, its words are true."""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import EvalResult, ModelCard
from safetensors.torch import load_file
from transformers import PreTrainedModel

import sea_export
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cards.description import update_description
from sea_export.cards.model_card import model_card
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.manifest import read_manifest
from sea_export.files.digests import file_digest
from sea_export.model.base import Base
from sea_export.model.checkpoint import Checkpoint
from tests.helpers.messages import assert_names

FORMATS = ("merged", "adapter", "custom-code")
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def edit(llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit]) -> SpectralEdit:
    return fit_tiny(llama)


@pytest.fixture(scope="module")
def outputs(edit: SpectralEdit, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of every format. Read only."""
    directory = tmp_path_factory.mktemp("exports")
    for form in FORMATS:
        sea_export.save(edit, tiny_checkpoint, directory / form, format=form, verify=False)
    return {form: directory / form for form in FORMATS}


def on_hub(manifest: dict[str, Any], **metadata: object) -> dict[str, Any]:
    """The manifest of the same run, had its base been a model of the Hub with such a card."""
    manifest = copy.deepcopy(manifest)
    manifest["base"] |= {"name": "org/base-model", "revision": "f" * 40, "metadata": metadata}
    return manifest


def figure(name: str, unit: str, value: float, group: str = "") -> dict[str, Any]:
    interval = [value, value - 0.01, value + 0.01]
    return {
        **{"name": name, "unit": unit, "group": group, "best": 1.0, "value": interval, "base": interval},
        **{"difference": [0.0, -0.01, 0.01], "p_value": 0.5},
    }


EVALUATION = {
    "against": "org/base-model",
    "dtype": "float32",
    "benchmarks": [
        {"benchmark": "truthfulqa", "rows": 817, "figures": [figure("MC1", "%", 0.25), figure("NLL", "nats", 2.5)]},
        {
            "benchmark": "bbq",
            "rows": 99,
            "figures": [figure("accuracy", "%", 0.5), figure("accuracy", "%", 0.4, "Age")],
        },
    ],
}


# Metadata


@pytest.mark.parametrize("form", FORMATS)
def test_the_hubs_client_reads_the_metadata(form: str, outputs: dict[str, Path]) -> None:
    manifest = {**on_hub(read_manifest(outputs[form]), license="mit", language=["en", "fr"]), "evaluation": EVALUATION}
    text = model_card(manifest)
    card = ModelCard(text)  # raises ValueError for metadata, a model index included, that it cannot read
    assert card.content == text, "written as the client itself writes it"
    assert ModelCard(card.content).data.to_dict() == card.data.to_dict()
    data = card.data
    assert data.base_model == "org/base-model"
    assert data.base_model_relation == {"adapter": "adapter"}.get(form, "finetune")
    assert (data.license, data.language, data.pipeline_tag) == ("mit", ["en", "fr"], "text-generation")
    assert data.library_name == {"adapter": "peft"}.get(form, "transformers")
    assert {"sea-export", "spectral-editing"} <= set(data.tags)
    assert ("custom_code" in data.tags) == (form == "custom-code")
    assert data.model_name == "base-model-spectrally-edited"
    found = {(one.dataset_name, one.metric_name): one.metric_value for one in data.eval_results}
    assert found == {("TruthfulQA", "MC1 (%)"): 25.0, ("TruthfulQA", "NLL (nats)"): 2.5, ("BBQ", "accuracy (%)"): 50.0}
    assert all(isinstance(one, EvalResult) and one.task_type == "text-generation" for one in data.eval_results)


def test_samples_of_rows_become_no_values_of_the_hub(outputs: dict[str, Path]) -> None:
    """Neither do rows that no data set has."""
    evaluation = copy.deepcopy(EVALUATION)
    evaluation["benchmarks"][0] |= {"sampled": True, "rows": 20}
    for label in ("damage", "held-out demonstrations", "lm-eval arc_easy"):
        evaluation["benchmarks"].append({"benchmark": label, "rows": 9, "figures": [figure("acc", "%", 0.5)]})
    card = ModelCard(model_card({**on_hub(read_manifest(outputs["merged"])), "evaluation": evaluation}))
    assert {one.dataset_type for one in card.data.eval_results} == {"bbq", "lm-eval-arc_easy"}
    assert "a sample of 20 rows of truthfulqa" in card.text
    assert "| truthfulqa | MC1 (%) |" in card.text, "the table has it"
    for one in evaluation["benchmarks"]:
        one["sampled"] = True
    text = model_card({**on_hub(read_manifest(outputs["merged"])), "evaluation": evaluation})
    assert "model-index" not in text


def test_biases_that_the_base_does_not_have_are_told(outputs: dict[str, Path]) -> None:
    manifest = read_manifest(outputs["merged"])
    assert "tensor names and files, and loads" in " ".join(model_card(manifest).split())
    more = model_card({**manifest, "added_tensors": ["a.bias", "b.bias"]})
    assert "tensors and files, and 2 biases more, and loads" in " ".join(more.split())
    assert "mergekit, and mistral.rs with a Llama model, drop added biases" in " ".join(more.split())


def test_a_local_base_is_no_model_of_the_hub(outputs: dict[str, Path]) -> None:
    for output in outputs.values():
        data = ModelCard.load(output / "README.md").data.to_dict()
        assert {"base_model", "base_model_relation", "license", "model-index", "datasets"}.isdisjoint(data)


def test_datasets_of_the_hub_are_named(outputs: dict[str, Path]) -> None:
    manifest = on_hub(read_manifest(outputs["merged"]))
    fits = []
    for source in ("org/pairs:train@main", "builtin:fairness", "pairs.jsonl", "org/pairs:test", "other/set"):
        fit = copy.deepcopy(manifest["edit"])
        fit["demonstrations"]["origin"] = {"source": source}
        fits.append(fit)
    manifest["edit"] = {"composed": [fits[0], {"composed": fits[1:]}]}
    card = ModelCard(model_card(manifest))
    assert card.data.datasets == ["org/pairs", "other/set"]
    assert card.text.count("Fitted on 8 demonstrations of") == 5


# License


@pytest.mark.parametrize(
    ("license", "forbids"),
    [
        ({"license": "cc-by-nd-4.0"}, True),
        ({"license": "cc-by-nc-nd-3.0"}, True),
        ({"license": ["mit", "cc-by-nc-nd-4.0"]}, True),
        ({"license": "other", "license_name": "acme-no-derivatives-1.0"}, True),
        ({"license": "apache-2.0"}, False),
        ({"license": "other", "license_name": "brand-and-friends"}, False),
        ({"license": "cc-by-nc-sa-4.0"}, False),
        ({}, False),
    ],
)
def test_licenses_that_forbid_derivatives(license: dict[str, Any], forbids: bool, outputs: dict[str, Path]) -> None:
    assert (license_warning("org/base-model", license) is not None) == forbids
    card = model_card(on_hub(read_manifest(outputs["merged"]), **license))
    assert ("forbids to share derivatives" in card) == forbids
    assert ("do not tell its license" in card) == (license == {})


def test_the_license_is_inherited_and_warned_of(
    edit: SpectralEdit, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: cc-by-nd-4.0\nlanguage: fr\n---\n# Base\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        sea_export.save(edit, base, tmp_path / "out", verify=False)
    assert_names(caplog.text, "base", "cc-by-nd-4.0")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.language) == ("cc-by-nd-4.0", "fr")
    (tmp_path / "edit").mkdir()
    edit.save(tmp_path / "edit")
    arguments = ["save", tmp_path / "edit", tmp_path / "again", "--base", base, "--no-verify"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert_names(warning, "base", "cc-by-nd-4.0")


def test_an_unreadable_base_card_says_nothing(edit: SpectralEdit, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for number, text in enumerate(("---\n- a list\n---\n", "---\nlicense: [mit\n---\n", "no metadata")):
        base = shutil.copytree(tiny_checkpoint, tmp_path / f"base{number}")
        (base / "README.md").write_text(text, encoding="utf-8")
        sea_export.save(edit, base, tmp_path / f"out{number}", verify=False)
        assert read_manifest(tmp_path / f"out{number}")["base"]["metadata"] == {}


def test_a_license_file_of_the_hub_is_told_by_its_address(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    base = Base("org/base-model", "0" * 40, Checkpoint.open(directory), location="org/base-model")
    addresses = {
        "LICENSE": f"https://huggingface.co/org/base-model/blob/{'0' * 40}/LICENSE",
        "https://example.org/license": "https://example.org/license",
    }
    for stated, expected in addresses.items():
        text = f"---\nlicense: other\nlicense_name: own\nlicense_link: {stated}\n---\n"
        (directory / "README.md").write_text(text, encoding="utf-8")
        assert base_metadata(base)["license_link"] == expected


# Snippets


RUN_SNIPPETS = """
import os, re, sys
sys.modules["sea_export"] = None  # as if it were not installed
import torch, transformers
from safetensors.torch import save_file
ids = torch.arange(20, 40)[None]
for directory in sys.argv[1:]:
    os.chdir(directory)
    names = {}
    for number, code in enumerate(re.findall("^```python\\n(.*?)^```", open("README.md").read(), re.S | re.M)):
        exec(code, names)
        with torch.inference_mode():
            save_file({"logits": names["generate"].model(ids).logits}, f"../{os.path.basename(directory)}-{number}.st")
"""


@pytest.fixture(scope="module")
def logits_of_snippets(outputs: dict[str, Path]) -> dict[str, list[torch.Tensor]]:
    """What the model of each card's snippets predicts, after each of them."""
    command = [sys.executable, "-I", "-c", RUN_SNIPPETS, *map(str, outputs.values())]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("\n") >= 3, "the snippets print answers"
    parent = outputs["merged"].parent
    return {form: [load_file(file)["logits"] for file in sorted(parent.glob(f"{form}-*.st"))] for form in outputs}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_snippets_run_as_they_stand(
    form: str, logits_of_snippets: dict[str, list[torch.Tensor]], llama: PreTrainedModel, edit: SpectralEdit
) -> None:
    ids = torch.arange(20, 40)[None]
    with torch.inference_mode():
        base = llama(ids).logits
        with edit.apply(llama):
            edited = llama(ids).logits
    found = logits_of_snippets[form]
    assert torch.allclose(found[0], edited, atol=1e-4)
    assert not torch.allclose(found[0], base, atol=1e-2), "negative control: the base's are others"
    assert len(found) == (2 if form == "adapter" else 1)
    if form == "adapter":  # the LoRA scale at one half
        assert not torch.allclose(found[1], edited, atol=1e-2)
        assert not torch.allclose(found[1], base, atol=1e-2)


def test_the_first_snippet_is_short(outputs: dict[str, Path]) -> None:
    for output in outputs.values():
        for chat, length in ((True, 4), (False, 3)):
            manifest = read_manifest(output)
            manifest["base"]["chat"] = chat
            card = model_card(manifest)
            assert len(re.findall("^```python\n(.*?)^```", card, re.S | re.M)[0].splitlines()) == length


def test_the_card_names_the_repository_once_there_is_one(outputs: dict[str, Path], tmp_path: Path) -> None:
    output = shutil.copytree(outputs["custom-code"], tmp_path / "out")
    update_description(output, {"repository": "me/edited"})
    card = (output / "README.md").read_text(encoding="utf-8")
    assert 'pipeline("text-generation", "me/edited", trust_remote_code=True)' in card
    assert '"."' not in card
    before, after = read_manifest(outputs["custom-code"]), read_manifest(output)
    changed = {name for name in after["files"] if after["files"][name] != before["files"][name]}
    assert changed == {"README.md"}
    assert json.loads((output / "sea_export.json").read_text(encoding="utf-8"))["repository"] == "me/edited"


def test_multimodal_models_are_loaded_by_their_own_class(outputs: dict[str, Path]) -> None:
    manifest = read_manifest(outputs["merged"])
    manifest["base"]["model_class"] = "AutoModelForImageTextToText"
    card = model_card(manifest)
    assert 'model = AutoModelForImageTextToText.from_pretrained(".")' in card
    assert "text-generation" not in card


# What it says


def test_it_tells_what_was_edited_and_how_to_repeat_it(outputs: dict[str, Path], edit: SpectralEdit) -> None:
    for form, output in outputs.items():
        card = (output / "README.md").read_text(encoding="utf-8")
        assert "the output of the MLP blocks of layers 1-3, counted from 0" in card
        for target in edit.targets:
            (layer,) = edit.layers[target]
            squares = layer.positive_values.double().square()
            kept = layer.positive.shape[1]
            share = float(squares[:kept].sum() / squares.sum())
            assert share >= 0.7
            assert f"| {target} | {kept} ({share:.2%}) |" in card, form
            assert f"| 1 | {layer.relative_change:.1%} |" in card
        assert "sea-export reproduce sea_export.json OUTPUT --base BASE --demonstrations FILE" in card
        assert "Qiu, Yifu" in card
        assert "{{" not in card
        assert "{%" not in card
        assert not re.search("\n\n\n", card)
        assert card.index("## Layers") > card.index("## Citation"), "the longest table is the last"


@pytest.mark.parametrize("form", ["merged", "custom-code"])
def test_a_converted_base_is_not_told_to_be_as_it_was(form: str, outputs: dict[str, Path]) -> None:
    manifest = read_manifest(outputs[form])
    as_it_was = {"merged": "wherever the original loads", "custom-code": "as they were"}[form]
    assert as_it_was in " ".join(model_card(manifest).split())
    for change in ({"name": "model.Q4_1.gguf"}, {"dequantized": True}):
        card = model_card({**manifest, "base": {**manifest["base"], **change, "dtype": "bfloat16"}})
        assert "converted to bfloat16" in card
        assert as_it_was not in " ".join(card.split())
    assert "# model.Q4_1, spectrally edited" in model_card(
        {**manifest, "base": {**manifest["base"], "name": "model.Q4_1.gguf"}}
    )


def test_figures_stand_in_the_card_with_intervals(outputs: dict[str, Path]) -> None:
    card = model_card({**read_manifest(outputs["merged"]), "evaluation": EVALUATION})
    shown = "| truthfulqa | MC1 (%) | higher | 25.0 [24.0, 26.0] | 25.0 [24.0, 26.0] | +0.0 [-1.0, +1.0] | 0.5 |"
    assert f"{shown} no measurable gain |" in card
    assert "| bbq | Age: accuracy (%) |" in card
    assert "Damage was not measured" in card
    damage = {"benchmark": "damage", "rows": 9, "figures": [figure("KL from the base", "nats", 0.1)]}
    evaluation = {**EVALUATION, "benchmarks": [*EVALUATION["benchmarks"], damage]}
    assert "Damage was not measured" not in model_card({**read_manifest(outputs["merged"]), "evaluation": evaluation})


def test_the_digests_hold_after_figures_were_recorded(outputs: dict[str, Path], tmp_path: Path) -> None:
    output = shutil.copytree(outputs["merged"], tmp_path / "out")
    (output / "notes.txt").write_text("somebody's own", encoding="utf-8")
    update_description(output, {"evaluation": EVALUATION})
    digests = read_manifest(output)["files"]
    assert digests == {name: file_digest(output / name) for name in digests}
    assert "notes.txt" not in digests
    assert digests["README.md"] != read_manifest(outputs["merged"])["files"]["README.md"]


# The template


@pytest.mark.slow
def test_a_wheel_holds_the_template(tmp_path: Path) -> None:
    template = PROJECT / "sea_export" / "data" / "model_card.md"
    assert (PROJECT / "model_cards" / "template.md").read_bytes() == template.read_bytes()
    source = tmp_path / "source"
    shutil.copytree(PROJECT / "sea_export", source / "sea_export", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / file, source / file)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert zipfile.ZipFile(wheel).read("sea_export/data/model_card.md") == template.read_bytes()
