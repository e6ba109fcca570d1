"""A real model, SmolLM2-135M-Instruct in bfloat16: its edit comes back from its export, and so does the export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.targets import Target
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.low_rank_edits import low_rank, matrix_of

pytestmark = [pytest.mark.real, pytest.mark.slow]

TARGETS = [Target(12, "mlp"), Target(12, "attention"), Target(25, "mlp")]
RANK = 4


@pytest.fixture(scope="module")
def edit() -> SpectralEdit:
    return low_rank(TARGETS, RANK, size=576, scale=0.8)


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
        exact = matrix_of(edit.layers[one.target])
        assert (matrix_of(found.edit.layers[one.target]) - exact).norm() < 0.05 * exact.norm()
    found.edit.save(tmp_path / "edit")
    extracted = SpectralEdit.load(tmp_path / "edit")
    sea_export.save(extracted, smollm2_directory, tmp_path / "adapter", format="adapter", verify=False)
    sea_export.save(edit, smollm2_directory, tmp_path / "exact", format="adapter", verify=False)
    text = "Q: What is the capital of France?\nA:"
    base, exact, again = (
        logits(directory, text, smollm2_directory)
        for directory in (smollm2_directory, tmp_path / "exact", tmp_path / "adapter")
    )
    change = (exact - base).norm()
    assert change > 0.02 * base.norm()
    assert (again - exact).norm() < 0.05 * change


def test_the_export_comes_again_from_a_small_patch(exported: Path, smollm2_directory: Path, tmp_path: Path) -> None:
    made = sea_export.make_patch(exported, tmp_path / "p.safetensors", base=smollm2_directory)
    assert len(made.folded) == len(TARGETS)
    assert made.stored == ()
    assert made.size < made.output_bytes / 1000
    sea_export.apply_patch(smollm2_directory, tmp_path / "p.safetensors", tmp_path / "again")
    assert contents_of(tmp_path / "again") == contents_of(exported)
