"""What verification takes for the fold of a weight: what sums round is allowed, and nothing more."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sea_export.export.merged.merge_check import check_merge
from sea_export.export.merged.merge_plan import MergePlan
from sea_export.model.checkpoint import Checkpoint

WEIGHT = "model.layers.2.mlp.down_proj.weight"


@dataclass(frozen=True)
class Doubled:
    """A fold whose sums are uncertain by a share of the largest number."""

    error: float

    def __call__(self, stored: Tensor) -> Tensor:
        return 2 * stored

    def roundings(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        exact, reach = 2 * stored.double(), self.error * 2 * float(stored.abs().max())
        return (exact - reach).to(stored.dtype), (exact + reach).to(stored.dtype)


def problems(model: PreTrainedModel, directory: Path, units: int, error: float) -> list[str]:
    """What is said of a weight that is as folded, but for one element that is some units in the last place off."""
    model.save_pretrained(directory / "base")
    base = Checkpoint.open(directory / "base")
    fold = Doubled(error)
    folded = fold(base.read(WEIGHT))
    folded.view(torch.int32)[3, 5] += units
    shutil.copytree(directory / "base", directory / "out")
    tensors = load_file(directory / "base" / "model.safetensors")
    save_file({**tensors, WEIGHT: folded}, directory / "out" / "model.safetensors", metadata={"format": "pt"})
    return list(check_merge(directory / "out", base, MergePlan({WEIGHT: fold}, {}, {})).problems)


@pytest.mark.parametrize(("units", "error"), [(0, 0.0), (0, 1e-16), (1, 1e-6), (-1, 1e-6)])
def test_what_sums_in_another_order_round_is_no_problem(units: int, error: float, llama, tmp_path: Path) -> None:
    assert problems(llama, tmp_path, units, error) == []


@pytest.mark.parametrize("units", [1, -1, 2])
def test_one_unit_in_the_last_place_is_a_problem_where_sums_are_exact(units: int, llama, tmp_path: Path) -> None:
    (problem,) = problems(llama, tmp_path, units, 1e-16)
    assert WEIGHT in problem
