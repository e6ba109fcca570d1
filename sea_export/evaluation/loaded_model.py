"""The models that can be evaluated: bases, and exports of every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sea_export.errors import InputError
from sea_export.evaluation.gguf_exports import gguf_of_export
from sea_export.model.adapter_files import ADAPTER_CONFIG, base_of_adapter, check_adapter_files
from sea_export.model.base import Base, open_base
from sea_export.model.compute_dtype import compute_dtype
from sea_export.model.load_model import choose_device, parse_dtype
from sea_export.model.pretrained import put_adapter_on
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoadedModel", "check_loadable", "open_loaded_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weight_digests: Callable[[], Mapping[str, str]]
    """Gives SHA-256 of every weight file of it, or of the base of an adapter, by file name."""


@contextmanager
def open_loaded_model(model: str, run: RunOptions) -> Iterator[LoadedModel]:
    """Loads a model as a whole.

    Args:
        model: a Hub id, a directory (also the directory of an adapter, which is applied to the base that it names), or
            a `.gguf` file, or the directory of an export that is one.
        run: how it is opened. Its revision counts for a Hub id only.

    Yields:
        the model.

    Raises:
        InputError: it cannot be loaded.
    """
    if run.layerwise:
        raise InputError(f"--layerwise: {model} has to be in memory as a whole for this. Leave --layerwise out.")
    device = choose_device(run.device)
    adapter, name = _adapter_and_base(model)
    with _opened(name, run) as base:
        dtype = parse_dtype(run.dtype) or compute_dtype(base, torch.device(device))
        loaded = base.load_model(dtype=dtype, device=device, device_map=run.device_map)
        if adapter is not None:
            put_adapter_on(loaded, adapter)
        name = base.name if adapter is None else adapter.resolve().name
        yield LoadedModel(name, loaded, base.tokenizer, lambda: base.weight_digests)


def check_loadable(model: str, run: RunOptions) -> None:
    """Raises InputError if a name is that of no model that can be loaded. It is downloaded, but not loaded.

    Args:
        model: see `open_loaded_model`.
        run: see `open_loaded_model`.
    """
    _, name = _adapter_and_base(model)
    if Path(name).suffix.lower() == ".gguf" and Path(name).expanduser().is_file():
        return  # only its conversion, which takes long, would tell more
    with _opened(name, run) as base:
        _ = base.config  # raises for one that cannot be loaded


def _adapter_and_base(model: str) -> tuple[Path | None, str]:
    """The directory of an adapter and the name of its base; None and the name itself if it is no adapter."""
    directory = Path(model).expanduser()
    if not (directory / ADAPTER_CONFIG).is_file():
        return None, gguf_of_export(model)
    check_adapter_files(directory)
    return directory, base_of_adapter(directory)


@contextmanager
def _opened(model: str, run: RunOptions) -> Iterator[Base]:
    """The base of a name. It is dequantized if that is asked for and it is quantized."""
    with ExitStack() as stack:

        def opened(*, dequantize: bool) -> Base:
            base = open_base(
                model,
                revision=None if Path(model).expanduser().exists() else run.revision,
                dtype=parse_dtype(run.dtype),
                dequantize=dequantize,
                trust_remote_code=run.trust_remote_code,
            )
            return stack.enter_context(base)

        base = opened(dequantize=False)
        yield opened(dequantize=True) if run.dequantize and base.is_quantized else base
