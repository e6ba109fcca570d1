"""The prefix-cache mode of a model, found by trying it: what computations of several sequences may have in common.

In some architectures a token gets another result beside padding, or with a copied cache, than in a pass of its own
sequence: where attention chooses tokens by an index of its own, where it has windows that the config does not mention,
or where it sees later tokens. No list of such architectures would be complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sea_export.capture.batching import PrefixCacheMode, PromptedCompletions, Segment, longest_and_shortest
from sea_export.capture.forward import hands_on_caches, run_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["prefix_cache_mode"]

# Relative differences of final hidden states: more than rounding gives, and far less than a wrong context gives.
_TOLERANCE = 1e-3
_HALF_PRECISION_TOLERANCE = 0.1
_COMPLETIONS = 2
# Model types for which tests compare captures with caches to passes of single sequences, so that no trial is needed.
_KNOWN = frozenset({"gemma2", "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen3"})


def prefix_cache_mode(
    decoder: PreTrainedModel, items: Sequence[PromptedCompletions], *, batch_tokens: int
) -> PrefixCacheMode:
    """The fastest mode in which every sequence gets the same result as in a pass of its own.

    It is known of some model types. Others are tried on the items with the longest and the shortest prompt, between
    which there is the most padding.

    Args:
        decoder: the model without its head.
        items: the prompts and completions to compute.
        batch_tokens: see `sea_export.capture.batching.plan_passes`.
    """
    if decoder.config.model_type in _KNOWN and hands_on_caches(decoder):
        return PrefixCacheMode.CACHES
    tried = [
        PromptedCompletions(items[index].prompt, items[index].completions[:_COMPLETIONS])
        for index in longest_and_shortest(items)
    ]
    expected = _final_states(decoder, tried, batch_tokens, PrefixCacheMode.NOTHING)
    tolerance = _HALF_PRECISION_TOLERANCE if torch.finfo(expected.dtype).bits < 32 else _TOLERANCE

    def agrees(prefix_cache: PrefixCacheMode) -> bool:
        try:
            states = _final_states(decoder, tried, batch_tokens, prefix_cache)
        except Exception:  # any architecture may fail in its own way on input that it does not expect
            return False
        return bool((states.float() - expected.float()).norm() <= tolerance * expected.float().norm())

    if not agrees(PrefixCacheMode.PASSES):
        return PrefixCacheMode.NOTHING
    return (
        PrefixCacheMode.CACHES
        if hands_on_caches(decoder) and agrees(PrefixCacheMode.CACHES)
        else PrefixCacheMode.PASSES
    )


def _final_states(
    decoder: PreTrainedModel, items: Sequence[PromptedCompletions], batch_tokens: int, prefix_cache: PrefixCacheMode
) -> Tensor:
    """(prompts and completions, d): the final hidden state of the last token of each."""
    states = _LastStates(items)
    for _ in run_batches(
        decoder, decoder, items, batch_tokens=batch_tokens, prefix_cache=prefix_cache, observer=states
    ):
        pass
    return torch.stack([states.rows[key] for key in sorted(states.rows)])


class _LastStates:
    """Observes passes, and keeps the output for the last token of each prompt and completion."""

    def __init__(self, items: Sequence[PromptedCompletions]) -> None:
        self.rows: dict[tuple[int, int], Tensor] = {}
        self._items = items

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        hidden = output[0]
        for segment in segments:
            if segment.item is not None:
                key = (segment.item, -1 if segment.completion is None else segment.completion)
                self.rows[key] = hidden[segment.row, segment.column + segment.length - 1]
