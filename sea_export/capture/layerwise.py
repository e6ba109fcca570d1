"""Capture layer by layer: all demonstrations pass through one decoder layer before the next one is needed.

The weights of the layers may come from anywhere, one layer at a time (see `LayerSource`). In a sequential fit the edit
of a target is made as soon as all passes have been read there. It is applied before they go on, so that everything
after it is captured with it. Completions use the keys and values of their prompts as in `sea_export.capture.forward`,
one layer at a time.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from sea_export.capture.activations import Activations
from sea_export.capture.batching import Pass, PassPlan, PrefixCacheMode, plan_passes
from sea_export.capture.forward import cache_arguments, hands_on_caches, input_device, pass_arguments
from sea_export.capture.in_memory import layers_up_to, prompted_items, read_modules
from sea_export.capture.lockstep import END, ForwardHook, HiddenStates, SuspendedPass, advance_together, stops_installed
from sea_export.capture.prefix_cache import prefix_cache_mode
from sea_export.capture.reader import ActivationReader
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.edit.edit_hook import EditHook
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import SeaExportError
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["LayerSource", "ModelInMemory", "TargetReader", "capture_by_layer", "config_digest", "layer_source"]

TargetReader = Callable[[Target, Iterator[tuple[Sequence[int], Activations]]], LayerEdit | None]
"""Called for each target in the order of computation, with its activations and their indices batch by batch. It returns
the edit of the target with which everything after it is captured, or None."""


class LayerSource(Protocol):
    """A model whose parts are in memory only while they are needed."""

    @property
    def model(self) -> PreTrainedModel:
        """The model, with whatever weights are in memory."""

    @property
    def device(self) -> torch.device:
        """Where layers compute."""

    def identity(self) -> Mapping[str, Any]:
        """What tells the model apart from every model that computes anything else, as plain JSON data."""

    def trial_model(self) -> PreTrainedModel:
        """A model of the same kind with all of its weights: itself, or its first layers with random weights."""

    def states(self, tokens: int, copies: int) -> HiddenStates:
        """Where hidden states are kept between layers.

        Args:
            tokens: the number of tokens of all passes.
            copies: how many hidden states each token has at a time.
        """

    def embedding(self) -> AbstractContextManager[None]:
        """A context in which everything that runs before the first layer is in memory."""

    def layer(self, index: int) -> AbstractContextManager[None]:
        """A context in which one decoder layer is in memory."""


@dataclass(frozen=True)
class ModelInMemory:
    """The source of a model that is in memory as a whole. `LayerSource` says what its methods do."""

    model: PreTrainedModel

    @property
    def device(self) -> torch.device:
        return self.model.device

    def identity(self) -> Mapping[str, Any]:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return {
            "weights": digest.hexdigest(),
            "dtype": str(self.model.dtype),
            "config": config_digest(self.model.config),
        }

    def trial_model(self) -> PreTrainedModel:
        return self.model

    def states(self, tokens: int, copies: int) -> HiddenStates:
        return HiddenStates(device=None, directory=None)

    def embedding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def layer(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()


def layer_source(model: PreTrainedModel | LayerSource) -> LayerSource:
    """The source of a model's layers.

    Args:
        model: a model that is in memory as a whole, or a source, which is returned as it is.
    """
    return ModelInMemory(model) if isinstance(model, nn.Module) else model


def config_digest(config: PretrainedConfig) -> str:
    """The SHA-256, in hexadecimal, of everything in a config that decides what the model computes."""
    values = config.to_dict()
    for circumstance in ("_name_or_path", "transformers_version"):
        values.pop(circumstance, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


@torch.no_grad()
def capture_by_layer(
    source: LayerSource,
    demonstrations: Sequence[TokenizedDemonstration],
    projections: Sequence[OutputProjection],
    options: CaptureOptions,
    read: TargetReader,
    *,
    sequential: bool,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Captures all targets, and hands over each one as soon as every pass has been read there.

    Args:
        source: the model; it is put into evaluation mode.
        demonstrations: n of them, tokenized.
        projections: the output projections of the targets to read.
        options: which activations to read.
        read: given the activations, (batch, d) float32 on the target's device. Batches are the same for all targets.
        sequential: whether the edits that `read` returns are applied before the passes go on.
        progress: told the numbers of demonstrations that are done, which add up to n.

    Raises:
        SeaExportError: the layers of the model do not run one after the other.
    """
    model = source.model.eval()
    items = prompted_items(model, demonstrations, options)
    reader = ActivationReader(items, options)
    modules = read_modules(model, projections, options.site)
    trial = cast("PreTrainedModel", source.trial_model().base_model)
    prefix_cache = prefix_cache_mode(trial, items, batch_tokens=options.batch_tokens)
    decoder = cast("PreTrainedModel", model.base_model)
    if prefix_cache is PrefixCacheMode.CACHES and not _can_start_early(decoder, len(decoder_layers(model)[1])):
        prefix_cache = PrefixCacheMode.PASSES
    continues_caches = prefix_cache is PrefixCacheMode.CACHES
    plan = plan_passes(model, items, batch_tokens=options.batch_tokens, prefix_cache=prefix_cache)
    edits: dict[Target, LayerEdit] = {}
    stops: dict[object, tuple[nn.Module, ForwardHook]] = {
        target: (module, _LateEdit(edits, target)) for target, module in modules.items() if sequential
    }
    last = max(target.layer for target in modules)

    def taken(target: Target) -> Iterator[tuple[Sequence[int], Activations]]:
        return ((batch.indices, reader.take(target, batch.indices)) for batch in plan.batches)

    with ExitStack() as stack:
        for target, module in modules.items():
            stack.callback(module.register_forward_hook(reader.hook(target)).remove)
        # A suspended pass holds its embeddings and its hidden state, and inside a layer also a residual and an output.
        states = source.states(_token_count(plan), copies=4 if sequential else 2)
        stack.enter_context(stops_installed(model, states, stops))
        stack.enter_context(layers_up_to(model, last))
        passes = stack.enter_context(_Passes(model, plan, reader, continues_caches=continues_caches))
        steps = _Steps(progress, len(demonstrations), (last + 1) * len(plan.batches))
        with source.embedding():
            stop = passes.advance()
        while stop != END:
            assert isinstance(stop, int)
            layer = stop
            with source.layer(layer):
                stop = passes.advance(steps.done)
                while isinstance(stop, Target):
                    edit = read(stop, taken(stop))
                    if edit is not None:
                        edits[stop] = edit
                    stop = passes.advance()
            if not sequential:
                for target in modules:
                    if target.layer == layer:
                        read(target, taken(target))


