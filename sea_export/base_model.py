"""The base model, wherever it comes from, as a local safetensors checkpoint.

A directory of safetensors is used as it is. Whatever else MODEL may name (a Hub id, a directory of PyTorch
pickles, a GGUF file) is downloaded or converted first, so that everything after this module has one form to
deal with.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sea_export.checkpoint import (
    INDEX,
    OTHER_FORMAT_FILES,
    OTHER_FORMAT_FOLDERS,
    WEIGHTS,
    Checkpoint,
    files_to_copy,
)
from sea_export.digest import file_digest
from sea_export.errors import InputError

__all__ = ["BaseModel", "resolve_base", "weight_digests"]

PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""The names to drop where an output head and the embedding are one tensor: readers look for the embedding's."""


@dataclass(frozen=True)
class BaseModel:
    """A base model that is at hand.

    Attributes:
        name: the Hub id, or the last component of a local path: nothing that is written names a local path.
        revision: the commit hash that a Hub id resolved to, None for local models.
        checkpoint: its weights and files.
        location: what transformers loads it by: a Hub id or the absolute path of a directory, None for a GGUF file.
            It is written nowhere but into adapters, which cannot load without their base.
    """

    name: str
    revision: str | None
    checkpoint: Checkpoint
    location: str | None


@contextmanager
def resolve_base(
    model: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    staging: Path | None = None,
) -> Iterator[BaseModel]:
    """Make the model that `model` names available as a safetensors checkpoint.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        dtype: what the weights of a GGUF file are unpacked to (bfloat16 if None). Other models keep their own.
        staging: the directory for a temporary conversion, the system's if None. The conversion is removed at
            the end of the context; the base itself is never written to.

    Yields:
        the base model.

    Raises:
        InputError: `model` names nothing that can be used; the message says what to do about it.
    """
    path = Path(model).expanduser()
    location: str | None
    if not path.exists():
        path = _download(model, revision)
        name, commit, location = model, path.name, model
    elif revision is not None:
        raise InputError(f"A revision belongs to a Hub id, and {model} is a local path; leave the revision out.")
    else:
        name, commit, location = path.resolve().name, None, str(path.resolve()) if path.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="sea-export-base-", dir=staging) as temporary:
        checkpoint = Checkpoint.open(_as_safetensors(path, Path(temporary), dtype or torch.bfloat16))
        if not (checkpoint.directory / "config.json").is_file():
            raise InputError(f"{model} has no config.json: it holds weights, but does not say of which model.")
        yield BaseModel(name, commit, checkpoint, location)


def weight_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of every weight file, in hexadecimal, by file name."""
    return {file: file_digest(checkpoint.directory / file) for file in checkpoint.weight_files}


def _as_safetensors(path: Path, temporary: Path, dtype: torch.dtype) -> Path:
    """`path` itself if it is a safetensors checkpoint, else `temporary` with the converted model in it."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is a file, but not a .gguf file; name the directory of the model instead.")
        _unpack_gguf(path, temporary, dtype)
        return temporary
    if _has_safetensors(path):
        return path
    if (path / PICKLE).is_file() or (path / PICKLE_INDEX).is_file():
        _convert_pickles(path, temporary)
        return temporary
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path} holds an adapter, not a model; name a model that the adapter was merged into.")
    gguf = next(path.glob("*.gguf"), None)
    if gguf is not None:
        raise InputError(f"{path} is a directory of GGUF files; name the file itself, for example {gguf.name}.")
    raise InputError(f"{path} holds no model weights: neither {WEIGHTS} nor {PICKLE}, nor an index of shards.")


def _has_safetensors(directory: Path) -> bool:
    config = directory / "config.json"
    return (
        (directory / WEIGHTS).is_file()
        or (directory / INDEX).is_file()
        or (config.is_file() and b'"transformers_weights"' in config.read_bytes())
    )


# PyTorch pickles


def _convert_pickles(directory: Path, destination: Path) -> None:
    """Write the model of `directory`, whose weights are pickled, to `destination` as safetensors."""
    from huggingface_hub import save_torch_state_dict

    files = [PICKLE]
    if not (directory / PICKLE).is_file():
        try:
            weight_map = json.loads((directory / PICKLE_INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{directory / PICKLE_INDEX} is not an index of shards.") from error
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= _load_pickle(directory / file)
    copied, _ = files_to_copy(directory)
    for file in copied:
        (destination / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory / file, destination / file)
    try:
        heads = [name for name in state if name.endswith(OUTPUT_HEADS)]
        save_torch_state_dict(state, destination, shared_tensors_to_discard=heads)
    except RuntimeError as error:
        raise InputError(f"The weights of {directory} cannot be stored as safetensors: {error}") from error


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one pickled file, mapped into memory where its format allows, without running any code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} needs code to be run to be read, which could do anything, or it is damaged; "
            "use a copy of the model in safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is missing or damaged; download it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a model's weights: it is not a map from names to tensors.")
    return state


# GGUF


def _unpack_gguf(gguf: Path, destination: Path, dtype: torch.dtype) -> None:
    """Write the model in the file `gguf` to `destination`, its weights unpacked to `dtype`, with its tokenizer."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"Reading {gguf.name} needs the gguf package: pip install sea-export[gguf].")
    with open(gguf, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"{gguf} is not a GGUF file, whatever its name says; download it again.")
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory, file = str(gguf.parent), gguf.name
    # Releases that can keep weights packed have to be told not to; the others always unpack.
    unpack = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    try:
        config = AutoConfig.from_pretrained(directory, gguf_file=file)
        # `torch_dtype` is the one name of this option that all supported releases understand.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            gguf_file=file,
            config=config,
            torch_dtype=dtype,
            quantization_config=unpack,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=file, config=config)
    except (ValueError, LookupError, NotImplementedError, OSError, struct.error) as error:
        raise InputError(f"transformers cannot load {gguf.name}: {_first_line(error)}") from error
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
    plain.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    _make_portable(destination)


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


# The Hub


def _download(model: str, revision: str | None) -> Path:
    """The snapshot directory, named after its commit, of the Hub model `model`."""
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import validate_repo_id

    not_wanted = [*OTHER_FORMAT_FILES, *(f"{folder}/*" for folder in OTHER_FORMAT_FOLDERS)]
    try:
        validate_repo_id(model)
        snapshot = Path(snapshot_download(model, revision=revision, ignore_patterns=not_wanted))
        if not _has_safetensors(snapshot):
            snapshot_download(model, revision=snapshot.name, allow_patterns=["pytorch_model*.bin", PICKLE_INDEX])
    except errors.HFValidationError as error:
        raise InputError(
            f"{model} is neither a directory, nor a .gguf file, nor a Hub id (name or org/name)."
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"Access to {model} has to be asked for: accept its terms on its page of the Hub, then log in with "
            "`hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"There is no directory {model} here and no such model on the Hub; check the name, and log in with "
            "`hf auth login` if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{model} has no revision {revision} on the Hub; check the branch, tag or commit.") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"There is no directory {model} here, and the Hub cannot be asked (no connection, or HF_HUB_OFFLINE is "
            "set) while the model is not complete in the local cache; download it first, or name a local copy."
        ) from error
    except (OSError, errors.HTTPError) as error:
        raise InputError(f"Downloading {model} failed ({_first_line(error)}); try again later.") from error
    return snapshot


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
