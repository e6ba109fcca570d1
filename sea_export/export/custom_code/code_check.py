"""Checks whether a custom-code export is the base with the edit beside it, and whether its code is sea-export's."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sea_export.export.custom_code.code_plan import BASE_PREFIX, CODE_FILE, CodePlan
from sea_export.export.formats import SIDE_FILES_OF_CONVERTED, TensorCheck
from sea_export.files.reading import open_file, read_json
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import compare_checkpoints, same_layout
from sea_export.model.own_code import other_code

__all__ = ["check_code_tensors", "has_own_code"]

_TOLERANCE = 1e-5
_MAXIMUM_CODE_BYTES = 1_000_000  # a hundred times the size of the code that is written


def has_own_code(directory: Path, plan: CodePlan) -> bool:
    """Whether loading an export runs the code that this version of sea-export writes for it, and no other.

    Args:
        directory: the export.
        plan: the export as it should be.
    """
    try:
        with open_file(directory / CODE_FILE) as stream:
            code = stream.read(_MAXIMUM_CODE_BYTES).decode()
        return (
            other_code(directory) is None
            and _statements(code) == _statements(plan.source)
            and read_json(directory / "config.json") == plan.config
        )
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # deeply nested code raises the last two
        return False


def _statements(source: str) -> str:
    """The statements of a module without its docstring, which names its origin."""
    tree = ast.parse(source)
    return ast.dump(ast.Module(tree.body[ast.get_docstring(tree) is not None :], []))


def check_code_tensors(directory: Path, base: Checkpoint, plan: CodePlan, *, converted: bool = False) -> TensorCheck:
    """Checks that the export holds all tensors of the base as they were, the tensors of the edit, and no others.

    Args:
        directory: the export.
        base: the checkpoint of the base.
        plan: the export as it should be.
        converted: whether the base was converted. Its other files depend on the version of transformers then, and are
            not compared.

    Raises:
        InputError: the directory is not a safetensors checkpoint.
    """
    written = Checkpoint.open(directory)
    difference = compare_checkpoints(base, written)
    problems = []
    changed = {*difference.tensors_changed, *difference.tensors_only_in_a, *difference.tensors_of_other_form}
    if changed:
        problems.append(f"tensors of the base are not as they were: {', '.join(sorted(changed))}")
    if set(difference.tensors_only_in_b) != plan.tensors.keys():
        names = sorted(set(difference.tensors_only_in_b) ^ plan.tensors.keys())
        problems.append(f"tensors that are not the edit's are in the checkpoint, or some of the edit's not: {names}")
    else:
        stored = {name: written.read(name) for name in plan.tensors}
        wrong = [name for name in plan.tensors if not _same(name, stored, plan.tensors)]
        if wrong:
            problems.append(f"stored tensors are not those of the edit: {', '.join(wrong)}")
    moved = [
        file
        for file in (f"{BASE_PREFIX}{name}" for name in base.weight_files)
        if file not in written.weight_files
        or not same_layout(base.directory / file.removeprefix(BASE_PREFIX), directory / file)
    ]
    if moved:
        problems.append(f"files hold their tensors in another order or with other metadata: {', '.join(moved)}")
    rewritten = {"config.json", base.index_file}
    if not converted and (other := difference.not_kept(file for file in base.side_files() if file not in rewritten)):
        problems.append(f"files are not the base's: {', '.join(sorted(other))}")
    return TensorCheck(
        problems=tuple(problems),
        statement=f"{difference.tensors_identical} tensors and {difference.files_identical} other files are the "
        f"base's, byte for byte; {len(difference.tensors_only_in_b)} tensors of the edit stand beside them.",
        changed_tensors=len(difference.tensors_changed),
        identical_tensors=difference.tensors_identical,
        identical_files=difference.files_identical,
        unchecked=(SIDE_FILES_OF_CONVERTED,) if converted else (),
    )


def _same(name: str, stored: Mapping[str, Tensor], planned: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is the planned one, apart from rounding."""
    tensor, expected = stored[name], planned[name]
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        return False
    step, _, own_name = name.rpartition(".")
    if own_name in ("read", "write"):
        # On another processor the two factors may be others with the same product. So the products are compared.
        tensor, expected = (_product(step, tensors) for tensors in (stored, planned))
    return bool((tensor - expected).norm() <= _TOLERANCE * expected.norm())


def _product(step: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The product of the two factors of a step with some random rows."""
    read, write = tensors[f"{step}.read"], tensors[f"{step}.write"]
    rows = torch.randn(4, read.shape[1], generator=torch.Generator().manual_seed(0))
    return (rows @ read.T) @ write
