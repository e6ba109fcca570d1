"""A base model in memory: weights and tokenizer, from a local checkpoint directory."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sea_export.errors import InputError, refused_by_library
from sea_export.model.own_code import check_config
from sea_export.model.pretrained import from_config, from_pretrained
from sea_export.model.run_options import DTYPES
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sea_export.model.checkpoint import Checkpoint

__all__ = [
    "auto_classes",
    "check_finite",
    "check_numbers",
    "check_parameters",
    "check_quantizer",
    "check_size",
    "choose_device",
    "dtype_named",
    "is_finite",
    "load_config",
    "load_weights",
    "parse_dtype",
    "quiet_transformers",
    "skeleton",
]

logger = logging.getLogger(__name__)

# Far above what any model has, and low enough to be counted without gigabytes of memory or minutes.
_MAXIMUM_MODULES = 200_000
_MORE_THAN_TENSORS, _LEAST_MAXIMUM = 10, 1000


def parse_dtype(name: str) -> torch.dtype | None:
    """The dtype of a name; None for `auto`, the dtype in which the checkpoint is stored.

    Args:
        name: one of `DTYPES`.

    Raises:
        InputError: it is not one of them.
    """
    if name not in DTYPES:
        raise InputError(f"--dtype: {name!r} is not a known dtype. Choose one of {', '.join(DTYPES)}.")
    return None if name == "auto" else getattr(torch, name)


def choose_device(name: str) -> str:
    """The device that `--device` names: a GPU for `auto`, if there is one, and otherwise the CPU.

    Args:
        name: such as `cuda:1`.

    Raises:
        InputError: there is no such device, or torch computes nothing on it.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: {name!r} is no device. Choose cpu, cuda, cuda:1 or mps.") from error
    # Every kind of device on which models compute has a module in torch that counts the devices.
    count = getattr(getattr(torch, device.type, None), "device_count", lambda: 0)()
    if (device.index or 0) >= count:
        raise InputError(f"--device: this machine has no {name} that torch can use. Choose cpu, or auto.")
    return name


def dtype_named(name: str) -> torch.dtype:
    """The dtype that a manifest names.

    Args:
        name: such as `bfloat16`.

    Raises:
        InputError: torch has no dtype of that name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"sea_export.json: torch has no dtype {name!r}, so the manifest is damaged or torch is too old. Upgrade "
            "torch, or export the edit again."
        )
    return dtype


def load_config(checkpoint: Checkpoint, name: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a checkpoint, as transformers loads it.

    Args:
        checkpoint: the checkpoint.
        name: the name of the model, for messages.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: the installed transformers does not know the architecture, or it needs code of its own that is not
            trusted.
    """
    from transformers import AutoConfig

    check_numbers(checkpoint.config, name, len(checkpoint.tensors))
    if not trust_remote_code:
        check_config(checkpoint.config, name)
    with refused_by_library(f"{name}: transformers cannot use its config"):
        config: PretrainedConfig = from_pretrained(
            AutoConfig, checkpoint.directory, trust_remote_code=trust_remote_code, contents=checkpoint.config
        )
        return config


def check_numbers(config: Mapping[str, Any], name: str, stored: int) -> None:
    """Refuses a number of layers or experts that is far above the number of stored tensors.

    A model with that many modules would fill all memory.

    Args:
        config: the entries of the model's config.
        name: the name of the model, for messages.
        stored: the number of stored tensors.

    Raises:
        InputError: there is such a number. The message names its entry.
    """
    largest = _MORE_THAN_TENSORS * stored + _LEAST_MAXIMUM
    for key, value in config.items():
        if isinstance(value, dict):
            check_numbers(value, name, stored)
        elif isinstance(value, int) and value > largest and re.search("layer|expert", key) and "size" not in key:
            raise InputError(
                f"{name}: its config says that {key} is {value}, and it has {stored} tensors, so the config is another "
                "model's or weights are missing. Download it again."
            )


def skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config without its weights (on the `meta` device): names and structure only.

    Args:
        config: the config, which stays as it is.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: transformers cannot make a language model of the config.
    """
    config = copy.deepcopy(config)
    with (
        refused_by_library(f"{config.model_type}: transformers cannot make a language model of this config"),
        _few_modules(),
        torch.device("meta"),
    ):
        # Plain attention, because the other kinds read values of the mask, which do not exist on `meta`.
        model: PreTrainedModel = from_config(
            auto_classes(config)[0],
            config,
            trust_remote_code=trust_remote_code,
            arguments={"attn_implementation": "eager"},
        )
    return model.eval()


@contextmanager
def _few_modules() -> Iterator[None]:
    """A context in which a model of more modules than any real one is refused, before it fills the memory."""
    count = 0

    def register(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > _MAXIMUM_MODULES:
            raise InputError(
                f"config.json: it describes a model of more than {_MAXIMUM_MODULES} modules, which no model has. "
                "Download it again."
            )

    handle = nn.modules.module.register_module_module_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def check_size(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """`check_parameters` for a checkpoint, which has at least one byte for each parameter, or one bit if quantized.

    Args:
        model: the skeleton of its config.
        checkpoint: the checkpoint.

    Raises:
        InputError: see `check_parameters`.
    """
    stored = sum(tensor.end - tensor.start for tensor in checkpoint.tensors.values())
    most = stored * (8 if checkpoint.config.get("quantization_config") else 1)
    check_parameters(model, checkpoint.directory.name, most, f"{stored} bytes")


def check_parameters(model: PreTrainedModel, name: str, most: int, stored: str) -> None:
    """Refuses a config that describes an empty model or far more than is stored, before that much memory is taken.

    Args:
        model: the skeleton of the config.
        name: the name of the model, for messages.
        most: the largest possible number of parameters.
        stored: how much is stored, in words, for messages.

    Raises:
        InputError: a parameter has no values, or there are more than possible.
    """
    empty = next((key for key, parameter in model.named_parameters() if parameter.numel() == 0), None)
    if empty is not None:
        raise InputError(f"{name}: its config describes a model whose {empty} has no values. Download it again.")
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > most:
        raise InputError(
            f"{name}: its config describes {described} parameters, which do not fit into its {stored} of weights, so "
            "the config is another model's or weights are missing. Download it again."
        )


def auto_classes(config: PretrainedConfig) -> tuple[Any, ...]:
    """The classes of transformers that load a model with its language head. Each of them can be used.

    Args:
        config: the model's config. A multimodal checkpoint that was saved with all its towers is loaded with them.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    multimodal = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if multimodal is None:
        named = getattr(config, "auto_map", None) or {}  # by the code of a model that transformers does not know
        multimodal_only = "AutoModelForImageTextToText" in named and "AutoModelForCausalLM" not in named
        return (AutoModelForImageTextToText if multimodal_only else AutoModelForCausalLM,)
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
        checkpoint: the checkpoint, after `check_size`.
        name: the name of the model, for messages.
        config: its config. The model gets a copy.
        dtype: what to compute in; None for the dtype in which it is stored.
        device: `cpu`, `cuda`, `cuda:1`, …
        device_map: a device map of accelerate, such as `auto`, which spreads the model over all devices. `device` is
            then ignored.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: transformers cannot load it as a causal language model, or the device does not exist.
    """
    with refused_by_library(f"{name}: it cannot be loaded as a causal language model on {device}"):
        model: Any
        model, report = from_pretrained(
            auto_classes(config)[0],
            checkpoint.directory,
            trust_remote_code=trust_remote_code,
            arguments={
                "config": copy.deepcopy(config),
                "torch_dtype": dtype or "auto",
                "device_map": device_map,
                "output_loading_info": True,
            },
        )
        if report["missing_keys"]:
            raise InputError(
                f"{name}: it lacks weights that its config asks for, such as {min(report['missing_keys'])}, so the "
                "config is another model's or a file is missing. Download it again."
            )
        check_finite(model, name)
        loaded: PreTrainedModel = (model if device_map else model.to(device)).eval()
        logger.debug("%s is in memory, in %s", name, dtype_name(loaded.dtype))
        return loaded


def check_quantizer(config: PretrainedConfig, name: str) -> None:
    """Refuses a quantized model whose weights nothing that is installed can load.

    Transformers makes the same check when it loads the weights.

    Args:
        config: the config of the model, which stays as it is.
        name: the name of the model, for messages.

    Raises:
        InputError: a library or a device is missing, or transformers does not know the kind of quantization.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = copy.deepcopy(getattr(config, "quantization_config", None))
    if settings is None:
        return
    with refused_by_library(f"{name}: its quantized weights cannot be loaded here"):
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(
            device_map=None, weights_only=True
        )


def check_finite(module: nn.Module, name: str) -> None:
    """Refuses weights with values that are infinite or NaN.

    Args:
        module: a model or a part of one. Parameters on the `meta` device are not checked.
        name: the name of the model, for messages.

    Raises:
        InputError: there is such a weight. The message names it.
    """
    for parameter_name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not is_finite(parameter.detach()):
            raise InputError(
                f"{parameter_name}: in {name} it has values that are infinite or not numbers. Download the model again."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values of a tensor are finite.

    Args:
        tensor: of any floating dtype and shape.
    """
    if tensor.itemsize == 1:  # torch has no aminmax for floats of 8 bits
        tensor = tensor.float()
    # The smallest and the largest value show it, and both are NaN if any value is.
    return tensor.numel() == 0 or bool(torch.stack(tensor.aminmax()).isfinite().all())


def quiet_transformers() -> None:
    """Turns off the warnings and progress bars of transformers, because this program has its own."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
