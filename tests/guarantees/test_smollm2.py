"""A real model, SmolLM2-135M-Instruct in bfloat16: fitted, baked, verified, and loaded by another program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sea_export
from sea_export.capture.in_memory import capture
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions
from sea_export.saving import SaveResult

pytestmark = [pytest.mark.real, pytest.mark.slow]

# A program of someone who has never heard of sea-export: importing it is made to fail, as if it were not installed.
OTHER_PROGRAM = """
import sys
sys.modules["sea_export"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
directory = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(directory)
assert model.dtype == torch.bfloat16 and type(model).__name__ == "LlamaForCausalLM"
tokenizer = AutoTokenizer.from_pretrained(directory)
inputs = tokenizer("Q: What is the capital of France?\\nA:", return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1]:]
generate = pipeline("text-generation", directory)
text = generate("Q: What is the capital of France?\\nA:", max_new_tokens=8, do_sample=False)
print(tokenizer.decode(tokens))
assert tokenizer.decode(tokens, skip_special_tokens=True) in text[0]["generated_text"]
"""


@pytest.fixture(scope="module")
def fitted(smollm2_directory: Path) -> SpectralEdit:
    model = AutoModelForCausalLM.from_pretrained(smollm2_directory)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    demonstrations = sea_export.load_demonstrations("builtin:truthfulness", limit=48)
    return sea_export.fit(model, tokenizer, demonstrations, center="linear", explained_variance=0.9)


@pytest.fixture(scope="module")
def saved(fitted: SpectralEdit, smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> SaveResult:
    return sea_export.save(fitted, smollm2_directory, tmp_path_factory.mktemp("smollm2-edited") / "out")


def test_verified_within_the_tolerance_of_bfloat16(saved: SaveResult) -> None:
    figures = saved.verification
    assert figures is not None
    assert figures.dtype == "bfloat16"
    assert figures.fold_error.relative_logit_difference < 1e-4
    assert figures.rounding_error.mean_divergence <= 1e-3
    assert figures.rounding_error.top1_agreement >= 0.99
    assert figures.effect.mean_divergence > 100 * figures.rounding_error.mean_divergence, (
        "the edit outweighs its rounding"
    )
    assert figures.changed_tensors == 18


def test_only_the_edited_tensors_and_the_card_differ(saved: SaveResult, smollm2_directory: Path) -> None:
    base, written = Checkpoint.open(smollm2_directory), Checkpoint.open(saved.output)
    changed = {name for name in base.tensors if not torch.equal(base.read(name), written.read(name))}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(12, 30)}
    for file in base.side_files():
        assert (smollm2_directory / file).read_bytes() == (saved.output / file).read_bytes(), file


def test_loads_where_sea_export_is_not_installed(saved: SaveResult) -> None:
    command = [sys.executable, "-I", "-c", OTHER_PROGRAM, str(saved.output)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip()


def test_capture_equals_separate_passes(smollm2_directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    demonstrations = tokenize(sea_export.load_demonstrations("builtin:fairness", limit=6), tokenizer)
    targets = [Target(layer, "mlp") for layer in (3, 20)]
    captured = capture(model, demonstrations, targets, CaptureOptions(site="residual"))
    for row, item in enumerate(demonstrations):
        passes = {
            "neutral": item.prompt,
            "positive": item.prompt + item.positive,
            "negative": item.prompt + item.negative,
        }
        for kind, tokens in passes.items():
            with torch.inference_mode():
                states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
            for target in targets:
                expected = states[target.layer + 1][0, -1]
                actual = getattr(captured[target], kind)[row]
                assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4
