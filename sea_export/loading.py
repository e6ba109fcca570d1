"""A base model in memory: weights and tokenizer, from a local checkpoint directory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sea_export.base_model import BaseModel

__all__ = [
    "DTYPES",
    "auto_classes",
    "dtype_named",
    "load_config",
    "load_model",
    "load_tokenizer",
    "parse_dtype",
    "quiet_transformers",
]

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


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


def load_config(base: BaseModel, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The base's config.

    Raises:
        InputError: the architecture is unknown to the installed transformers, or needs code of its own that was
            not trusted.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.checkpoint.directory, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"the config of {base.name} cannot be used: {first_line(error)}") from error


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


def load_model(
    base: BaseModel,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The base with its weights, in evaluation mode.

    Args:
        base: the resolved base model.
        dtype: what to compute in; None for the dtype in which it is stored.
        device: `cpu`, `cuda`, `cuda:1`, …
        device_map: `auto` and its like spread the model over all devices, `device` notwithstanding.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: transformers cannot load it as a causal language model, or the device does not exist.
    """
    try:
        model: Any = auto_classes(load_config(base, trust_remote_code=trust_remote_code))[0].from_pretrained(
            base.checkpoint.directory,
            torch_dtype=dtype or "auto",
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
        loaded: PreTrainedModel = (model if device_map else model.to(device)).eval()
        logger.debug("%s is in memory, in %s", base.name, str(loaded.dtype).removeprefix("torch."))
        return loaded
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{base.name} cannot be loaded as a causal language model on {device}: {first_line(error)}"
        ) from error


def load_tokenizer(base: BaseModel, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The base's tokenizer.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base.checkpoint.directory, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"the tokenizer of {base.name} cannot be loaded: {first_line(error)}") from error


def quiet_transformers() -> None:
    """Keeps transformers' own warnings and progress bars off the terminal: what matters is said by ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