class _LateEdit:
    """The forward hook of one target's module. Its edit becomes known while passes wait after the module."""

    def __init__(self, edits: Mapping[Target, LayerEdit], target: Target) -> None:
        self._edits, self._target = edits, target

    def __call__(self, module: nn.Module, inputs: object, output: Any) -> Any:
        if self._target not in self._edits:
            return output
        return EditHook([self._edits[self._target]])(module, inputs, output)


def _token_count(plan: PassPlan) -> int:
    passes = [one for batch in plan.batches for one in batch.passes]
    return sum(len(one.sequences) * one.width for one in passes)


class _Steps:
    """Reports whole demonstrations to a progress callback, although each of them takes many steps."""

    def __init__(self, progress: Callable[[int], None] | None, total: int, steps: int) -> None:
        self._progress, self._total, self._steps = progress, total, steps
        self._taken = self._told = 0

    def done(self) -> None:
        self._taken += 1
        count = self._total * self._taken // self._steps - self._told
        if count and self._progress is not None:
            self._told += count
            self._progress(count)


# Passes, and caches that other passes continue from


def _can_start_early(decoder: PreTrainedModel, layers: int) -> bool:
    """Whether a pass can start before the pass that fills its cache is over.

    Masks are made first, so that the right form of an empty cache must be known.
    """
    from transformers import DynamicCache

    if not hands_on_caches(decoder) or "config" not in inspect.signature(DynamicCache.__init__).parameters:
        return False
    kept = DynamicCache(config=decoder.config).layers
    return len(kept) == layers and all(hasattr(layer, "keys") for layer in kept)


