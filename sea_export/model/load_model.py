"""A base model in memory: weights and tokenizer, from a local checkpoint directory."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sea_export.errors import InputError, first_line
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sea_export.model.checkpoint import Checkpoint

__all__ = [
    "DTYPES",
    "auto_classes",
    "check_finite",
    "check_numbers",
    "check_parameters",
    "check_size",
    "dtype_named",
    "is_finite",
    "load_config",
    "load_tokenizer",
    "load_weights",
    "parse_dtype",
    "quiet_transformers",
    "refused_by_library",
    "skeleton",
]

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")

# What no model comes near, and what can still be counted through without gigabytes or minutes.
_MAXIMUM_MODULES = 200_000
_MORE_THAN_TENSORS, _LEAST_MAXIMUM = 10, 1000


def parse_dtype(name: str) -> torch.dtype | None:
    """A dtype by name; None for `auto`, the dtype in which the checkpoint is stored."""
    if name not in DTYPES:
        raise InputError(f"--dtype is {name!r}: choose one of {', '.join(DTYPES)}")
    return None if name == "auto" else getattr(torch, name)


def dtype_named(name: str) -> torch.dtype:
    """The dtype that a manifest names. Raises InputError if there is none of that name."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"torch has no dtype {name!r}: the manifest is damaged, or torch is too old")
    return dtype


def load_config(checkpoint: Checkpoint, name: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a checkpoint, as transformers has it.

    Args:
        checkpoint: the checkpoint.
        name: what the model is called.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: the architecture is unknown to the installed transformers, or needs code of its own that was
            not trusted.
    """
    from transformers import AutoConfig

    check_numbers(checkpoint.config, name, len(checkpoint.tensors))
    with refused_by_library(f"the config of {name} cannot be used"):
        config: PretrainedConfig = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=trust_remote_code)
        return config


@contextmanager
def refused_by_library(problem: str) -> Iterator[None]:
    """While a library reads files that somebody else wrote, its error, of whatever kind, says that they are wrong.

    Raises:
        InputError: the problem, and the first line of what the library says.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem}: {first_line(error)}") from error


def check_numbers(config: Mapping[str, Any], name: str, stored: int) -> None:
    """Refuses numbers of layers or experts far beyond the tensors stored, which would take all memory to make.

    Args:
        config: the entries of the model's config.
        name: what the model is called.
        stored: the number of its tensors.

    Raises:
        InputError: there is one; the message names it.
    """
    largest = _MORE_THAN_TENSORS * stored + _LEAST_MAXIMUM
    for key, value in config.items():
        if isinstance(value, dict):
            check_numbers(value, name, stored)
        elif isinstance(value, int) and value > largest and re.search("layer|expert", key) and "size" not in key:
            raise InputError(
                f"the config of {name} says that {key} is {value}, and there are {stored} tensors: it is another "
                "model's, or weights are missing"
            )


def skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config without its weights (on the `meta` device): names and structure only.

    Raises:
        InputError: transformers cannot make a language model of the config.
    """
    config = copy.deepcopy(config)
    with (
        refused_by_library("transformers cannot make a language model of this config"),
        _few_modules(),
        torch.device("meta"),
    ):
        # Plain attention, because the others look at mask values, which do not exist on this device.
        model: PreTrainedModel = auto_classes(config)[0].from_config(
            config, trust_remote_code=trust_remote_code, attn_implementation="eager"
        )
    return model.eval()


@contextmanager
def _few_modules() -> Iterator[None]:
    """Refuses to build a model of more modules than any has, before their number fills the memory."""
    count = 0

    def register(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > _MAXIMUM_MODULES:
            raise InputError(f"the config describes a model of more than {_MAXIMUM_MODULES} modules, which none has")

    handle = nn.modules.module.register_module_module_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def check_size(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """`check_parameters` for a checkpoint: there is at least a byte for each parameter, or, quantized, a bit.

    Args:
        model: the skeleton of its config.
        checkpoint: the checkpoint.
    """
    stored = sum(tensor.end - tensor.start for tensor in checkpoint.tensors.values())
    most = stored * (8 if checkpoint.config.get("quantization_config") else 1)
    check_parameters(model, checkpoint.directory.name, most, f"{stored} bytes")


def check_parameters(model: PreTrainedModel, name: str, most: int, stored: str) -> None:
    """Refuses a config of no size, or of far more than is stored, before anything of that size is made.

    Args:
        model: the skeleton of the config.
        name: what the model is called.
        most: how many parameters there may be.
        stored: how much is stored, in words.

    Raises:
        InputError: a parameter has no values, or there are more than there may be.
    """
    empty = next((key for key, parameter in model.named_parameters() if parameter.numel() == 0), None)
    if empty is not None:
        raise InputError(f"the config of {name} describes a model whose {empty} has no values")
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > most:
        raise InputError(
            f"the config of {name} describes {described} parameters, which its {stored} of weights cannot be: it is "
            "another model's, or weights are missing"
        )


def auto_classes(config: PretrainedConfig) -> tuple[Any, ...]:
    """The classes of transformers that load a model with its language head, of which any does.

    Args:
        config: the model's config. A multimodal checkpoint is loaded as what it was saved as: with all its towers.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    multimodal = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if multimodal is None:
        return (AutoModelForCausalLM,)
    if causal == multimodal:
        return (AutoModelForCausalLM, AutoModelForImageTextToText)
    if causal is None or multimodal in (config.architectures or ()):
        return (AutoModelForImageTextToText,)
    return (AutoModelForCausalLM,)


def load_weights(
    checkpoint: Checkpoint,
    name: str,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype | None,
    device: str,
    device_map: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """The model of a checkpoint with its weights, in evaluation mode.

    Args:
        checkpoint: the checkpoint, found to have the size that its config says (`check_size`).
        name: what the model is called.
        config: its config; a copy of it is the model's.
        dtype: what to compute in; None for the dtype in which it is stored.
        device: `cpu`, `cuda`, `cuda:1`, …
        device_map: `auto` and its like spread the model over all devices, `device` notwithstanding.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: transformers cannot load it as a causal language model, or the device does not exist.
    """
    with refused_by_library(f"{name} cannot be loaded as a causal language model on {device}"):
        model: Any
        model, report = auto_classes(config)[0].from_pretrained(
            checkpoint.directory,
            config=copy.deepcopy(config),
            torch_dtype=dtype or "auto",
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise InputError(
                f"{name} lacks weights that its config asks for, such as {min(report['missing_keys'])}: its "
                "config is another model's, or a file is missing"
            )
        check_finite(model, name)
        loaded: PreTrainedModel = (model if device_map else model.to(device)).eval()
        logger.debug("%s is in memory, in %s", name, dtype_name(loaded.dtype))
        return loaded


def check_finite(module: nn.Module, name: str) -> None:
    """Refuses weights that are infinite or no numbers, with which nothing can be computed.

    Args:
        module: a model or a part of one; what is on the `meta` device is passed over.
        name: what the model is called.

    Raises:
        InputError: there is one; the message names it.
    """
    for parameter_name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not is_finite(parameter.detach()):
            raise InputError(f"{parameter_name} of {name} has values that are infinite or no numbers: it is damaged")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite: so are then the least and the greatest, which NaN takes over."""
    if tensor.itemsize == 1:  # floats of 8 bits, for which torch finds no least
        tensor = tensor.half()
    return tensor.numel() == 0 or bool(torch.stack(tensor.aminmax()).isfinite().all())


def load_tokenizer(
    directory: Path, name: str, config: PretrainedConfig, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Args:
        directory: the checkpoint's.
        name: what the model is called.
        config: the model's, which may decide the tokenizer's class.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with refused_by_library(f"the tokenizer of {name} cannot be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, config=config, trust_remote_code=trust_remote_code
        )
        return tokenizer


def quiet_transformers() -> None:
    """Keeps transformers' own warnings and progress bars off the terminal: what matters is said by ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
