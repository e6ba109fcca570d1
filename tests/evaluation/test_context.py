"""Texts that a model has no positions for are refused before they are computed."""

from __future__ import annotations

import pytest
import transformers

from sea_export.capture.batching import PromptedCompletions
from sea_export.errors import InputError
from sea_export.evaluation.answering import answer_prompts
from sea_export.evaluation.scoring import completion_log_likelihoods
from sea_export.model.architecture import position_limit
from tests.helpers.tiny_models import random_model

GPT2 = transformers.GPT2Config(vocab_size=128, n_positions=20, n_embd=24, n_layer=1, n_head=2)
OPT = transformers.OPTConfig(
    vocab_size=128, max_position_embeddings=20, hidden_size=24, word_embed_proj_dim=24, ffn_dim=24, num_hidden_layers=1
)
OPT.num_attention_heads = 2


@pytest.mark.parametrize("config", [GPT2, OPT], ids=lambda config: config.model_type)
def test_a_text_beyond_learned_positions_is_refused(config: transformers.PretrainedConfig, tokenizer) -> None:
    model = random_model(config)
    assert position_limit(model) == 20
    fitting = [PromptedCompletions([3] * 15, [[4], [5] * 5])]
    assert len(completion_log_likelihoods(model, fitting)[0]) == 2
    with pytest.raises(InputError, match=r"item 2: .* 21 tokens, and the model reads 20"):
        completion_log_likelihoods(model, [*fitting, PromptedCompletions([3] * 15, [[4], [5] * 6])])
    with pytest.raises(InputError, match=r"prompt 2: .*--new-tokens"):
        answer_prompts(model, tokenizer, ["Yes", "Is it? " * 20], template="none", new_tokens=2)
    with pytest.raises(InputError, match="prompt 1: it has 2 tokens and its answer at most 200"):
        answer_prompts(model, tokenizer, ["Yes"], template="none", new_tokens=200)


def test_a_model_that_computes_its_positions_reads_on(llama) -> None:
    assert position_limit(llama) is None
    length = llama.config.max_position_embeddings + 3
    assert completion_log_likelihoods(llama, [PromptedCompletions([3] * length, [[4]])])
