"""The difference of two models, in whatever form they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.files.nearest_name import missing
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import CheckpointDifference, compare_checkpoints
from sea_export.model.model_files import gguf_part_names

if TYPE_CHECKING:
    from sea_export.model.gguf_diff import GgufDifference

__all__ = ["diff"]


def diff(a: str | Path, b: str | Path) -> CheckpointDifference | GgufDifference:
    """Finds which tensors and files of two models differ, and by how much. Neither is loaded as a whole.

    Args:
        a: a directory of safetensors, a `.gguf` file, or a directory with the `.gguf` files of one model.
        b: the same; a `.gguf` file is compared with another one only.

    Raises:
        InputError: one of them is no such model.
        SeaExportError: a file became shorter while it was read.
    """
    for model in (Path(a), Path(b)):
        if not model.exists():
            raise missing(model)
    first, second = _model_file(Path(a)), _model_file(Path(b))
    ggufs = [model for model in (first, second) if model.suffix == ".gguf"]
    if len(ggufs) == 1:
        (other,) = {first, second} - {*ggufs}
        raise InputError(
            f"{other}: it is no .gguf file, and {ggufs[0]} can be compared with such a file only. Give two .gguf "
            "files, or two directories of safetensors."
        )
    if not ggufs:
        return compare_checkpoints(Checkpoint.open(first), Checkpoint.open(second))
    from sea_export.model.gguf_model import check_gguf_package  # with torch, which other checkpoints need not

    check_gguf_package(first)
    from sea_export.model.gguf_diff import compare_gguf

    return compare_gguf(first, second)


def _model_file(model: Path) -> Path:
    """The GGUF file, or the first of its parts, of a directory that holds no other weights; else `model` itself."""
    names = [] if any(model.glob("*.safetensors")) else sorted(file.name for file in model.glob("*.gguf"))
    return model / names[0] if names and names == [*gguf_part_names(names[0])] else model
