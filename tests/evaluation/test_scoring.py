"""Log-likelihoods must not depend on what is batched, cached or shared."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.capture.batching import PrefixCacheMode, PromptedCompletions
from sea_export.errors import InputError
from sea_export.evaluation import scoring
from sea_export.evaluation.scoring import completion_log_likelihoods, prompted_completions
from tests.helpers.messages import naming
from tests.helpers.tiny_models import VOCABULARY, random_model, tiny_config


def tokens(generator: random.Random, low: int, high: int) -> list[int]:
    return [generator.randrange(VOCABULARY) for _ in range(generator.randint(low, high))]


def make_items(shared: int) -> list[PromptedCompletions]:
    """Nine prompts of mixed lengths after `shared` common tokens, with one to four completions of mixed lengths."""
    generator = random.Random(3)
    prefix = tokens(generator, shared, shared)
    return [
        PromptedCompletions(
            prefix + tokens(generator, 1, 12),
            [tokens(generator, 1, 9) for _ in range(generator.randint(1, 4))],
        )
        for _ in range(9)
    ]


def alone(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> float:
    """The definition: one sequence, no cache, no padding."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    log_probabilities = logits.double().log_softmax(-1)
    return sum(log_probabilities[len(prompt) + i - 1, token].item() for i, token in enumerate(completion))


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [8, 40, 2048])
@pytest.mark.parametrize("shared", [0, 30])
def test_equals_scoring_every_completion_alone(any_model: PreTrainedModel, shared: int, batch_tokens: int) -> None:
    items = make_items(shared)
    scores = completion_log_likelihoods(any_model, items, batch_tokens=batch_tokens)
    for item, item_scores in zip(items, scores, strict=True):
        expected = [alone(any_model, list(item.prompt), list(completion)) for completion in item.completions]
        assert item_scores == pytest.approx(expected, abs=1e-4)


def test_the_prompt_matters(llama: PreTrainedModel) -> None:
    """Negative control: under another last prompt token the same completion has another likelihood."""
    completion = [5, 6, 7]
    one, other = completion_log_likelihoods(
        llama, [PromptedCompletions([1, 2, 3], [completion]), PromptedCompletions([1, 2, 4], [completion])]
    )
    assert abs(one[0] - other[0]) > 1e-2


