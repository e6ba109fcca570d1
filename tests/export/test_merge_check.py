"""What verification takes for the fold of a weight: what sums round is allowed, and nothing more."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from sea_export.export.merged.merge_check import check_merge
from sea_export.export.merged.merge_plan import MergePlan
from sea_export.model.checkpoint import Checkpoint

WEIGHT = "model.layers.2.mlp.down_proj.weight"


def problems(model: PreTrainedModel, dtype: torch.dtype, directory: Path, error: float) -> list[str]:
    """What is said of a weight (24, m) that is as folded, but for one element that is `error` times the largest off.

    The fold leaves next to nothing of that element, as where the terms of its sum cancel.
    """
    copy.deepcopy(model).to(dtype).save_pretrained(directory / "base")
    base = Checkpoint.open(directory / "base")
    folded = 2 * base.read(WEIGHT)
    folded[3, 5] = 1e-6 * folded.abs().max()
    shutil.copytree(directory / "base", directory / "out")
    tensors = load_file(directory / "base" / "model.safetensors")
    tensors[WEIGHT] = folded.clone()
    tensors[WEIGHT][3, 5] += error * folded.abs().max()
    save_file(tensors, directory / "out" / "model.safetensors", metadata={"format": "pt"})
    plan = MergePlan({WEIGHT: lambda stored: folded}, {}, {})
    return list(check_merge(directory / "out", base, plan).problems)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 5e-7), (torch.float16, 5e-7), (torch.float32, 1e-15), (torch.bfloat16, 0.0)]
)
def test_what_cancelling_sums_round_is_no_problem(
    dtype: torch.dtype, error: float, llama: PreTrainedModel, tmp_path: Path
) -> None:
    assert problems(llama, dtype, tmp_path, error) == []


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 5e-6), (torch.float16, 1e-2), (torch.float32, 1e-12), (torch.float32, 1e-3)]
)
def test_any_larger_error_is_a_problem(
    dtype: torch.dtype, error: float, llama: PreTrainedModel, tmp_path: Path
) -> None:
    (problem,) = problems(llama, dtype, tmp_path, error)
    assert WEIGHT in problem
