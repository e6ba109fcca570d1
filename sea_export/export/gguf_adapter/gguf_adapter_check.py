"""Checks whether a written GGUF adapter is the edit, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sea_export.export.formats import TensorCheck
from sea_export.export.gguf_adapter.gguf_adapter_plan import GgufAdapterPlan
from sea_export.export.gguf_adapter.llama_cpp_files import AdapterFile, read_adapter_file, read_tensors
from sea_export.export.modelfile import MODELFILE, has_modelfile

__all__ = ["check_gguf_adapter", "check_headers"]

# How far sums of float64 that were added up in another order may be from one another, relative to the largest one.
_ORDER_OF_SUMS = 1e-12


def check_headers(directory: Path, plan: GgufAdapterPlan) -> None:
    """Reads the headers of an adapter.

    Args:
        directory: the adapter.
        plan: what it should hold.

    Raises:
        InputError: a file is missing or damaged.
    """
    for file in plan.files:
        read_adapter_file(directory, file.name)


def check_gguf_adapter(directory: Path, plan: GgufAdapterPlan) -> TensorCheck:
    """Compares a written adapter with the factors and constants of the edit on its base.

    Args:
        directory: the adapter.
        plan: the adapter as it should be, computed again.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    check_headers(directory, plan)
    problems = []
    for file in plan.files:
        if not _has_header(directory, file):
            problems.append(f"{file.name} has other metadata or other tensors than planned")
            continue
        stored = read_tensors(directory, file.name)
        wrong = [name for name, planned in file.tensors.items() if not _is_same(stored[name], planned)]
        if wrong:
            problems.append(f"tensors are not those of the edit: {', '.join(wrong)}")
    if not has_modelfile(directory, plan.modelfile):
        problems.append(f"{MODELFILE} is not as planned")
    count = sum(len(file.tensors) for file in plan.files)
    return TensorCheck(
        problems=tuple(problems),
        statement=f"{count} tensors are those of the edit on its base, computed again: to the last bit, but for one "
        "unit in the last place of float32 where sums were added up in another order.",
        changed_tensors=0,
        identical_tensors=0,
        identical_files=0,
    )


def _has_header(directory: Path, file: AdapterFile) -> bool:
    """Whether a file begins with the planned header, byte by byte, and has nothing after its tensors."""
    path = directory / file.name
    with open(path, "rb") as stream:
        stored = stream.read(len(file.header))
    return stored == file.header and path.stat().st_size == file.size


def _is_same(stored: Tensor, planned: Tensor) -> bool:
    """Whether numbers are the planned ones, or their neighbours in float32."""
    unit = torch.finfo(torch.float32).eps
    return torch.allclose(stored, planned, rtol=unit, atol=_ORDER_OF_SUMS * float(planned.abs().max()))
