"""Scores the same completions many times: of a base, and of edits of it that share their lower layers with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.forward import SegmentObserver
from sea_export.capture.upper_layers import upper_layers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.scoring import CompletionScorer, predicting_items
from sea_export.model.architecture import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["RepeatedScorer"]


class RepeatedScorer:
    """What `sea_export.evaluation.scoring` gives for some items, computed from the first edited layer on.

    The hidden states of the base are kept: for each token one at every layer of `starts`, and one at the end.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        items: Sequence[PromptedCompletions],
        starts: Collection[int],
        *,
        batch_tokens: int = 2048,
        directory: Path | None = None,
    ) -> None:
        """Runs the base once.

        Args:
            model: a causal language model, without an edit. It is set to evaluation mode.
            items: at least one prompt, each with at least one completion, all of at least one token.
            starts: the lowest edited layers of the edits to come.
            batch_tokens: about how many tokens a forward pass computes.
            directory: see `sea_export.capture.upper_layers.upper_layers`.

        Raises:
            InputError: see `sea_export.evaluation.scoring.completion_log_likelihoods`.
        """
        self._model, self._items = model, items
        self._layer_count = len(decoder_layers(model)[1])
        self._passes = upper_layers(
            model,
            predicting_items(items),
            {*starts, self._layer_count},
            batch_tokens=batch_tokens,
            directory=directory,
        )

    @property
    def items(self) -> Sequence[PromptedCompletions]:
        """What is scored."""
        return self._items

    def observe(self, observer: SegmentObserver, edit: SpectralEdit | None = None) -> None:
        """The passes of `sea_export.evaluation.scoring.observe_completions`.

        Args:
            observer: told of every pass.
            edit: applied to the base and removed again; None for the base itself.
        """
        for _ in self.batches(observer, edit):
            pass

    def batches(self, observer: SegmentObserver, edit: SpectralEdit | None = None) -> Iterator[Sequence[int]]:
        """`observe`, which stops after every batch. The edit is on the model only while a batch runs.

        Yields:
            the indices of the items that the batch has finished. They are the same for every edit.
        """
        first = self._layer_count if edit is None else min(target.layer for target in edit.targets)
        batches = self._passes.batches(observer, first)
        while True:
            with nullcontext() if edit is None else edit.apply(self._model):
                indices = next(batches, None)
            if indices is None:
                return
            yield indices

    def log_likelihoods(self, edit: SpectralEdit | None = None) -> list[list[float]]:
        """For each item one log-likelihood per completion: see `completion_log_likelihoods`.

        Args:
            edit: see `observe`.
        """
        scorer = CompletionScorer(self._items)
        self.observe(scorer, edit)
        return scorer.log_likelihoods()
