"""Several benchmarks, and damage, measured on one model after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.evaluation.bbq import BBQ, load_bbq
from sea_export.evaluation.benchmark import Benchmark, Measurement, Progress, measure, no_progress, sample
from sea_export.evaluation.crows_pairs import CrowsPairs, load_crows_pairs
from sea_export.evaluation.damage import TextPredictions, load_texts, measure_damage, predict_texts
from sea_export.evaluation.multiple_choice import PROMPTS as CHOICE_PROMPTS
from sea_export.evaluation.multiple_choice import MultipleChoice, load_multiple_choice
from sea_export.evaluation.truthfulqa import PROMPTS as TRUTHFULQA_PROMPTS
from sea_export.evaluation.truthfulqa import TruthfulQA, load_truthfulqa

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BENCHMARKS", "Suite", "load_benchmark"]

BENCHMARKS = ("truthfulqa", "bbq", "crows-pairs", "multiple-choice")
_DAMAGE = "damage"
_PROMPTS = {"truthfulqa": tuple(TRUTHFULQA_PROMPTS), "multiple-choice": tuple(CHOICE_PROMPTS)}


def load_benchmark(text: str) -> Benchmark:
    """Reads the benchmark that `NAME=SOURCE` or `NAME:PROMPT=SOURCE` names.

    Args:
        text: a name of `BENCHMARKS`, and a file or a Hub dataset.

    Raises:
        InputError: there is no such benchmark or prompt, or its rows cannot be read.
    """
    name, equals, source = text.partition("=")
    name, _, prompt = name.partition(":")
    if name not in BENCHMARKS:
        raise InputError(f"There is no benchmark {name!r}; choose one of {', '.join((*BENCHMARKS, _DAMAGE))}.")
    if not equals or not source:
        raise InputError(f"--benchmark {text}: say where its rows are, {name}=FILE or {name}=org/dataset")
    prompts = _PROMPTS.get(name, ())
    if prompt and prompt not in prompts:
        choice = f"choose one of {', '.join(prompts)}" if prompts else "it has only one"
        raise InputError(f"--benchmark {text}: {name} has no prompt {prompt!r}; {choice}")
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
    """Passages for `damage`; none if that is not asked for."""
    batch_tokens: int = 2048

    @classmethod
    def parse(cls, benchmarks: Sequence[str], *, text: str | None = None, batch_tokens: int = 2048) -> Suite:
        """Reads what a command line asks for.

        Args:
            benchmarks: for each, see `load_benchmark`; or `damage`.
            text: the passages for `damage`, see `sea_export.evaluation.damage.load_texts`.
            batch_tokens: about how many tokens a forward pass computes.

        Raises:
            InputError: nothing is asked for, or something that cannot be read.
        """
        if not benchmarks:
            raise InputError("say what to measure: --benchmark NAME=FILE, or --benchmark damage")
        if text is not None and _DAMAGE not in benchmarks:
            raise InputError("--text is what --benchmark damage reads: ask for that too")
        loaded = tuple(load_benchmark(one) for one in benchmarks if one != _DAMAGE)
        return cls(loaded, load_texts(text) if _DAMAGE in benchmarks else (), batch_tokens)

    def sampled(self, count: int, seed: int) -> Suite:
        """The same with at most `count` rows of each benchmark."""
        return replace(self, benchmarks=tuple(sample(one, count, seed) for one in self.benchmarks))

    def measure_base(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress
    ) -> tuple[list[Measurement], TextPredictions | None]:
        """Measures a model, and keeps its predictions for others to be compared with.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.
            progress: see `sea_export.evaluation.benchmark.Progress`.
        """
        measurements = self._benchmarks(model, tokenizer, progress)
        if not self.texts:
            return measurements, None
        with progress(_DAMAGE, len(self.texts)) as advance:
            predictions = predict_texts(model, tokenizer, self.texts, progress=advance)
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
            reference: the base's predictions, from `measure_base`.
            progress: see `sea_export.evaluation.benchmark.Progress`.
        """
        measurements = self._benchmarks(model, tokenizer, progress)
        if reference is None:
            return measurements
        with progress(_DAMAGE, len(self.texts)) as advance:
            damage = measure_damage(model, tokenizer, self.texts, reference, progress=advance)
        return [*measurements, damage]

    def _benchmarks(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress
    ) -> list[Measurement]:
        return [
            measure(benchmark, model, tokenizer, batch_tokens=self.batch_tokens, progress=progress)
            for benchmark in self.benchmarks
        ]
