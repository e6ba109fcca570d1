"""The damage of an edit: its KL from the base, on prose and on the base's own answers to ordinary prompts.

`benchmark_methods` solves for the strength at which the larger of the two is a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sea_export.capture.batching import PromptedCompletions, Segment
from sea_export.demonstrations.tokenize import tokenize_completions
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.strength import strength_within
from sea_export.errors import SeaExportError
from sea_export.evaluation.repeated_scoring import RepeatedScorer

ORDINARY_PROMPTS = (
    "How do I boil an egg so that the yolk stays soft?",
    "Write a short message to thank a neighbour for watering my plants.",
    "What should I pack for a weekend of hiking in the rain?",
    "Explain how a bicycle stays upright.",
    "Give me three ideas for a birthday party for a ten-year-old.",
    "What is the difference between a violin and a viola?",
    "Write the first lines of a story about a lighthouse keeper.",
    "How can I remove a coffee stain from a cotton shirt?",
    "Summarize how bread is made.",
    "Which vegetables grow well in the shade?",
    "Write a Python function that counts the words in a text.",
    "How do I ask my landlord to repair the heating?",
    "What are good questions for a job interview?",
    "Describe the sound of a thunderstorm.",
    "How does a washing machine work?",
    "Suggest a simple dinner with rice and eggs.",
    "What can I do if I cannot fall asleep?",
    "Translate 'Where is the station?' into French.",
    "How do birds find their way in autumn?",
    "Write a polite refusal of an invitation to a wedding.",
    "What is a fair way to share the cost of a trip?",
    "Explain fractions to a child.",
    "How often should I water a cactus?",
    "Name some games for a long train journey.",
)
_BATCH_TOKENS = 512
_FOUR = 4
# The share of the budget that is close enough, and what is aimed at.
_LOWEST, _AIM = 0.95, 0.975
_REFINEMENTS = 5


@torch.inference_mode()
def own_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int = 48, seed: int = 0
) -> list[PromptedCompletions]:
    """Answers that a model samples to prompts, each as the completion of its prompt.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer. Prompts are put into its chat template, or else into "Q: …\\nA:".
        prompts: texts.
        new_tokens: the longest answer, in tokens.
        seed: of the samples.
    """
    from transformers import GenerationConfig

    tokens = [_prompt_tokens(tokenizer, prompt) for prompt in prompts]
    own = model.generation_config
    ends = [] if own is None or own.eos_token_id is None else own.eos_token_id
    end_tokens = {ends} if isinstance(ends, int) else set(ends)
    width = max(map(len, tokens))
    ids = torch.zeros(len(tokens), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(tokens):
        ids[row, width - len(one) :] = torch.tensor(one)
        mask[row, width - len(one) :] = 1
    model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=True,
        top_k=0,
        eos_token_id=sorted(end_tokens) or None,
        pad_token_id=min(end_tokens, default=0),
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generated = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    finally:
        model.generation_config = own
    answers = generated[:, width:].tolist()
    return [
        PromptedCompletions(prompt, [_until_end(answer, end_tokens)])
        for prompt, answer in zip(tokens, answers, strict=True)
    ]


def _prompt_tokens(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    if tokenizer.chat_template is None:
        return tuple(tokenize_completions(tokenizer, f"Q: {prompt}\nA:", [])[0])
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _until_end(tokens: list[int], end_tokens: Collection[int]) -> list[int]:
    length = next((position for position, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return tokens[: max(length, 1)]


@dataclass(frozen=True)
class Divergence:
    """How far an edit is from the base on some texts."""

    kl: float
    """Mean KL from the base, in nats per token."""
    agreement: float
    """Share of the tokens at which both have the same likeliest token."""


class RepeatedDivergence:
    """The divergence of many edits on the same texts, computed from the first edited layer on."""

    def __init__(self, model: Any, items: Sequence[PromptedCompletions], starts: Collection[int]) -> None:
        """Runs the base once.

        Args:
            model: the base.
            items: texts, each a prompt with one completion.
            starts: the lowest edited layers of the edits to come.
        """
        # The logits of a batch are in memory at once, so that each batch has a scorer of its own.
        self._batches = [RepeatedScorer(model, batch, starts, batch_tokens=_BATCH_TOKENS) for batch in _batches(items)]

    def __call__(self, edit: SpectralEdit, *, whole: bool) -> Divergence:
        """The divergence of an edit, on every fourth batch or on the whole."""
        kl, agreeing, tokens = 0.0, 0.0, 0
        for scorer in self._batches if whole else self._batches[::_FOUR]:
            base, edited = _log_probabilities(scorer, None), _log_probabilities(scorer, edit)
            for before, after in zip(base, edited, strict=True):
                kl += float((before.exp() * (before - after)).sum(-1).double().sum())
                agreeing += float((before.argmax(-1) == after.argmax(-1)).sum())
                tokens += len(before)
        return Divergence(kl / tokens, agreeing / tokens)


def _batches(items: Sequence[PromptedCompletions]) -> list[list[PromptedCompletions]]:
    """Texts of about equal length together, with at most `_BATCH_TOKENS` tokens, in an order without a trend."""
    ordered = sorted(items, key=lambda item: len(item.prompt) + len(item.completions[0]), reverse=True)
    batches: list[list[PromptedCompletions]] = [[]]
    tokens = 0
    for item in ordered:
        length = len(item.prompt) + len(item.completions[0])
        if batches[-1] and tokens + length > _BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(item)
        tokens += length
    return batches


def _log_probabilities(scorer: RepeatedScorer, edit: SpectralEdit | None) -> list[Tensor]:
    observer = _Observer(len(scorer.items))
    scorer.observe(observer, edit)
    return observer.found


class _Observer:
    """Keeps the (tokens, vocabulary) log-probabilities of every text."""

    def __init__(self, count: int) -> None:
        self.found: list[Tensor] = [torch.empty(0)] * count

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        for segment in segments:
            if segment.item is not None and segment.completion is not None:
                columns = slice(segment.column, segment.column + segment.length)
                self.found[segment.item] = output.logits[segment.row, columns].float().log_softmax(-1)


def solve(
    budget: float, edit_at: Callable[[float], SpectralEdit], damage: Mapping[str, RepeatedDivergence], start: float
) -> tuple[float, dict[str, Divergence], int]:
    """The strength at which the largest divergence is a budget, to 5 % of it.

    Args:
        budget: in nats per token.
        edit_at: makes the edit of a strength.
        damage: the kinds of text.
        start: the first strength that is tried.

    Returns:
        The strength, the divergence on each kind of text, and the number of steps.

    Raises:
        SeaExportError: there is no such strength.
    """
    found: dict[str, Divergence] = {}

    def measure(strength: float, whole: bool) -> float:
        edit = edit_at(strength)
        found.update({name: one(edit, whole=whole) for name, one in damage.items()})
        return max(one.kl for one in found.values())

    strength, steps = strength_within(budget, measure, start)
    largest, count = steps[-1].divergence, len(steps)
    for _ in range(_REFINEMENTS):
        if _LOWEST * budget <= largest <= budget:
            return strength, found, count
        strength *= (_AIM * budget / largest) ** 0.5
        largest, count = measure(strength, True), count + 1
    raise SeaExportError(f"KL: no strength with a KL within 5 % of {budget:g} was found. Give another --kl.")


def first_strength(edit: SpectralEdit, budget: float) -> float:
    """A strength to begin with: the largest change of any layer is about the root of the budget.

    Args:
        edit: the edit at strength 1.
        budget: in nats per token.
    """
    return float(budget**0.5 / max(edit.relative_change, 1e-6))


__all__ = [
    "ORDINARY_PROMPTS",
    "Divergence",
    "RepeatedDivergence",
    "first_strength",
    "own_answers",
    "solve",
]