class _Passes(AbstractContextManager["_Passes"]):
    """All passes of a plan, suspended at the same stop, and their caches. The end of the context ends them."""

    def __init__(
        self, model: PreTrainedModel, plan: PassPlan, reader: ActivationReader, *, continues_caches: bool
    ) -> None:
        self._reader = reader
        self._decoder = cast("PreTrainedModel", model.base_model)
        self._device = input_device(model)
        self._shared = plan.shared
        self._batches = [batch.passes for batch in plan.batches]
        every = [*self._shared, *(one for passes in self._batches for one in passes)]
        self._caches: dict[Pass, Any] = {
            one: _cache_of_length(self._decoder, one) if continues_caches else None for one in every
        }
        self._suspended = {one: SuspendedPass(partial(self._call, one)) for one in every}
        self._layer: int | None = None

    def __exit__(self, *_: object) -> None:
        for one in self._suspended.values():
            one.close()

    def _call(self, one: Pass) -> None:
        cache = self._caches[one]
        arguments = pass_arguments(self._decoder, one, self._device)
        output = self._decoder(**arguments, **cache_arguments(self._decoder, cache, fills=cache is not None))
        self._reader.after_pass(one.segments, output)

    def advance(self, batch_done: Callable[[], None] | None = None) -> object:
        """Runs all passes up to their next stop.

        Args:
            batch_done: called after every batch.

        Returns:
            the stop: the number of a layer, a target, or `END`.

        Raises:
            SeaExportError: passes come to different stops, or a layer needs keys and values of another one.
        """
        try:
            stop = advance_together(self._turns(batch_done))
        except (RuntimeError, NotImplementedError) as error:
            if self._layer is None or "meta" not in str(error):
                raise
            raise SeaExportError(
                f"layer {self._layer} of {type(self._decoder).__name__}: it needs keys and values of another layer, "
                "which are not in memory any more. Fit it with --no-layerwise and without --sequential."
            ) from error
        self._layer = stop if isinstance(stop, int) else self._layer
        return stop

    def _turns(self, batch_done: Callable[[], None] | None) -> Iterator[SuspendedPass]:
        """All passes, each after the pass whose cache it continues from."""
        for passes in (self._shared, *self._batches):
            for one in passes:
                self._continue_cache(one)
                self._reader.before_pass(one.segments)
                yield self._suspended[one]
            if passes is not self._shared:
                self._free(passes)
                if batch_done is not None:
                    batch_done()
        self._free(self._shared)

    def _continue_cache(self, one: Pass) -> None:
        """When a pass is about to enter a layer, puts the keys and values that it continues from into its cache."""
        enters_layer = self._layer is not None and self._suspended[one].stop == self._layer
        if enters_layer and one.continues and self._caches[one] is not None:
            continued = copy.copy(self._caches[one.continues].layers[self._layer])
            continued.batch_select_indices(torch.tensor(one.rows))
            self._caches[one].layers[self._layer] = continued

    def _free(self, passes: Sequence[Pass]) -> None:
        """Frees keys and values when passes have left their layer, and keeps their number."""
        for one in passes:
            in_layer = self._layer is None or isinstance(self._suspended[one].stop, Target)
            if not in_layer and self._caches[one] is not None:
                _empty(self._caches[one].layers[self._layer])


def _cache_of_length(decoder: PreTrainedModel, one: Pass) -> Any:
    """An empty cache of as many tokens as the pass continues from: masks are made before its keys and values exist."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=decoder.config)
    if one.past:
        for layer in cache.layers:
            layer.update(*torch.zeros(2, len(one.sequences), 1, one.past, 1))
            _empty(layer)
    return cache


def _empty(layer: Any) -> None:
    """Frees the keys and values of a cache layer. Only their shapes remain."""
    if layer.keys is not None:
        layer.keys, layer.values = layer.keys.to("meta"), layer.values.to("meta")
