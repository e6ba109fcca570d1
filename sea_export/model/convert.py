"""Conversion of models that are not stored as plain safetensors: PyTorch pickles, GGUF files, quantized weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError, first_line, refused_by_library
from sea_export.files.reading import check_contained, open_file
from sea_export.files.writing import readable_as_new
from sea_export.model.checkpoint import CARD, Checkpoint, read_index
from sea_export.model.load_model import (
    auto_classes,
    check_numbers,
    check_parameters,
    load_config,
    skeleton,
)
from sea_export.model.location import PICKLE, PICKLE_INDEX
from sea_export.model.model_files import files_to_copy
from sea_export.model.pickled_weights import load_pickled_weights
from sea_export.model.pretrained import from_pretrained
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "convert_pickles",
    "copy_files",
    "dequantize",
    "gguf_config",
    "pickled_state",
    "unpack_gguf",
]

_PARTS_OF_A_MODEL = 100
"""The largest number of files that one GGUF model is split into."""
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


# GGUF


def gguf_config(gguf: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer of the model in a GGUF file, read without its weights.

    Args:
        gguf: the file.

    Raises:
        InputError: it is not a GGUF file, or transformers cannot load such a model from one.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{gguf.name}: the gguf package is needed to read it. Run: pip install sea-export[gguf].")
    with open_file(gguf) as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{gguf}: it has the name of a GGUF file, and is not one. Download it again.")
    from transformers import AutoConfig, AutoTokenizer

    with _alone(gguf) as directory, refused_by_library(f"{gguf.name}: transformers cannot load it"):
        arguments: dict[str, Any] = {"gguf_file": gguf.name}
        config = from_pretrained(AutoConfig, directory, trust_remote_code=False, arguments=arguments)
        arguments["config"] = config
        return config, from_pretrained(AutoTokenizer, directory, trust_remote_code=False, arguments=arguments)


@contextmanager
def _alone(gguf: Path) -> Iterator[Path]:
    """A directory with nothing but the file, because transformers prefers some files beside it to its contents."""
    with tempfile.TemporaryDirectory(prefix="sea-export-gguf-") as directory:
        Path(directory, gguf.name).symlink_to(gguf.resolve())
        yield Path(directory)


def unpack_gguf(gguf: Path, destination: Path, dtype: torch.dtype) -> None:
    """Writes the model in a GGUF file as a safetensors checkpoint, with its tokenizer.

    Args:
        gguf: the file.
        destination: an existing directory.
        dtype: what the weights are unpacked to.

    Raises:
        InputError: it is not a GGUF file, is damaged or incomplete, or transformers cannot load such a model from one.
    """
    import transformers
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    config, tokenizer = gguf_config(gguf)
    with refused_by_library(f"{gguf.name}: the gguf package cannot read it"):
        sizes = [int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors]
    check_numbers(config.to_dict(), gguf.name, len(sizes))
    # The limit is high, because tied weights are stored once or twice, and because one part of a split model must get
    # the message below, which says what to do.
    check_parameters(skeleton(config), gguf.name, _PARTS_OF_A_MODEL * sum(sizes), f"{sum(sizes)} values")
    # Releases that can keep weights packed have to be told to unpack. The others always unpack.
    unpack = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    # All supported releases understand this option under the name `torch_dtype`.
    with (
        _alone(gguf) as directory,
        refused_by_library(f"{gguf.name}: transformers cannot load it"),
        _switched_progress_bar(),
    ):
        loaded = from_pretrained(
            AutoModelForCausalLM,
            directory,
            trust_remote_code=False,
            arguments={
                "gguf_file": gguf.name,
                "config": config,
                "torch_dtype": dtype,
                "quantization_config": unpack,
                "output_loading_info": True,
            },
        )
    packed, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"{gguf.name}: it lacks weights that its model needs, such as {min(report['missing_keys'])}. If the model "
            "is split over several files, join them with llama.cpp's llama-gguf-split --merge."
        )
    # The loaded model counts as quantized, which cannot be saved. A model of the plain config can.
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path  # the title of the GGUF file, which would be saved as an entry of the config
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
    """Saves a model in every process of a job, because each process converts the model on its own disk."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process  # by default only the first process saves
    model.save_pretrained(destination)
    _make_readable(destination)


def _make_readable(directory: Path) -> None:
    """Gives the weight files in a directory the permissions of new files."""
    for file in directory.glob("*.safetensors"):
        readable_as_new(file)


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
    _save(model.to(dtype), destination)
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
