"""Repeated scoring gives the log-likelihoods of the plain scorer."""

from __future__ import annotations

import pytest
import torch

from sea_export.capture.batching import PromptedCompletions
from sea_export.errors import InputError
from sea_export.evaluation.repeated_scoring import RepeatedScorer
from sea_export.evaluation.scoring import completion_log_likelihoods
from sea_export.model.targets import Target
from tests.helpers.random_demonstrations import random_demonstrations
from tests.helpers.tiny_edits import spectral_edit
from tests.helpers.tiny_models import tiny_model

ITEMS = [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in random_demonstrations(6, shared=20)]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_base_and_edits_have_the_scores_of_the_plain_scorer(name: str) -> None:
    model = tiny_model(name)
    scorer = RepeatedScorer(model, ITEMS, {2}, batch_tokens=64)
    edit = spectral_edit([Target(2, "mlp"), Target(3, "attention")], center="affine")
    base = completion_log_likelihoods(model, ITEMS, batch_tokens=64)
    with edit.apply(model):
        edited = completion_log_likelihoods(model, ITEMS, batch_tokens=64)
    for expected, given in ((base, None), (edited, edit), (base, None)):
        found = torch.tensor(scorer.log_likelihoods(given))
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_completion_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens to score"):
        RepeatedScorer(tiny_model("llama"), [PromptedCompletions([3], [[]])], {2})
