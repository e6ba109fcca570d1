"""The base model, wherever it comes from, as a local safetensors checkpoint.

A directory of safetensors is used as it is. Everything else that MODEL may name (a Hub id, a directory of PyTorch
pickles, a GGUF file, quantized weights that are to be dequantized) is downloaded or converted first. So all other
modules have to deal with one form only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sea_export.errors import InputError
from sea_export.locks import scratch_directory
from sea_export.model import convert
from sea_export.model.architecture import OutputProjection, find_output_projections
from sea_export.model.base_files import BaseFiles
from sea_export.model.checkpoint import CARD, Checkpoint
from sea_export.model.convert import convert_pickles
from sea_export.model.gguf_model import unpack_gguf
from sea_export.model.load_model import (
    auto_classes,
    check_size,
    load_config,
    load_weights,
    skeleton,
)
from sea_export.model.load_tokenizer import load_tokenizer
from sea_export.model.location import ModelLocation, has_safetensors, locate_model
from sea_export.model.model_files import gguf_part_names
from sea_export.model.stored_dtypes import TORCH_NAMES
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Base", "open_base"]


@dataclass(frozen=True)
class Base:
    """A base model on this machine, and the facts about it. Each fact is found once, when it is first asked for.

    Attributes:
        name: the Hub id, or the last component of a local path, because no output may name a local path.
        revision: the commit hash that a Hub id resolved to, None for local models.
        checkpoint: its weights and files.
        location: what transformers loads it by: a Hub id or the absolute path of a directory; None for a model that
            had to be converted. It is written into adapters only, which cannot load without their base.
        dequantized: whether its weights were quantized, and have been converted to plain ones.
        trust_remote_code: whether code that comes with it may run.
        source: the local directory or file that it was opened from, None for a model on the Hub.
        converted: whether the checkpoint was made when it was opened, from weights in another form.
    """

    name: str
    revision: str | None
    checkpoint: Checkpoint
    location: str | None
    dequantized: bool = False
    trust_remote_code: bool = False
    source: Path | None = None
    converted: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its own directories and files on this machine, into which nothing may be written."""
        return (self.checkpoint.directory, *([] if self.source is None else [self.source]))

    @property
    def gguf(self) -> Path | None:
        """The GGUF file that it was opened from, or the first of its parts; None for a base in another form."""
        return self.source if self.source is not None and self.source.suffix == ".gguf" else None

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config. To change it, make a copy.

        Raises:
            InputError: see `sea_export.model.load_model.load_config`.
        """
        return load_config(self.checkpoint, self.name, trust_remote_code=self.trust_remote_code)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model without its weights (on `meta`), after a check that its size fits the stored weights.

        To change it, make a copy.

        Raises:
            InputError: transformers cannot make a language model of the config, or the weights are another model's.
        """
        model = skeleton(self.config, trust_remote_code=self.trust_remote_code)
        check_size(model, self.checkpoint)
        return model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            InputError: there is none, or it cannot be loaded.
        """
        return load_tokenizer(
            self.checkpoint.directory, self.name, self.config, trust_remote_code=self.trust_remote_code
        )

    @property
    def model_class(self) -> str:
        """The class of transformers that loads it with its language head, such as `AutoModelForCausalLM`."""
        name: str = auto_classes(self.config)[0].__name__
        return name

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that transformers chooses for `auto`: the one in config.json, or that of the first stored float.

        Raises:
            InputError: no weight is a floating-point number.
        """
        config, tensors = self.checkpoint.config, self.checkpoint.tensors.values()
        named = config.get("dtype") or config.get("torch_dtype")
        # Numbers of 8 bits are quantized, and nothing is computed in their dtype.
        floats = [one.dtype for one in tensors if one.dtype.is_floating_point and one.dtype.itemsize > 1]
        if not floats:
            raise InputError(f"{self.name}: none of its weights are floating-point numbers. Give a language model.")
        return getattr(torch, named) if named is not None and named in TORCH_NAMES.values() else floats[0]

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are stored quantized."""
        return bool(getattr(self.config, "quantization_config", None))

    def output_projections(self, targets: Iterable[Target]) -> tuple[OutputProjection, ...]:
        """The output projections of targets, in their order. Each is searched for once.

        Args:
            targets: what is to be edited.

        Raises:
            InputError: see `sea_export.model.architecture.find_output_projections`.
        """
        targets = tuple(targets)
        missing = [target for target in targets if target not in self._projections]
        if missing:
            found = find_output_projections(self.skeleton, missing)
            self._projections.update((projection.target, projection) for projection in found)
        return tuple(self._projections[target] for target in targets)

    @cached_property
    def _projections(self) -> dict[Target, OutputProjection]:
        return {}

    @cached_property
    def files(self) -> BaseFiles:
        """Its files, which are expected to stay as they are from the first use of this property on.

        Raises:
            InputError: see `sea_export.model.model_files.walk_files`.
        """
        files = (*self.checkpoint.weight_files, *self.checkpoint.side_files())
        return BaseFiles(self.checkpoint.directory, files)

    @property
    def weight_digests(self) -> Mapping[str, str]:
        """SHA-256 of every weight file, in hexadecimal, by file name.

        Raises:
            SeaExportError: one of them has changed since the base was opened.
        """
        return self.files.digests(self.checkpoint.weight_files)

    def load_model(
        self, *, dtype: torch.dtype | None = None, device: str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        """The model with its weights, in evaluation mode. Each call loads it again.

        Args:
            dtype: what to compute in; None for the dtype in which it is stored.
            device: `cpu`, `cuda`, `cuda:1`, …
            device_map: a device map of accelerate, such as `auto`, which spreads the model over all devices. `device`
                is then ignored.

        Raises:
            InputError: transformers cannot load it as a causal language model, or the device does not exist.
        """
        _ = self.skeleton  # raises for weights of a wrong size, before they are loaded
        return load_weights(
            self.checkpoint,
            self.name,
            self.config,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=self.trust_remote_code,
        )


@contextmanager
def open_base(
    model: str | ModelLocation,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    staging: Path | None = None,
) -> Iterator[Base]:
    """Make the model that `model` names available as a safetensors checkpoint.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id; or where `locate_model` has found it.
        revision: branch, tag or commit of a Hub id.
        dtype: what the weights of a GGUF file, and dequantized ones, are converted to (bfloat16 if None). Other models
            keep their own dtype.
        dequantize: whether to convert quantized weights to plain ones.
        trust_remote_code: whether code that comes with the model may run.
        staging: the directory for a temporary conversion; the system's if None. The conversion is removed at the end
            of the context. The base itself is never written to.

    Yields:
        the base model.

    Raises:
        InputError: `model` does not name a model that can be used. The message says what to do.
        SeaExportError: it changed while it was converted.
    """
    found = model if isinstance(model, ModelLocation) else locate_model(model, revision)
    path, location = found.path, found.location
    unconverted = BaseFiles(*_own_files(path))
    with scratch_directory("sea-export-converted-", staging or Path(tempfile.gettempdir())) as temporary:
        directory = _as_safetensors(path, temporary / "converted", dtype or torch.bfloat16)
        if dequantize:
            plain = temporary / "dequantized"
            plain.mkdir()
            convert.dequantize(directory, plain, dtype or torch.bfloat16, trust_remote_code=trust_remote_code)
            directory, location = plain, None
        if directory != path and (path / CARD).is_file():
            shutil.copyfile(path / CARD, directory / CARD)  # the license is the same
        unconverted.check()
        checkpoint = Checkpoint.open(directory)
        if (checkpoint.directory / "adapter_config.json").exists():
            raise InputError(
                f"{path}: it holds weights and an adapter, and programs differ in which of them they load. Remove "
                "adapter_config.json, or merge the adapter."
            )
        if not (checkpoint.directory / "config.json").is_file():
            raise InputError(
                f"{path}: it has no config.json, which says of which model its weights are. Give a complete checkpoint."
            )
        base = Base(
            found.name,
            found.revision,
            checkpoint,
            location,
            dequantize,
            trust_remote_code,
            found.source,
            converted=directory != path,
        )
        with base.files:  # raises for a link that leads out of the directory, before anything follows it
            yield base


def _own_files(path: Path) -> tuple[Path, list[str]]:
    """The directory of a model, and the names of its files there, before any of them is read."""
    if path.is_dir():
        return path, [one.name for one in path.iterdir()]
    return path.parent, list(gguf_part_names(path.name))


def _as_safetensors(path: Path, temporary: Path, dtype: torch.dtype) -> Path:
    """`path` itself if it is a safetensors checkpoint, else `temporary`, with the converted model in it."""
    if path.is_file():
        temporary.mkdir()
        unpack_gguf(path, temporary, dtype)
        return temporary
    if has_safetensors(path):
        return path
    temporary.mkdir()
    convert_pickles(path, temporary)
    return temporary
