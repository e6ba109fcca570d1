"""A real model, SmolLM2-135M-Instruct in bfloat16: its edit comes back from its export, and so does the export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.targets import Target
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.low_rank_edits import low_rank, matrix_of

pytestmark = [pytest.mark.real, pytest.mark.slow]

TARGETS = [Target(12, "mlp"), Target(12, "attention"), Target(25, "mlp")]
RANK = 4
MAPS = {"mlp": "mlp.down_proj", "attention": "self_attn.o_proj"}


@pytest.fixture(scope="module")
def edit() -> SpectralEdit:
    return low_rank(TARGETS, RANK, size=576, scale=1.6)


@pytest.fixture(scope="module")
def exported(edit: SpectralEdit, smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("smollm2-export") / "out"
    sea_export.save(edit, smollm2_directory, output, verify=False)
    return output


def logits(directory: Path, text: str, tokenizer_of: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(tokenizer_of)(text, return_tensors="pt")
    with torch.inference_mode():
        return model(**tokens).logits


def test_the_edit_comes_back_and_becomes_an_adapter(
    edit: SpectralEdit, exported: Path, smollm2_directory: Path, tmp_path: Path
) -> None:
    found = sea_export.extract(smollm2_directory, exported)
    assert found.edit.targets == tuple(sorted(TARGETS))
    for one in found.writers:
        assert one.rank == RANK
        assert one.singular_values[RANK] < one.rounding < one.singular_values[RANK - 1]
        # As outputs see it: of directions that outputs hardly have, rounded weights tell little.
        name = f"model.layers.{one.target.layer}.{MAPS[one.target.component]}.weight"
        outputs = Checkpoint.open(smollm2_directory).read(name).double()
        exact, again = (matrix_of(whole.layers[one.target]) @ outputs for whole in (edit, found.edit))
        assert (again - exact).norm() < 0.05 * exact.norm()
    found.edit.save(tmp_path / "edit")
    extracted = SpectralEdit.load(tmp_path / "edit")
    sea_export.save(extracted, smollm2_directory, tmp_path / "adapter", format="adapter", verify=False)
    sea_export.save(edit, smollm2_directory, tmp_path / "exact", format="adapter", verify=False)
    text = "Q: What is the capital of France?\nA:"
    base, expected, adapted = (
        logits(directory, text, smollm2_directory)
        for directory in (smollm2_directory, tmp_path / "exact", tmp_path / "adapter")
    )
    change = (expected - base).norm()
    assert change > 0.005 * base.norm()
    assert (adapted - expected).norm() < 0.05 * change


def test_the_export_comes_again_from_a_small_patch(exported: Path, smollm2_directory: Path, tmp_path: Path) -> None:
    made = sea_export.make_patch(exported, tmp_path / "p.safetensors", base=smollm2_directory)
    assert len(made.folded) == len(TARGETS)
    assert made.stored == ()
    assert made.size < made.output_bytes / 1000
    sea_export.apply_patch(smollm2_directory, tmp_path / "p.safetensors", tmp_path / "again")
    assert contents_of(tmp_path / "again") == contents_of(exported)
