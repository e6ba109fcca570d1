"""Header-only checkpoints: a base model with the headers of its weight files, but without the values of its weights.

The files are sparse: they have their full size, but the values take no space on the disk. So everything that needs only
the names, shapes and dtypes of a checkpoint works on a header-only one, whatever the size of the model. For a model on
the Hub only headers and small files are downloaded. Values must not be read from it: they are zeros.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError
from sea_export.locks import scratch_directory
from sea_export.model.base import Base, open_base
from sea_export.model.checkpoint import WEIGHTS, Checkpoint
from sea_export.model.convert import copy_files, pickled_state
from sea_export.model.gguf_model import gguf_config
from sea_export.model.hub_errors import hub_errors_explained
from sea_export.model.load_model import check_quantizer, skeleton
from sea_export.model.location import PICKLE, PICKLE_INDEX
from sea_export.model.model_files import files_to_copy
from sea_export.model.pretrained import from_pretrained
from sea_export.model.safetensors_header import Header, StoredTensor, encode_header
from sea_export.model.stored_dtypes import TORCH_NAMES, stored_name, torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["header_only_base", "write_header_only", "write_header_only_model"]

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name of a tensor -> its shape and dtype."""

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.md")


@contextmanager
def header_only_base(
    model: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    dequantize: bool = False,
    trust_remote_code: bool = False,
) -> Iterator[Base]:
    """Like `sea_export.model.base.open_base`, but no weights are read, converted or downloaded.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        dtype: what the weights of a GGUF file, and dequantized ones, would be converted to (bfloat16 if None).
        dequantize: whether quantized weights would be converted to plain ones.
        trust_remote_code: whether code that comes with the model may run.

    Yields:
        the base model. A directory of safetensors is used as it is, everything else as a header-only checkpoint.

    Raises:
        InputError: see `open_base`.
    """
    path = Path(model).expanduser()
    with scratch_directory("sea-export-headers-", Path(tempfile.gettempdir())) as temporary:
        directory, commit = temporary / "header-only", None
        if not path.exists():
            commit = _header_only_from_hub(model, revision, directory)
        elif path.suffix == ".gguf" and path.is_file():
            _header_only_from_gguf(path, directory, dtype or torch.bfloat16)
        elif _is_pickled(path):
            _header_only_from_pickles(path, directory)
        with open_base(
            str(directory) if directory.exists() else model,
            revision=revision if path.exists() else None,
            trust_remote_code=trust_remote_code,
        ) as base:
            if directory.exists():
                name = path.resolve().name if path.exists() else model
                location = None if path.is_file() else str(path.resolve()) if path.is_dir() else model
                source = path if path.exists() else None
                base = replace(base, name=name, revision=commit, location=location, source=source)
            if dequantize:
                plain = temporary / "plain"
                _header_only_dequantized(base, plain, dtype or torch.bfloat16)
                base = replace(base, checkpoint=Checkpoint.open(plain), location=None, dequantized=True)
            yield base


def write_header_only(file: Path, tensors: Shapes, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a sparse safetensors file with a complete header and zeros for all values.

    Args:
        file: the file to write.
        tensors: the tensors in its header, in this order.
        metadata: the `__metadata__` of its header.
    """
    position, stored = 0, []
    for name, (shape, dtype) in tensors.items():
        end = position + math.prod(shape) * dtype.itemsize
        stored.append(StoredTensor(name, stored_name(dtype), tuple(shape), file.name, position, end))
        position = end
    header = encode_header(Header(0, metadata or {"format": "pt"}, tuple(stored)))
    with open(file, "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + position)


def write_header_only_model(
    directory: Path, config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> None:
    """Writes the config and the header-only weights of a model.

    Args:
        directory: an existing directory.
        config: the config of the model. The class of the model and the dtype are set in it.
        dtype: the dtype of the weights.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: transformers cannot make a language model of the config.
    """
    model = skeleton(config, trust_remote_code=trust_remote_code)
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(directory)
    stored = {name: one for name, one in model.state_dict().items() if name not in _tied(model)}
    write_header_only(directory / WEIGHTS, {name: (tuple(one.shape), dtype) for name, one in stored.items()})


def _tied(model: PreTrainedModel) -> Collection[str]:
    """The names of tied weights, which are stored under another name."""
    if hasattr(model, "all_tied_weights_keys"):
        return model.all_tied_weights_keys
    return (model._tied_weights_keys or ()) if model.config.tie_word_embeddings else ()


def _is_pickled(directory: Path) -> bool:
    pickled = any((directory / name).is_file() for name in (PICKLE, PICKLE_INDEX))
    return pickled and not any(directory.glob("*.safetensors"))


def _header_only_from_gguf(gguf: Path, destination: Path, dtype: torch.dtype) -> None:
    config, tokenizer = gguf_config(gguf)
    tokenizer.save_pretrained(destination)
    write_header_only_model(destination, config, dtype)


def _header_only_from_pickles(directory: Path, destination: Path) -> None:
    copy_files(directory, files_to_copy(directory)[0], destination)
    names: dict[int, str] = {}
    state = pickled_state(directory)  # mapped into memory, so that no values are read
    for name, tensor in state.items():
        names.setdefault(tensor.data_ptr(), name)  # tied weights are stored once
    write_header_only(
        destination / WEIGHTS, {name: (tuple(state[name].shape), state[name].dtype) for name in names.values()}
    )


def _header_only_dequantized(base: Base, destination: Path, dtype: torch.dtype) -> None:
    from transformers import AutoConfig

    trust = base.trust_remote_code
    contents = dict(base.checkpoint.config)
    if contents.pop("quantization_config", None) is None:
        raise InputError(f"--dequantize: {base.name} is not quantized. Leave the option out.")
    check_quantizer(base.config, base.name)
    files = {*base.checkpoint.side_files()} - {"config.json", base.checkpoint.index_file}
    copy_files(base.checkpoint.directory, files, destination)
    (destination / "config.json").write_text(json.dumps(contents), encoding="utf-8")
    config = from_pretrained(AutoConfig, destination, trust_remote_code=trust)
    write_header_only_model(destination, config, dtype, trust_remote_code=trust)


def _dtype(model: str, name: str) -> torch.dtype:
    if name not in TORCH_NAMES:
        raise InputError(f"{model}: a tensor has the dtype {name}, which torch does not have. Choose another model.")
    return torch_dtype(name)


def _header_only_from_hub(model: str, revision: str | None, destination: Path) -> str:
    """Downloads the small files of a Hub model and the headers of its weights. Returns its commit."""
    from huggingface_hub import HfApi, snapshot_download

    with hub_errors_explained(model, revision=revision):
        information: Any = HfApi().model_info(model, revision=revision)
        commit = str(information.sha)
        snapshot_download(model, revision=commit, allow_patterns=[*_SMALL_FILES], local_dir=destination)
        names = sorted(one.rfilename for one in information.siblings)
        files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
        for file in files:
            header = HfApi().parse_safetensors_file_metadata(model, file, revision=commit)
            entries = sorted(header.tensors.items(), key=lambda entry: entry[1].data_offsets)
            shapes = {name: (tuple(entry.shape), _dtype(model, entry.dtype)) for name, entry in entries}
            write_header_only(destination / file, shapes, header.metadata)
    if not files:
        raise InputError(
            f"{model}: it has no safetensors on the Hub, whose headers could be read. Download it and give its "
            "directory."
        )
    return commit
