"""The same passes again and again, from the base's hidden states: for edits that leave the lower layers as they are.

An edit of layer i and of later ones does not change what enters layer i. The base runs once, and the output of the
layer before is kept for every pass. Then the layers below are left out: each gives the kept output at once, and counts
its tokens in the cache, so that masks and positions are those of a whole pass. Everything else is made by the model
itself.

With all layers left out, only the final norm and the head remain: so the base is scored again at little cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sea_export.capture.batching import PrefixCacheMode, PromptedCompletions, Segment, longest_and_shortest
from sea_export.capture.forward import SegmentObserver, run_batches
from sea_export.capture.lockstep import mapped_copy
from sea_export.capture.prefix_cache import prefix_cache_mode
from sea_export.model.architecture import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["UpperLayers", "upper_layers"]

# Relative differences of final hidden states: far less than a missing layer makes.
_TOLERANCE = 1e-3
_COMPLETIONS = 2


def upper_layers(
    model: PreTrainedModel,
    items: Sequence[PromptedCompletions],
    starts: Collection[int],
    *,
    batch_tokens: int,
    directory: Path | None = None,
) -> UpperLayers:
    """Runs the base over some items, and keeps what enters some of its layers.

    In some architectures later layers read more of earlier ones than their output, such as their keys and values. That
    is found out with two of the items; nothing is kept then, and every pass runs all layers.

    Args:
        model: a causal language model without an edit. It is set to evaluation mode.
        items: at least one prompt, each with at least one completion.
        starts: the layers at which passes may start; the number of layers for the base itself.
        batch_tokens: about how many tokens a forward pass computes.
        directory: where hidden states are kept, in files without a name that are mapped into memory; None keeps them in
            memory.
    """
    model.eval()
    decoder = cast("PreTrainedModel", model.base_model)
    mode = prefix_cache_mode(decoder, items, batch_tokens=batch_tokens)
    tried = [
        PromptedCompletions(items[index].prompt, items[index].completions[:_COMPLETIONS])
        for index in longest_and_shortest(items)
    ]
    agree = _agree(UpperLayers(model, tried, starts, prefix_cache=mode, batch_tokens=batch_tokens))
    kept = starts if agree else ()
    return UpperLayers(model, items, kept, prefix_cache=mode, batch_tokens=batch_tokens, directory=directory)


class UpperLayers:
    """Passes over some items that start at a layer, and the hidden states of the base with which they start."""

    def __init__(
        self,
        model: PreTrainedModel,
        items: Sequence[PromptedCompletions],
        starts: Collection[int],
        *,
        prefix_cache: PrefixCacheMode,
        batch_tokens: int,
        directory: Path | None = None,
    ) -> None:
        """Runs the base.

        Args:
            model: see `upper_layers`.
            items: see `upper_layers`.
            starts: see `upper_layers`.
            prefix_cache: see `sea_export.capture.prefix_cache.prefix_cache_mode`.
            batch_tokens: see `upper_layers`.
            directory: see `upper_layers`.
        """
        self._model, self._items = model, items
        self._mode, self._batch_tokens = prefix_cache, batch_tokens
        self._layers = decoder_layers(model)[1]
        self._outputs = {start: _Outputs(directory) for start in sorted(starts) if start > 0}
        with ExitStack() as hooks:
            for start, outputs in self._outputs.items():
                hooks.callback(self._layers[start - 1].register_forward_hook(outputs.keep).remove)
            for _ in self._batches(_Quiet(), head=False):
                pass

    @property
    def layer_count(self) -> int:
        """The number of layers of the model."""
        return len(self._layers)

    @property
    def starts(self) -> tuple[int, ...]:
        """The layers at which passes may start, besides the first."""
        return tuple(self._outputs)

    def run(self, observer: SegmentObserver, first: int, *, head: bool = True) -> None:
        """Runs all passes, from the last layer of `starts` that is not after `first`.

        Args:
            observer: told of every pass.
            first: the lowest layer with an edit; the number of layers for the base itself.
            head: whether completions are computed with the head.
        """
        for _ in self.batches(observer, first, head=head):
            pass

    def batches(self, observer: SegmentObserver, first: int, *, head: bool = True) -> Iterator[Sequence[int]]:
        """`run`, which stops after every batch, so that others can run in between.

        Yields:
            the indices of the items that the batch has finished.
        """
        start = max((one for one in self._outputs if one <= first), default=0)
        if start == 0:
            yield from self._batches(observer, head=head)
            return
        outputs = self._outputs[start]
        batches = self._batches(_Counted(observer, outputs), head=head)
        while True:
            with _left_out(list(self._layers[:start]), outputs):
                indices = next(batches, None)
            if indices is None:
                return
            yield indices

    def _batches(self, observer: SegmentObserver, *, head: bool) -> Iterator[Sequence[int]]:
        decoder = cast("PreTrainedModel", self._model.base_model)
        return run_batches(
            decoder,
            self._model if head else decoder,
            self._items,
            batch_tokens=self._batch_tokens,
            prefix_cache=self._mode,
            observer=observer,
        )


class _Outputs:
    """What a layer gave in each pass, in their order."""

    def __init__(self, directory: Path | None) -> None:
        self.position = -1
        self._directory = directory
        self._tensors: list[Tensor] = []
        self._device = torch.device("cpu")
        self._in_tuple = False

    def keep(self, module: nn.Module, inputs: object, output: Any) -> None:
        """The forward hook of the layer."""
        self._in_tuple = isinstance(output, tuple)
        tensor: Tensor = output[0] if self._in_tuple else output
        self._device = tensor.device
        self._tensors.append(tensor.clone() if self._directory is None else mapped_copy(tensor, self._directory))

    def current(self) -> Any:
        """What the layer gives in the pass at `position`; a copy, as the next layer may change it."""
        tensor = self._tensors[self.position].to(self._device, copy=True)
        return (tensor,) if self._in_tuple else tensor


class _Counted:
    """Counts passes for the outputs that are given in them, and passes everything on to another observer."""

    def __init__(self, observer: SegmentObserver, outputs: _Outputs) -> None:
        self._observer, self._outputs = observer, outputs
        outputs.position = -1

    def before_pass(self, segments: Sequence[Segment]) -> None:
        self._outputs.position += 1
        self._observer.before_pass(segments)

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        self._observer.after_pass(segments, output)


class _Quiet:
    """An observer that does nothing."""

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        pass


class _FinalStates(_Quiet):
    """An observer that keeps the output of every pass."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        self.states.append(output[0].float())


def _agree(passes: UpperLayers) -> bool:
    """Whether passes from every start give what whole passes give."""
    whole = _FinalStates()
    passes.run(whole, 0, head=False)
    for start in passes.starts:
        found = _FinalStates()
        try:
            passes.run(found, start, head=False)
        except Exception:  # any architecture may fail in its own way where a layer's keys and values are missing
            return False
        for one, other in zip(found.states, whole.states, strict=True):
            if not (one - other).norm() <= _TOLERANCE * other.norm():
                return False
    return True


@contextmanager
def _left_out(layers: Collection[nn.Module], outputs: _Outputs) -> Iterator[None]:
    """Makes layers give `outputs` without computing anything, until the context ends."""
    own = [layer.__dict__.get("forward") for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = _Forward(index, outputs)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


class _Forward:
    """The forward function of a layer that is left out."""

    def __init__(self, index: int, outputs: _Outputs) -> None:
        self._index, self._outputs = index, outputs

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from transformers import Cache

        output = self._outputs.current()
        hidden = output[0] if isinstance(output, tuple) else output
        for one in (*arguments, *keywords.values()):
            if isinstance(one, Cache):  # masks are made from the number of tokens in it
                empty = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
                one.update(empty, torch.zeros_like(empty), self._index)
        return output
