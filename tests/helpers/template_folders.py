"""Valid folders of every kind, made once a process, and copies of them to be spoilt."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import sea_export
from tests.helpers.adapter_files import write_adapter
from tests.helpers.checkpoint_files import tensors_of_many_dtypes, write_sharded
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit, weight_edit
from tests.helpers.tiny_models import tiny_model, tiny_tokenizer

Kind = Literal["adapter", "checkpoint", "edit", "edit of weights", "model", "output", "weights"]


def template_folder(kind: Kind) -> Path:
    """A valid adapter, sharded checkpoint, edit of outputs or of weights, model, merged output, or model without a
    tokenizer. Read only."""
    return Path(_kept(kind).name)


@contextmanager
def scratch_folder(kind: Kind | None = None) -> Iterator[Path]:
    """An empty folder, or a copy of a template, that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if kind is not None:
            shutil.copytree(template_folder(kind), folder, dirs_exist_ok=True)
        yield Path(folder)


@functools.cache
def _kept(kind: Kind) -> tempfile.TemporaryDirectory[str]:
    """It is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    directory = Path(folder.name)
    if kind == "adapter":
        write_adapter(directory)
    elif kind == "checkpoint":
        write_sharded(directory, tensors_of_many_dtypes())
    elif kind == "edit":
        spectral_edit(MLP_TARGETS).save(directory)
    elif kind == "edit of weights":
        weight_edit().save(directory)
    elif kind == "model":
        tiny_model("llama").save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
    elif kind == "weights":
        tiny_model("llama").save_pretrained(directory)
    else:
        directory.rmdir()
        sea_export.save(spectral_edit(MLP_TARGETS), template_folder("model"), directory, verify=False)
    return folder
