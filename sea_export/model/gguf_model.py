"""Models in GGUF files: their config and tokenizer, and their conversion to safetensors, which transformers does."""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError, refused_by_library
from sea_export.locks import scratch_directory
from sea_export.model.available_memory import available_memory
from sea_export.model.checkpoint import CARD
from sea_export.model.convert import save_converted
from sea_export.model.load_model import check_numbers, check_parameters, skeleton
from sea_export.model.pretrained import from_pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sea_export.model.gguf_parts import GgufPart

__all__ = ["check_gguf_package", "gguf_config", "unpack_gguf"]

_BIAS_SWITCHES = {"ffn_down.bias": "mlp_bias", "attn_output.bias": "attention_bias"}
"""How the names of biases end, and the config entry with which a model reads them."""
_TIMES_STORED = 4
"""How many times the stored values a model may have. Tied weights are stored once or twice."""
_TIMES_DESCRIBED = 2
"""How many times the values of its model a file may store. Some have tensors that only llama.cpp uses."""
_DEQUANTIZED_BYTES = 4


def check_gguf_package(gguf: Path) -> None:
    """Raises InputError where the gguf package is not installed, which reads a file.

    Args:
        gguf: the file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{gguf.name}: the gguf package is needed to read it. Run: pip install sea-export[gguf].")


def gguf_config(gguf: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer of the model in a GGUF file, read without its weights.

    Args:
        gguf: the file.

    Raises:
        InputError: it is not a GGUF file, or transformers cannot load such a model from one.
    """
    check_gguf_package(gguf)
    from transformers import AutoConfig, AutoTokenizer

    from sea_export.model.gguf_parts import read_parts

    parts = read_parts(gguf)
    with _alone(parts, weights=False) as directory, refused_by_library(f"{gguf.name}: transformers cannot load it"):
        arguments: dict[str, Any] = {"gguf_file": _named(gguf, directory)}
        config = from_pretrained(AutoConfig, directory, trust_remote_code=False, arguments=arguments)
        for switch in _bias_switches(config, parts):
            setattr(config, switch, True)
        arguments["config"] = config
        return config, from_pretrained(AutoTokenizer, directory, trust_remote_code=False, arguments=arguments)


def _bias_switches(config: PretrainedConfig, parts: Sequence[GgufPart]) -> Iterator[str]:
    """The config entries that make a model read all biases of its file. Transformers takes no notice of such biases."""
    names = [tensor.name for part in parts for tensor in part.header.tensors]
    for suffix, switch in _BIAS_SWITCHES.items():
        if getattr(config, switch, None) is False and any(name.endswith(suffix) for name in names):
            yield switch


def _named(gguf: Path, directory: Path) -> str:
    """What transformers is given as the name of a file: its whole path. Of a mere name it takes the file in the current
    folder, if there is one, and not the one in the directory."""
    return str((directory / gguf.name).absolute())


@contextmanager
def _alone(parts: Sequence[GgufPart], *, weights: bool = True) -> Iterator[Path]:
    """A directory with nothing but the file, because transformers prefers some files beside it to its contents.

    Parts are joined to one file, because transformers reads no parts.
    """
    from sea_export.model.gguf_parts import join_parts

    with scratch_directory("sea-export-unpacking-", Path(tempfile.gettempdir())) as directory:
        file = directory / parts[0].path.name
        if len(parts) == 1:
            file.symlink_to(parts[0].path.resolve())
        else:
            join_parts(parts, file, weights=weights)
        yield directory


