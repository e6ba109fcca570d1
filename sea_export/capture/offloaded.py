"""A model with one decoder layer in memory at a time, read from its checkpoint and converted by transformers.

transformers' loading code turns stored tensors into parameters: for example, it stacks experts that are stored apart
and computed together.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sea_export.capture.layerwise import config_digest
from sea_export.capture.lockstep import HiddenStates
from sea_export.errors import InputError, refused_by_library
from sea_export.model.architecture import decoder_layers, hidden_size
from sea_export.model.available_memory import available_memory
from sea_export.model.base import open_base
from sea_export.model.load_model import (
    auto_classes,
    check_finite,
)
from sea_export.model.memory import unpooled_tensor
from sea_export.model.pretrained import from_config
from sea_export.model.random_weights import with_random_weights
from sea_export.model.stored_names import conversions_of, parameter_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sea_export.model.base import Base
    from sea_export.model.checkpoint import Checkpoint

__all__ = ["StoredModel", "can_load_layers", "check_layers_loadable", "open_layerwise"]

_LOADING_CODE = "transformers.core_model_loading"

# No module has this name.
_NOTHING = "-"

_EMBEDDING, _HEAD, _REST = "embedding", "head", "rest"

# The share of the available memory that hidden states may take before they are kept in files.
_STATES_SHARE = 0.4
# The first layers of a hybrid model, or of one with windows, include layers of every kind.
_TRIAL_LAYERS = 4


class StoredModel:
    """A `sea_export.capture.layerwise.LayerSource` that reads a checkpoint. The protocol says what its methods do."""

    def __init__(
        self,
        base: Base,
        *,
        dtype: torch.dtype | None,
        device: torch.device,
        scratch: Path,
    ) -> None:
        """Builds the model without its weights, and loads what is neither a layer, nor an embedding, nor the head.

        Args:
            base: the base model.
            dtype: what to compute in; None for the dtype in which it is stored.
            device: where layers compute. Everything else is done on the CPU.
            scratch: a directory for hidden states that do not fit into memory.

        Raises:
            InputError: the weights are quantized or do not fit the config, or the installed transformers cannot load
                parts of a model.
        """
        check_layers_loadable(base)
        _ = base.skeleton  # finds weights of another size before any is loaded
        self.layer_device = None if device.type == "cpu" else device
        """Where layers compute, if not on the CPU."""
        self._base, self._checkpoint = base, base.checkpoint
        self._scratch = scratch
        self.device = device
        self.dtype = dtype or base.dtype
        self.model = _empty_model(base.config, self.dtype, trust_remote_code=base.trust_remote_code)
        self._conversions = conversions_of(self.model)
        self._layers = decoder_layers(self.model)[1]
        self._parts = _parts(self.model, base.checkpoint)
        self._load(_REST, torch.device("cpu"))

    def identity(self) -> Mapping[str, Any]:
        weights = sorted(self._base.weight_digests.items())
        return {"files": weights, "dtype": str(self.dtype), "config": config_digest(self.model.config)}

    def trial_model(self) -> PreTrainedModel:
        trial = with_random_weights(self.model)
        name, layers = decoder_layers(trial)
        parent, _, attribute = name.rpartition(".")
        setattr(trial.get_submodule(parent), attribute, layers[:_TRIAL_LAYERS])
        return trial

    def states(self, tokens: int, copies: int) -> HiddenStates:
        size = tokens * copies * hidden_size(self.model.config) * self.dtype.itemsize
        too_large = size > _STATES_SHARE * available_memory(torch.device("cpu"))
        return HiddenStates(self.layer_device, self._scratch if too_large else None)

    def largest_part_bytes(self, dtype: torch.dtype) -> int:
        """The size in bytes of the largest layer, or of the embedding or the head if one is larger.

        Args:
            dtype: the dtype that parameters are counted in.
        """
        modules = (*self._layers, self.model.get_input_embeddings(), self.model.get_output_embeddings())
        counts = [sum(one.numel() for one in module.parameters()) for module in modules if module is not None]
        return max(counts) * dtype.itemsize

    @contextmanager
    def embedding(self) -> Iterator[None]:
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        with self._loaded(_EMBEDDING, embedding, torch.device("cpu"), shared_with=head):
            yield

    @contextmanager
    def layer(self, index: int) -> Iterator[None]:
        with self._loaded(index, self._layers[index], self.device):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """A context in which the language-model head is in memory."""
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        with self._loaded(_HEAD, head, torch.device("cpu"), shared_with=embedding):
            yield

    @contextmanager
    def _loaded(
        self, part: object, module: nn.Module, device: torch.device, shared_with: nn.Module | None = None
    ) -> Iterator[None]:
        self._load(part, device)
        self._share_tied()
        self._check_complete(module)
        for name, buffer in list(module.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, buffer.to(device))
        try:
            yield
        finally:
            for one in filter(None, (module, shared_with)):
                _drop_parameters(one)

    def _load(self, part: object, device: torch.device) -> None:
        """Loads the parameters of a part, in the dtypes that the model declares."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        stored = {name: _StoredTensor(self._checkpoint, name) for name in self._parts[part]}
        plan = LoadStateDictConfig(
            # If a part may stay on the disk, transformers loads one tensor at a time, without threads that need memory.
            device_map={"": device, _NOTHING: "disk"},
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self._conversions,
        )
        with (
            _no_progress_bar(),
            refused_by_library(f"{self._checkpoint.directory.name}: its weights do not fit its config"),
        ):
            report, _ = convert_and_load_state_dict_in_model(self.model, stored, plan)
        if report.mismatched_keys or report.conversion_errors:
            names = ", ".join(sorted({*map(str, report.mismatched_keys), *report.conversion_errors}))
            raise InputError(
                f"{self._checkpoint.directory.name}: its weights do not fit its config ({names}). Get both again."
            )

    def _share_tied(self) -> None:
        """If the model has one tensor under two names, gives both names the tensor that was loaded for one of them."""
        for pair in self.model.all_tied_weights_keys.items():
            loaded = next((one for one in map(self.model.get_parameter, pair) if not one.is_meta), None)
            if loaded is not None:
                for name in pair:
                    owner, _, leaf = name.rpartition(".")
                    setattr(self.model.get_submodule(owner), leaf, loaded)

    def _check_complete(self, module: nn.Module) -> None:
        """Raises InputError if the checkpoint lacks a value of the module, or has one that is not finite."""
        values = (*module.named_parameters(), *module.named_buffers())
        missing = next((name for name, value in values if value.is_meta), None)
        if missing is not None:
            raise InputError(
                f"{self._checkpoint.directory.name}: it lacks {missing} of {type(module).__name__}, or stores it under "
                "an unknown name. Choose --no-layerwise."
            )
        check_finite(module, self._checkpoint.directory.name)


