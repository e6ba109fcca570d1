"""Benchmarks in which models answer with text, and the metrics of the answers that need no judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.evaluation.answering import Answer, answer_prompts
from sea_export.evaluation.answers import is_loop, is_refusal, repeated_share
from sea_export.evaluation.benchmark import GivenAnswer, Measurement, Progress, no_progress, sample_rows
from sea_export.evaluation.benchmark_names import FREE_PROMPTS
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.evaluation.generation_options import GenerationOptions, template_values
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.prompts import load_prompts
from sea_export.evaluation.truthfulqa import load_truthfulqa

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Generation", "Question", "answer_metrics", "load_generation"]


@dataclass(frozen=True)
class Question:
    """A prompt, with reference answers if there are some."""

    prompt: str
    correct: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """Prompts that a model answers greedily."""

    label: str
    """Its name in reports."""
    rows: tuple[Question, ...]
    options: GenerationOptions
    batch_tokens: int = 2048

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress
    ) -> Measurement:
        """Lets a model answer.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer. Its chat template is used if it has one; otherwise a prompt is put as Q: and A:.
            progress: see `sea_export.evaluation.benchmark.Progress`.

        Raises:
            InputError: the chat template fails.
        """
        with progress(self.label, len(self.rows)) as advance:
            answers = answer_prompts(
                model,
                tokenizer,
                [row.prompt for row in self.rows],
                template_values=template_values(self.options.chat_template_kwargs),
                new_tokens=self.options.new_tokens,
                batch_tokens=self.batch_tokens,
                progress=advance,
            )
        given = tuple(
            GivenAnswer(row.prompt, answer.text, row.correct, row.incorrect)
            for row, answer in zip(self.rows, answers, strict=True)
        )
        return Measurement(self.label, len(self.rows), answer_metrics(answers), given)


def answer_metrics(answers: Sequence[Answer]) -> tuple[Metric, ...]:
    """Length and shares of refusals, loops, repeated 4-grams, empty answers and answers that were cut off.

    Args:
        answers: one for each row.
    """
    shares: dict[str, list[float]] = {
        "refusals": [is_refusal(answer.text) for answer in answers],
        "loops": [is_loop(answer.tokens) for answer in answers],
        "repeated 4-grams": [repeated_share(answer.tokens) for answer in answers],
        "empty": [not answer.text for answer in answers],
        "cut off": [answer.cut_off for answer in answers],
    }
    length = mean_metric("length", [len(answer.tokens) for answer in answers], best=0.0, unit="tokens")
    return (length, *(mean_metric(name, values, best=0.0) for name, values in shares.items()))


def load_generation(text: str, options: EvaluateOptions) -> Generation:
    """Reads the prompts that `truthfulqa-generation=SOURCE`, `prompts` or `prompts=SOURCE` names.

    Args:
        text: one of these.
        options: `limit`, `seed`, `batch_tokens` and `generation` are used.

    Raises:
        InputError: they cannot be read.
    """
    name, equals, source = text.partition("=")
    if not source and (equals or name != FREE_PROMPTS):
        raise InputError(f"--benchmark: {text} does not say where its rows are. Give {name}=FILE.")
    if name == FREE_PROMPTS:
        rows = tuple(Question(prompt) for prompt in load_prompts(source or None))
    else:
        rows = tuple(Question(row.question, row.correct, row.incorrect) for row in load_truthfulqa(source))
    if options.limit is not None:
        rows = sample_rows(rows, options.limit, options.seed)
    return Generation(name, rows, options.generation, options.batch_tokens)
