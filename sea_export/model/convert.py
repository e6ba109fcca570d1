"""Conversion of models that are not stored as plain safetensors: PyTorch pickles and quantized weights.

GGUF files are converted in `sea_export.model.gguf_model`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError, first_line, refused_by_library
from sea_export.files.reading import check_contained
from sea_export.files.writing import readable_as_new
from sea_export.model.checkpoint import Checkpoint, read_index
from sea_export.model.load_model import (
    auto_classes,
    load_config,
)
from sea_export.model.location import PICKLE, PICKLE_INDEX
from sea_export.model.model_files import files_to_copy
from sea_export.model.pickled_weights import load_pickled_weights
from sea_export.model.pretrained import from_pretrained
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "convert_pickles",
    "copy_files",
    "dequantize",
    "pickled_state",
    "save_converted",
]

_OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""The names to drop where an output head and the embedding are one tensor: programs expect the embedding's name."""


def copy_files(directory: Path, files: Iterable[str], destination: Path) -> None:
    """Copies some files of a directory to the same relative paths in another directory.

    Args:
        directory: the directory to copy from.
        files: paths relative to it.
        destination: the directory to copy to, made if it is missing.
    """
    destination.mkdir(exist_ok=True)
    for file in files:
        (destination / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory / file, destination / file)


# PyTorch pickles


def convert_pickles(directory: Path, destination: Path) -> None:
    """Writes a model with pickled weights as safetensors, with its other files.

    Args:
        directory: the model.
        destination: an existing directory.

    Raises:
        InputError: the pickles are damaged, hold more than weights, or cannot be stored as safetensors.
    """
    from huggingface_hub import save_torch_state_dict

    state = pickled_state(directory)
    copy_files(directory, files_to_copy(directory)[0], destination)
    try:
        heads = [name for name in state if name.endswith(_OUTPUT_HEADS)]
        save_torch_state_dict(state, destination, shared_tensors_to_discard=heads)
    except RuntimeError as error:
        raise InputError(f"{directory}: its weights cannot be stored as safetensors: {first_line(error)}.") from error
    _make_readable(destination)


def pickled_state(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors in all pickles of a model by name, mapped into memory where their format allows.

    Args:
        directory: the model.

    Raises:
        InputError: a file is missing or damaged, or holds more than weights.
    """
    named = None if (directory / PICKLE).is_file() else read_index(directory / PICKLE_INDEX)
    state: dict[str, torch.Tensor] = {}
    for file in [PICKLE] if named is None else sorted(set(named.values())):
        check_contained(directory / file, directory)
        state |= load_pickled_weights(directory / file)
    if named is not None and named.keys() != state.keys():
        name = min(named.keys() ^ state.keys())
        raise InputError(f"{directory}: {PICKLE_INDEX} and the shards differ in {name}. Download the model again.")
    return state


# Quantized weights


def dequantize(directory: Path, destination: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> None:
    """Writes a quantized model with plain weights. Its other files are copied as they are.

    The whole model is in memory during the conversion.

    Args:
        directory: a safetensors checkpoint with quantized weights.
        destination: an existing directory.
        dtype: the dtype of the plain weights.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: the model is not quantized, transformers cannot dequantize it on this machine, or it needs code of
            its own that is not trusted.
    """
    checkpoint = Checkpoint.open(directory)
    remedy = "Choose --format adapter or custom-code, or start from the unquantized model."
    with refused_by_library(f"{directory.name}: transformers cannot dequantize it here", remedy):
        config = load_config(checkpoint, directory.name, trust_remote_code=trust_remote_code)
        method = _to_be_dequantized(config)
        if method is None:
            raise InputError(f"--dequantize: {directory.name} is not quantized. Leave the option out.")
        model = from_pretrained(
            auto_classes(config)[0],
            directory,
            trust_remote_code=trust_remote_code,
            arguments={"config": config, "torch_dtype": dtype},
        )
        if getattr(model, "is_quantized", False):  # some methods can dequantize only after loading
            model.dequantize(dtype)
    save_converted(model.to(dtype), destination)
    copy_files(directory, {*checkpoint.side_files()} - {"config.json", checkpoint.index_file}, destination)
    # The entries of the base's config stay, because older releases may not read what a newer one saves.
    plain = dict(checkpoint.config)
    del plain["quantization_config"]
    for key in {"dtype", "torch_dtype"} & plain.keys():
        plain[key] = dtype_name(dtype)
    (destination / "config.json").write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_be_dequantized(config: PretrainedConfig) -> str | None:
    """The method by which a model is quantized, or None.

    For methods that can dequantize while they load, the config is changed so that they do.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    if "dequantize" in vars(AutoQuantizationConfig.from_dict(settings)):
        config.quantization_config = {**settings, "dequantize": True}
    return str(settings.get("quant_method"))


def save_converted(model: Any, destination: Path) -> None:
    """Saves a model in every process of a job, because each process converts the model on its own disk.

    Args:
        model: the model, in memory.
        destination: an existing directory.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process  # by default only the first process saves
    model.save_pretrained(destination)
    _make_readable(destination)


def _make_readable(directory: Path) -> None:
    """Gives the weight files in a directory the permissions of new files."""
    for file in directory.glob("*.safetensors"):
        readable_as_new(file)
