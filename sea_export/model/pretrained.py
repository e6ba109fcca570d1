"""The only place where transformers loads configs, tokenizers and models, and PEFT adapters, from a directory.

Their files may be from anywhere. So what could make a library import or run something is read and refused here before
the library sees it, and every call says whether code that comes with a model may run: without an answer, transformers
asks on the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, refused_by_library
from sea_export.files.reading import read_json_object
from sea_export.model.adapter_files import read_adapter_config, read_adapter_weights
from sea_export.model.own_code import check_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["from_config", "from_pretrained", "put_adapter_on"]


def from_pretrained(
    loader: Any,
    directory: Path,
    *,
    trust_remote_code: bool,
    arguments: Mapping[str, Any] | None = None,
    contents: Mapping[str, Any] | None = None,
) -> Any:
    """What a class of transformers loads from a directory.

    Args:
        loader: the class, such as `AutoConfig` or `AutoTokenizer`.
        directory: the directory.
        trust_remote_code: whether code that comes with the model may run.
        arguments: other arguments of `from_pretrained`. With a `config` among them, config.json is not read.
        contents: those of config.json, if they were read before.

    Raises:
        InputError: without trust, its config names code in a place where transformers would ask for trust again.
        Exception: whatever transformers raises. See `sea_export.errors.refused_by_library`.
    """
    arguments, file = arguments or {}, directory / "config.json"
    if not trust_remote_code and "config" not in arguments and file.is_file():
        check_config(contents or read_json_object(file), directory.name)
    return loader.from_pretrained(str(directory), trust_remote_code=trust_remote_code, **arguments)


def from_config(
    loader: Any, config: PretrainedConfig, *, trust_remote_code: bool, arguments: Mapping[str, Any] | None = None
) -> Any:
    """The model that a class of transformers makes of a config.

    Args:
        loader: the class, such as `AutoModelForCausalLM`.
        config: the config.
        trust_remote_code: whether code that comes with the model may run.
        arguments: other arguments of the class's `from_config`.

    Raises:
        Exception: whatever transformers raises. See `sea_export.errors.refused_by_library`.
    """
    return loader.from_config(config, trust_remote_code=trust_remote_code, **(arguments or {}))


def put_adapter_on(model: PreTrainedModel, directory: Path) -> PeftModel:
    """Puts an adapter on a model in memory, which is changed.

    Args:
        model: the base of the adapter.
        directory: the adapter: `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The model in PEFT's form.

    Raises:
        InputError: it is not a LoRA adapter of which PEFT reads names and numbers only, PEFT cannot put it on this
            model, or its tensors are not those that its config asks for.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = read_adapter_config(directory)
    tensors = read_adapter_weights(directory)
    with refused_by_library(f"{directory.name}: PEFT cannot put it on its base"):
        adapted: Any = get_peft_model(model, LoraConfig.from_peft_type(**{**config, "inference_mode": True}))
        report: Any = set_peft_model_state_dict(adapted, tensors)
    missing = [key for key in report.missing_keys if "lora_" in key]
    if missing or report.unexpected_keys:
        raise InputError(
            f"{directory.name}: {min([*missing, *report.unexpected_keys])} is not both in its weights and in its base "
            "with the adapter on it. Give the base that it was made for."
        )
    adapted.eval()
    return adapted