class _StoredTensor:
    """A stored tensor that is read when transformers takes it, in the way it takes slices of safetensors files."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getitem__(self, everything: object) -> Tensor:
        stored = self._checkpoint.tensors[self._name]
        tensor = unpooled_tensor(stored.shape, stored.dtype)
        self._checkpoint.read_into(self._name, tensor.flatten().view(torch.uint8).numpy().data)
        return tensor


def can_load_layers(config: PretrainedConfig) -> bool:
    """Whether a model of this config can be loaded layer by layer."""
    return not getattr(config, "quantization_config", None) and importlib.util.find_spec(_LOADING_CODE) is not None


def check_layers_loadable(base: Base) -> None:
    """Raises InputError for a base that cannot be loaded layer by layer.

    Args:
        base: the base.
    """
    if not can_load_layers(base.config):
        raise InputError(
            f"{base.name}: it cannot be loaded layer by layer, because its weights are quantized or transformers is "
            "older than 5. Choose --no-layerwise."
        )


@contextmanager
def open_layerwise(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    scratch: Path | None = None,
    trust_remote_code: bool = False,
) -> Iterator[StoredModel]:
    """Opens a model with one decoder layer in memory at a time, for `sea_export.fit`.

    Args:
        model: a Hub id, a local directory, or a `.gguf` file.
        revision: its revision on the Hub.
        dtype: the dtype to compute in; None for the dtype in which the model is stored.
        device: where layers compute.
        scratch: a directory for hidden states that do not fit into memory; None for the system's temporary directory.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: there is no such model, or it cannot be loaded layer by layer.
    """
    with open_base(str(model), revision=revision, dtype=dtype, trust_remote_code=trust_remote_code) as base:
        yield StoredModel(
            base, dtype=dtype, device=torch.device(device), scratch=scratch or Path(tempfile.gettempdir())
        )


def _empty_model(config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model with its buffers, which are computed and not stored, and with parameters without values."""
    config = copy.deepcopy(config)
    with torch.device("meta"):
        model: Any = from_config(
            auto_classes(config)[0], config, trust_remote_code=trust_remote_code, arguments={"dtype": dtype}
        )
    # transformers does the same to a model that it loads, for values that no checkpoint stores.
    model._move_missing_keys_from_meta_to_device(set(), {"": "cpu"}, None, None)
    model._initialize_missing_keys(False)
    empty: PreTrainedModel = model.eval()
    return empty


def _drop_parameters(module: nn.Module) -> None:
    for owner in module.modules():
        for leaf, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, leaf, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _parts(model: PreTrainedModel, checkpoint: Checkpoint) -> Mapping[object, tuple[str, ...]]:
    """The names of the stored tensors of each part: layers by number, embedding, head, and the rest."""
    own, names = model.state_dict(), parameter_names(model, checkpoint)
    layers_name, layers = decoder_layers(model)
    prefixes: dict[str, object] = {f"{layers_name}.{index}.": index for index in range(len(layers))}
    module_names = {module: name for name, module in model.named_modules()}
    for module, part in ((model.get_input_embeddings(), _EMBEDDING), (model.get_output_embeddings(), _HEAD)):
        if module is not None:
            prefixes[f"{module_names[module]}."] = part
    parts: dict[object, list[str]] = {part: [] for part in (*prefixes.values(), _REST)}
    for stored in checkpoint.tensors:
        name, _ = names[stored]
        if name in own:
            parts[next((part for prefix, part in prefixes.items() if name.startswith(prefix)), _REST)].append(stored)
    # If the embedding and the head are one tensor, it is stored under one of the names.
    parts[_EMBEDDING] = parts[_EMBEDDING] or parts.get(_HEAD, [])
    parts[_HEAD] = parts.get(_HEAD) or parts[_EMBEDDING]
    return {part: tuple(stored_names) for part, stored_names in parts.items()}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hides the progress bar that transformers shows for every load, because here each layer is a load."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
