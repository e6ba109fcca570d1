"""A base model without its weights: its files and the headers of its weights, with holes in place of the values.

A hole takes no room on the disk. So everything that looks at a checkpoint's names, shapes and dtypes works on an
outline, whatever the size of the model and wherever it is; of a model on the Hub only headers and small files are
downloaded. An outline must not be read for values: they are zeros.
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

from sea_export.errors import InputError, first_line
from sea_export.model.base import Base, open_base
from sea_export.model.checkpoint import WEIGHTS, Checkpoint
from sea_export.model.convert import PICKLE, PICKLE_INDEX, copy_files, gguf_config, pickled_state
from sea_export.model.load_model import skeleton
from sea_export.model.model_files import files_to_copy
from sea_export.model.safetensors_header import DTYPE_NAMES, Header, StoredTensor, encode_header

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["header_only_base", "write_header_only", "write_header_only_model"]

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name of a tensor -> its shape and dtype."""

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
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
    """What `sea_export.model.base.open_base` gives, without a weight being read, converted or downloaded.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        dtype: what the weights of a GGUF file, and dequantized ones, are to be unpacked to (bfloat16 if None).
        dequantize: whether quantized weights are to be made plain ones.
        trust_remote_code: whether code that comes with the model may run.

    Yields:
        the base model; a directory of safetensors is itself, anything else an outline.

    Raises:
        InputError: see `open_base`.
    """
    path = Path(model).expanduser()
    with tempfile.TemporaryDirectory(prefix="sea-export-outline-") as temporary:
        outline, commit = Path(temporary, "outline"), None
        if not path.exists():
            commit = _outline_of_hub(model, revision, outline)
        elif path.suffix == ".gguf" and path.is_file():
            _outline_of_gguf(path, outline, dtype or torch.bfloat16)
        elif _is_pickled(path):
            _outline_of_pickles(path, outline)
        with open_base(
            str(outline) if outline.exists() else model,
            revision=revision if path.exists() else None,
            trust_remote_code=trust_remote_code,
        ) as base:
            if outline.exists():
                name = path.resolve().name if path.exists() else model
                location = None if path.is_file() else str(path.resolve()) if path.is_dir() else model
                base = replace(base, name=name, revision=commit, location=location)
            if dequantize:
                plain = Path(temporary, "plain")
                _outline_dequantized(base, plain, dtype or torch.bfloat16)
                base = replace(base, checkpoint=Checkpoint.open(plain), location=None, dequantized=True)
            yield base


def write_header_only(file: Path, tensors: Shapes, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file of the right size whose header tells of `tensors`, and whose values are a hole.

    Args:
        file: the file to write.
        tensors: what it is to hold, in this order.
        metadata: its `__metadata__`.
    """
    position, stored = 0, []
    for name, (shape, dtype) in tensors.items():
        end = position + math.prod(shape) * dtype.itemsize
        stored.append(StoredTensor(name, dtype, tuple(shape), file.name, position, end))
        position = end
    header = encode_header(Header(0, metadata or {"format": "pt"}, tuple(stored)))
    with open(file, "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + position)


def write_header_only_model(directory: Path, config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Writes what a model of a config has when it is saved: its config, and the outline of its weights.

    Args:
        directory: an existing one.
        config: the model's config; it is told the class of the model, and the dtype.
        dtype: of the weights.
    """
    model = skeleton(config)
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(directory)
    stored = {name: one for name, one in model.state_dict().items() if name not in _tied(model)}
    write_header_only(directory / WEIGHTS, {name: (tuple(one.shape), dtype) for name, one in stored.items()})


def _tied(model: PreTrainedModel) -> Collection[str]:
    """The names of tensors that are stored under another name."""
    if hasattr(model, "all_tied_weights_keys"):
        return model.all_tied_weights_keys
    return (model._tied_weights_keys or ()) if model.config.tie_word_embeddings else ()


def _is_pickled(directory: Path) -> bool:
    pickled = any((directory / name).is_file() for name in (PICKLE, PICKLE_INDEX))
    return pickled and not any(directory.glob("*.safetensors"))


def _outline_of_gguf(gguf: Path, outline: Path, dtype: torch.dtype) -> None:
    config, tokenizer = gguf_config(gguf)
    tokenizer.save_pretrained(outline)
    write_header_only_model(outline, config, dtype)


def _outline_of_pickles(directory: Path, outline: Path) -> None:
    copy_files(directory, files_to_copy(directory)[0], outline)
    names: dict[int, str] = {}
    state = pickled_state(directory)  # mapped: no value is read
    for name, tensor in state.items():
        names.setdefault(tensor.data_ptr(), name)  # tied ones are stored once
    write_header_only(
        outline / WEIGHTS, {name: (tuple(state[name].shape), state[name].dtype) for name in names.values()}
    )


def _outline_dequantized(base: Base, outline: Path, dtype: torch.dtype) -> None:
    from transformers import AutoConfig

    contents = dict(base.checkpoint.config)
    if contents.pop("quantization_config", None) is None:
        raise InputError(f"{base.name} is not quantized: leave --dequantize out")
    files = {*base.checkpoint.side_files()} - {"config.json", base.checkpoint.index_file}
    copy_files(base.checkpoint.directory, files, outline)
    (outline / "config.json").write_text(json.dumps(contents), encoding="utf-8")
    write_header_only_model(outline, AutoConfig.from_pretrained(outline), dtype)


def _outline_of_hub(model: str, revision: str | None, outline: Path) -> str:
    """Downloads the small files of a Hub model and the headers of its weights; gives its commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        information: Any = HfApi().model_info(model, revision=revision)
        commit = str(information.sha)
        snapshot_download(model, revision=commit, allow_patterns=[*_SMALL_FILES], local_dir=outline)
        names = sorted(one.rfilename for one in information.siblings)
        files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
        for file in files:
            header = HfApi().parse_safetensors_file_metadata(model, file, revision=commit)
            entries = sorted(header.tensors.items(), key=lambda entry: entry[1].data_offsets)
            shapes = {name: (tuple(entry.shape), _DTYPES[entry.dtype]) for name, entry in entries}
            write_header_only(outline / file, shapes, header.metadata)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"there is no directory {model} here, and the Hub does not tell of such a model ({first_line(error)}): "
            "check the name and the connection, or log in with `hf auth login`"
        ) from error
    if not files:
        raise InputError(
            f"{model} has no safetensors on the Hub, so that its weights have no headers to look at: download it and "
            "give its directory"
        )
    return commit
