"""Conversion of models that are not stored as plain safetensors: PyTorch pickles, GGUF files, quantized weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError
from sea_export.files.reading import check_contained, open_file
from sea_export.model.checkpoint import CARD, Checkpoint, read_index
from sea_export.model.load_model import check_numbers, check_parameters, refused_by_library, skeleton
from sea_export.model.model_files import files_to_copy
from sea_export.model.pickled_weights import load_pickled_weights
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "PICKLE",
    "PICKLE_INDEX",
    "convert_pickles",
    "copy_files",
    "dequantize",
    "gguf_config",
    "pickled_state",
    "unpack_gguf",
]

PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_PARTS_OF_A_MODEL = 100
"""So many files at most is a GGUF model split over."""
_OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""The names to drop where an output head and the embedding are one tensor: readers look for the embedding's."""


def copy_files(directory: Path, files: Iterable[str], destination: Path) -> None:
    """Copies files of a directory, named by their paths within it, to the same paths within another."""
    destination.mkdir(exist_ok=True)
    for file in files:
        (destination / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory / file, destination / file)


# PyTorch pickles


def convert_pickles(directory: Path, destination: Path) -> None:
    """Write the model of `directory`, whose weights are pickled, to `destination` as safetensors."""
    from huggingface_hub import save_torch_state_dict

    state = pickled_state(directory)
    copy_files(directory, files_to_copy(directory)[0], destination)
    try:
        heads = [name for name in state if name.endswith(_OUTPUT_HEADS)]
        save_torch_state_dict(state, destination, shared_tensors_to_discard=heads)
    except RuntimeError as error:
        raise InputError(f"The weights of {directory} cannot be stored as safetensors: {error}") from error


def pickled_state(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of all pickles of a model by name, mapped into memory where their format allows."""
    named = None if (directory / PICKLE).is_file() else read_index(directory / PICKLE_INDEX)
    state: dict[str, torch.Tensor] = {}
    for file in [PICKLE] if named is None else sorted(set(named.values())):
        check_contained(directory / file, directory)
        state |= load_pickled_weights(directory / file)
    if named is not None and named.keys() != state.keys():
        name = min(named.keys() ^ state.keys())
        raise InputError(f"{directory}: {PICKLE_INDEX} and the shards differ in {name}; download the model again.")
    return state


# GGUF


def gguf_config(gguf: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer of the model in a GGUF file, read without its weights.

    Raises:
        InputError: it is no GGUF file, or of a model that transformers cannot load from one.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"Reading {gguf.name} needs the gguf package: pip install sea-export[gguf].")
    with open_file(gguf) as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{gguf} is not a GGUF file, whatever its name says; download it again.")
    from transformers import AutoConfig, AutoTokenizer

    directory, file = str(gguf.parent), gguf.name
    with refused_by_library(f"transformers cannot load {gguf.name}"):
        config = AutoConfig.from_pretrained(directory, gguf_file=file)
        return config, AutoTokenizer.from_pretrained(directory, gguf_file=file, config=config)


def unpack_gguf(gguf: Path, destination: Path, dtype: torch.dtype) -> None:
    """Write the model in the file `gguf` to `destination`, its weights unpacked to `dtype`, with its tokenizer."""
    import transformers
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    config, tokenizer = gguf_config(gguf)
    with refused_by_library(f"the gguf package cannot read {gguf.name}"):
        sizes = [int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors]
    check_numbers(config.to_dict(), gguf.name, len(sizes))
    # Tied weights are stored once or twice, and a part of a model is to be told so.
    check_parameters(skeleton(config), gguf.name, _PARTS_OF_A_MODEL * sum(sizes), f"{sum(sizes)} values")
    directory, file = str(gguf.parent), gguf.name
    # Releases that can keep weights packed have to be told not to; the others always unpack.
    unpack = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    # `torch_dtype` is the one name of this option that all supported releases understand.
    with refused_by_library(f"transformers cannot load {gguf.name}"), _switched_progress_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            gguf_file=file,
            config=config,
            torch_dtype=dtype,
            quantization_config=unpack,
            output_loading_info=True,
        )
    packed, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"{gguf.name} lacks weights that its model needs, such as {min(report['missing_keys'])}; "
            "if the model is split over several files, join them with llama.cpp's llama-gguf-split --merge."
        )
    # The loaded model calls itself quantized and refuses to be saved; one built from the plain config does not.
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path  # the title of the GGUF file, which would pass for an attribute of the model
    with torch.device("meta"):
        plain = type(packed)(config)
    plain.load_state_dict(packed.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = packed.generation_config
    _save(plain, destination)
    tokenizer.save_pretrained(destination)
    _make_portable(destination)
    _write_card(gguf, destination)


def _save(model: Any, destination: Path) -> None:
    """Writes a model in every process of a job: each converts for itself, on a disk that may be its own."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process  # transformers has only the first write
    model.save_pretrained(destination)


def _write_card(gguf: Path, directory: Path) -> None:
    """A model card that tells no more than the license and the languages that the file names."""
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
    """Has the progress bar of unpacking obey the switch that all others of transformers obey."""
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
    """Let releases of transformers before 5 read a config and a tokenizer that a later one saved.

    They do not know `rope_parameters` and would silently take their default base frequency instead of the model's,
    and they know the class of a tokenizer that is all in tokenizer.json only by its old name, which later releases
    understand too. What the tokenizer says about how this very load was done is dropped.
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
        # Written out because the old class would add token types, which causal models refuse.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
    for circumstance in ("is_local", "local_files_only"):
        tokenizer.pop(circumstance, None)
    for name, contents in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        text = json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")


# Quantized weights


def dequantize(directory: Path, destination: Path, dtype: torch.dtype) -> None:
    """Write the model of `directory`, whose weights are quantized, to `destination` with plain ones.

    The whole model is in memory meanwhile. Its other files are copied as they are.

    Args:
        directory: a safetensors checkpoint.
        destination: an existing directory.
        dtype: of the plain weights.

    Raises:
        InputError: the model is not quantized, or transformers cannot turn its weights into plain ones here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = Checkpoint.open(directory)
    problem = (
        f"transformers cannot dequantize {directory.name} here: choose --format adapter or custom-code, or start from "
        "the unquantized model"
    )
    with refused_by_library(problem):
        config = AutoConfig.from_pretrained(directory)
        method = _to_be_dequantized(config)
        if method is None:
            raise InputError(f"{directory.name} is not quantized: leave --dequantize out")
        model: Any = AutoModelForCausalLM.from_pretrained(directory, config=config, torch_dtype=dtype)
        if getattr(model, "is_quantized", False):  # those that cannot do it while they load
            model.dequantize(dtype)
    _save(model.to(dtype), destination)
    copy_files(directory, {*checkpoint.side_files()} - {"config.json", checkpoint.index_file}, destination)
    # What a newer transformers writes into a config an older one may not read: the base's own entries stay.
    plain = dict(checkpoint.config)
    del plain["quantization_config"]
    for key in {"dtype", "torch_dtype"} & plain.keys():
        plain[key] = dtype_name(dtype)
    (destination / "config.json").write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_be_dequantized(config: PretrainedConfig) -> str | None:
    """The method by which a model is quantized, or None; asks for plain weights, of methods that can give them."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    if "dequantize" in vars(AutoQuantizationConfig.from_dict(settings)):
        config.quantization_config = {**settings, "dequantize": True}
    return str(settings.get("quant_method"))
