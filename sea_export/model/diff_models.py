"""The difference of two models, in whatever form they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import CheckpointDifference, compare_checkpoints

if TYPE_CHECKING:
    from sea_export.model.gguf_diff import GgufDifference

__all__ = ["diff"]


def diff(a: str | Path, b: str | Path) -> CheckpointDifference | GgufDifference:
    """Finds which tensors and files of two models differ, and by how much. Neither is loaded as a whole.

    Args:
        a: a directory of safetensors, or a `.gguf` file.
        b: the same; a `.gguf` file is compared with another one only.

    Raises:
        InputError: one of them is no such model.
        SeaExportError: a file became shorter while it was read.
    """
    first, second = Path(a), Path(b)
    if ".gguf" not in (first.suffix, second.suffix):
        return compare_checkpoints(Checkpoint.open(first), Checkpoint.open(second))
    from sea_export.model.gguf_model import check_gguf_package  # with torch, which other checkpoints need not

    check_gguf_package(first)
    from sea_export.model.gguf_diff import compare_gguf

    return compare_gguf(first, second)