def unpack_gguf(gguf: Path, destination: Path, dtype: torch.dtype) -> None:
    """Writes the model in a GGUF file as a safetensors checkpoint, with its tokenizer.

    Args:
        gguf: the file.
        destination: an existing directory.
        dtype: what the weights are unpacked to.

    Raises:
        InputError: it is not a GGUF file, is damaged or incomplete, does not fit into memory, or transformers cannot
            load such a model from one.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    from sea_export.model.gguf_parts import read_parts

    config, tokenizer = gguf_config(gguf)
    parts = read_parts(gguf)
    sizes = [math.prod(tensor.shape) for part in parts for tensor in part.header.tensors]
    check_numbers(config.to_dict(), gguf.name, len(sizes))
    model = skeleton(config)
    check_parameters(model, gguf.name, _TIMES_STORED * sum(sizes), f"{sum(sizes)} values")
    _check_stored(model, gguf.name, sizes, dtype)
    # Releases that can keep weights packed have to be told to unpack. The others always unpack.
    unpack = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    # All supported releases understand this option under the name `torch_dtype`.
    with (
        _alone(parts) as directory,
        refused_by_library(f"{gguf.name}: transformers cannot load it"),
        _switched_progress_bar(),
    ):
        loaded = from_pretrained(
            AutoModelForCausalLM,
            directory,
            trust_remote_code=False,
            arguments={
                "gguf_file": _named(gguf, directory),
                "config": config,
                "torch_dtype": dtype,
                "quantization_config": unpack,
                "output_loading_info": True,
            },
        )
    packed, report = loaded
    missing = set(report["missing_keys"])
    if any(getattr(config, switch, False) for switch in _BIAS_SWITCHES.values()):
        # The same config entry adds biases that llama.cpp takes for zero where the file has none.
        for name in [name for name in missing if name.endswith(".bias")]:
            packed.get_parameter(name).data.zero_()
            missing.remove(name)
    if missing:
        raise InputError(
            f"{gguf.name}: it lacks weights that its model needs, such as {min(missing)}. Download it again."
        )
    # The loaded model counts as quantized, which cannot be saved. A model of the plain config can.
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path  # the title of the GGUF file, which would be saved as an entry of the config
    with torch.device("meta"):
        plain = type(packed)(config)
    plain.load_state_dict(packed.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = packed.generation_config
    save_converted(plain, destination)
    tokenizer.save_pretrained(destination)
    _make_portable(destination)
    _write_card(gguf, destination)


def _check_stored(model: PreTrainedModel, name: str, sizes: Sequence[int], dtype: torch.dtype) -> None:
    """Refuses a file with far more values than its model has, or than fit into memory. Transformers unpacks all tensors
    of a file before it looks which of them the model has.

    Args:
        model: the skeleton of the config.
        name: that of the file, for messages.
        sizes: the number of values of each tensor.
        dtype: what the weights are unpacked to.
    """
    described = sum(parameter.numel() for parameter in model.parameters())
    if sum(sizes) > _TIMES_DESCRIBED * described:
        raise InputError(
            f"{name}: it stores {sum(sizes)} values, and its config describes a model of {described} parameters, so "
            "the config is another model's or the file has tensors of no model. Download it again."
        )
    needed = dtype.itemsize * sum(sizes) + _DEQUANTIZED_BYTES * max(sizes)
    free = available_memory(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"{name}: its weights need about {needed / 1e9:.1f} GB of memory when they are unpacked, and "
            f"{free / 1e9:.1f} GB are free. Close other programs, or use a machine with more memory."
        )


def _write_card(gguf: Path, directory: Path) -> None:
    """Writes a model card with the license and the languages that the GGUF file names, and nothing else."""
    from gguf import GGUFReader
    from huggingface_hub import ModelCardData

    fields = GGUFReader(gguf).fields

    def texts(name: str) -> list[str]:
        field = fields.get(f"general.{name}")
        return [] if field is None else [bytes(field.parts[index]).decode("utf-8") for index in field.data]

    license, name, link, languages = (texts(key) for key in ("license", "license.name", "license.link", "languages"))
    metadata = ModelCardData(
        license="".join(license) or None,
        license_name="".join(name) or None,
        license_link="".join(link) or None,
        language=languages or None,
    )
    (directory / CARD).write_text(f"---\n{metadata.to_yaml()}\n---\n", encoding="utf-8")


@contextmanager
def _switched_progress_bar() -> Iterator[None]:
    """A context in which the progress bar of unpacking obeys the switch of all progress bars of transformers."""
    from transformers import modeling_gguf_pytorch_utils as unpacking
    from transformers.utils import logging

    own = getattr(unpacking, "tqdm", None)
    if own is None:
        yield
        return
    unpacking.tqdm = logging.tqdm
    try:
        yield
    finally:
        unpacking.tqdm = own


def _make_portable(directory: Path) -> None:
    """Makes a config and a tokenizer that transformers 5 saved readable for releases before 5.

    Those do not know `rope_parameters`, and would use their default base frequency instead of the model's without a
    warning. And they know the class of a tokenizer in tokenizer.json by its old name only, which later releases
    understand too. Entries about how the tokenizer was loaded here are removed.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # The old class would add token types by default, which causal models refuse.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
    for circumstance in ("is_local", "local_files_only"):
        tokenizer.pop(circumstance, None)
    for name, contents in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        text = json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
