"""Several benchmarks, and damage, measured on one model after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sea_export.demonstrations.neutral_text import load_texts, ordinary_questions
from sea_export.errors import InputError
from sea_export.evaluation.bbq import BBQ, load_bbq
from sea_export.evaluation.benchmark import Benchmark, Measurement, Progress, measure, no_progress, sample
from sea_export.evaluation.benchmark_names import DAMAGE, GENERATIONS, check_searched
from sea_export.evaluation.crows_pairs import CrowsPairs, load_crows_pairs
from sea_export.evaluation.damage import TextPredictions, measure_damage, predict_texts
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.evaluation.generation import Generation, load_generation
from sea_export.evaluation.harness import Harness
from sea_export.evaluation.multiple_choice import PROMPTS as CHOICE_PROMPTS
from sea_export.evaluation.multiple_choice import MultipleChoice, load_multiple_choice
from sea_export.evaluation.truthfulqa import PROMPTS as TRUTHFULQA_PROMPTS
from sea_export.evaluation.truthfulqa import TruthfulQA, load_truthfulqa

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Suite", "load_benchmark"]

_PROMPTS = {"truthfulqa": tuple(TRUTHFULQA_PROMPTS), "multiple-choice": tuple(CHOICE_PROMPTS)}


def load_benchmark(text: str) -> Benchmark:
    """Reads the benchmark that `NAME=SOURCE` or `NAME:PROMPT=SOURCE` names.

    Args:
        text: a name of `BENCHMARKS`, and a file or a Hub dataset.

    Raises:
        InputError: there is no such benchmark or prompt, or its rows cannot be read.
    """
    check_searched(text)
    name, _, source = text.partition("=")
    name, _, prompt = name.partition(":")
    prompts = _PROMPTS.get(name, ())
    if prompt and prompt not in prompts:
        choice = f"Choose one of {', '.join(prompts)}." if prompts else "Leave it out: there is only one."
        raise InputError(f"--benchmark: {name} has no prompt {prompt!r}. {choice}")
    if name == "truthfulqa":
        return TruthfulQA(load_truthfulqa(source), prompt or prompts[0])
    if name == "multiple-choice":
        return MultipleChoice(load_multiple_choice(source), prompt or prompts[0])
    return BBQ(load_bbq(source)) if name == "bbq" else CrowsPairs(load_crows_pairs(source))


@dataclass(frozen=True)
class Suite:
    """What is to be measured."""

    benchmarks: tuple[Benchmark, ...]
    texts: tuple[str, ...] = ()
    """Passages for `damage`; empty if damage is not measured."""
    questions: tuple[str, ...] = field(default_factory=ordinary_questions)
    """What the base answers for `damage`."""
    batch_tokens: int = 2048
    generations: tuple[Generation, ...] = ()
    """Benchmarks in which the model answers with text."""
    harness: Harness | None = None
    """Tasks of lm-evaluation-harness; None for none."""

    @classmethod
    def load(cls, options: EvaluateOptions) -> Suite:
        """Reads the rows and passages of what is to be measured.

        Raises:
            InputError: something cannot be read.
        """
        generated = [one for one in options.benchmarks if one.partition("=")[0] in GENERATIONS]
        loaded = [load_benchmark(one) for one in options.benchmarks if one != DAMAGE and one not in generated]
        if options.limit is not None:
            loaded = [sample(one, options.limit, options.seed) for one in loaded]
        texts = load_texts(options.text) if DAMAGE in options.benchmarks else ()
        generations = tuple(load_generation(one, options) for one in generated)
        harness = None if options.lm_eval is None else Harness.load(options.lm_eval, options.limit, options.seed)
        return cls(tuple(loaded), texts, batch_tokens=options.batch_tokens, generations=generations, harness=harness)

    def measure_base(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress
    ) -> tuple[list[Measurement], TextPredictions | None]:
        """Measures a model, and keeps its predictions so that others can be compared with it.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.
            progress: see `sea_export.evaluation.benchmark.Progress`.
        """
        measurements = self._benchmarks(model, tokenizer, progress)
        if not self.texts:
            return measurements, None
        with progress(DAMAGE, len(self.texts) + len(self.questions)) as advance:
            predictions = predict_texts(model, tokenizer, self.texts, self.questions, progress=advance)
        return [*measurements, predictions.measurement], predictions

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: TextPredictions | None,
        progress: Progress = no_progress,
    ) -> list[Measurement]:
        """Measures an edited model.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.
            reference: the predictions of the base, from `measure_base`.
            progress: see `sea_export.evaluation.benchmark.Progress`.
        """
        measurements = self._benchmarks(model, tokenizer, progress)
        if reference is None:
            return measurements
        with progress(DAMAGE, len(self.texts) + len(self.questions)) as advance:
            damage = measure_damage(model, tokenizer, self.texts, reference, progress=advance)
        return [*measurements, damage]

    def _benchmarks(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress
    ) -> list[Measurement]:
        scored = [
            measure(benchmark, model, tokenizer, batch_tokens=self.batch_tokens, progress=progress)
            for benchmark in self.benchmarks
        ]
        answered = [generation.measure(model, tokenizer, progress) for generation in self.generations]
        tasks = [] if self.harness is None else self.harness.measure(model, tokenizer)
        return [*scored, *answered, *tasks]