@pytest.mark.parametrize("batch_tokens", [4, 2048])
def test_prompts_of_one_token_among_longer_ones(llama: PreTrainedModel, batch_tokens: int) -> None:
    items = [
        PromptedCompletions([3], [[4, 5, 6], [7]]),
        PromptedCompletions([8, 9, 10, 11], [[12, 13]]),
        PromptedCompletions([3], [[14]]),
    ]
    scores = completion_log_likelihoods(llama, items, batch_tokens=batch_tokens)
    expected = [alone(llama, list(item.prompt), list(c)) for item in items for c in item.completions]
    assert [score for row in scores for score in row] == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def without_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count passes: what sequences may share is given, and not found out by passes of its own."""
    monkeypatch.setattr(scoring, "prefix_cache_mode", lambda *_, **__: PrefixCacheMode.CACHES)


@pytest.mark.usefixtures("without_trial")
def test_prompts_of_one_token_need_no_prompt_pass(llama: PreTrainedModel) -> None:
    passes = []
    handle = llama.model.register_forward_hook(lambda *_: passes.append(1))
    completion_log_likelihoods(llama, [PromptedCompletions([3], [[4, 5]]), PromptedCompletions([6], [[7, 8]])])
    handle.remove()
    assert len(passes) == 1


def test_probabilities_of_all_one_token_completions_sum_to_one(llama: PreTrainedModel) -> None:
    (scores,) = completion_log_likelihoods(
        llama, [PromptedCompletions([1, 2], [[token] for token in range(VOCABULARY)])]
    )
    assert torch.tensor(scores).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("without_trial")
def test_shared_tokens_are_computed_once_and_the_head_sees_answers_only(llama: PreTrainedModel) -> None:
    prefix = list(range(40))
    items = [PromptedCompletions([*prefix, 50 + i, 60, 61], [[70, 71], [72, 73], [74, 75]]) for i in range(5)]
    embedded, headed = [], []
    handles = [
        llama.model.embed_tokens.register_forward_hook(lambda _, inputs, __: embedded.append(inputs[0].numel())),
        llama.lm_head.register_forward_hook(lambda _, __, output: headed.append(output[..., 0].numel())),
    ]
    completion_log_likelihoods(llama, items)
    for handle in handles:
        handle.remove()
    answers = 5 * 3 * 2
    assert sum(headed) == answers
    # The last of a prompt's three own tokens is computed with each of its completions, whose last token is not.
    assert sum(embedded) == 40 + 5 * 2 + answers


def test_log_softmax_of_half_precision_logits_is_float32() -> None:
    """In bfloat16 itself, whose steps are 0.4 %, the two would differ far beyond the tolerance."""
    model = random_model(tiny_config("llama")).to(torch.bfloat16)
    completion = [5, 6, 7, 8, 9]
    ((score,),) = completion_log_likelihoods(model, [PromptedCompletions([4], [completion])])
    with torch.no_grad():
        logits = model(torch.tensor([[4, *completion[:-1]]])).logits[0]
    expected = logits.float().log_softmax(-1)[range(5), completion].sum().item()
    rounded = logits.log_softmax(-1)[range(5), completion].float().sum().item()
    assert score == pytest.approx(expected, abs=1e-4)
    assert abs(rounded - expected) > 1e-3


def test_progress_counts_every_item_once(llama: PreTrainedModel) -> None:
    finished: list[int] = []
    completion_log_likelihoods(llama, make_items(30), batch_tokens=16, progress=finished.append)
    assert sum(finished) == 9
    assert len(finished) > 1


def test_no_items(llama: PreTrainedModel) -> None:
    assert completion_log_likelihoods(llama, []) == []


@pytest.mark.parametrize(
    ("item", "facts"),
    [
        (PromptedCompletions([], [[1]]), ["item 1", "prompt"]),
        (PromptedCompletions([1], []), ["item 1", "completions"]),
        (PromptedCompletions([1], [[2], []]), ["item 1, completion 1"]),
    ],
)
def test_what_cannot_be_scored_is_named(llama: PreTrainedModel, item: PromptedCompletions, facts: list[str]) -> None:
    with pytest.raises(InputError, match=naming(*facts)):
        completion_log_likelihoods(llama, [PromptedCompletions([1], [[2]]), item])


def letter_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Letters and spaces as tokens, and one merge, a + b."""
    symbols = ["<s>", "</s>", *"abcdefgh :", "ab"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("template", "before"), [("$A", []), ("<s> $A", ["<s>"]), ("<s> $A </s>", ["<s>"]), ("$A </s>", [])]
)
def test_the_prompt_has_leading_special_tokens_and_nothing_trailing_ones(template: str, before: list[str]) -> None:
    tokenizer = letter_tokenizer(template)
    item = prompted_completions(tokenizer, "cd:", [" e", " abf"])
    assert tokenizer.convert_ids_to_tokens(item.prompt) == [*before, "c", "d", ":"]
    assert [tokenizer.convert_ids_to_tokens(completion) for completion in item.completions] == [
        [" ", "e"],
        [" ", "ab", "f"],
    ]


def test_a_merge_across_the_boundary_leaves_the_prompt_as_it_is() -> None:
    tokenizer = letter_tokenizer("$A")
    item = prompted_completions(tokenizer, "ca", ["bd", "d"])
    assert tokenizer.convert_ids_to_tokens(item.prompt) == ["c", "a"]
    assert [tokenizer.convert_ids_to_tokens(completion) for completion in item.completions] == [["b", "d"], ["d"]]
