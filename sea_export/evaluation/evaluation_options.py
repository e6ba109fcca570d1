"""The options of the commands that measure and picture models: `evaluate`, `compare` and `inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from sea_export.errors import InputError
from sea_export.evaluation.benchmark_names import DAMAGE, GENERATIONS, TRUTHFULQA_GENERATION, check_benchmark
from sea_export.evaluation.generation_options import GenerationOptions, JudgeOptions, template_values
from sea_export.files.writing import is_stream
from sea_export.options import CaptureOptions, check_values, option, same_option, seed_option

__all__ = [
    "CompareOptions",
    "EvaluateOptions",
    "InspectOptions",
]


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, against what, and where the results go."""

    benchmarks: tuple[str, ...] = option(
        (),
        "truthfulqa (prompts qa-primer, plain), bbq, crows-pairs or multiple-choice (prompts qa, none) with a file or "
        "a Hub dataset of its rows; truthfulqa-generation with such a file, or prompts with one or with none, which "
        "let models answer; or damage, which needs no file. May be given several times.",
        name="benchmark",
        metavar="NAME[:PROMPT]=FILE",
    )
    lm_eval: str | None = option(
        None,
        "Tasks of lm-evaluation-harness, by name or YAML file, such as arc_easy,hellaswag; needs the extra lm-eval. "
        "Metrics are those that are means over rows. --limit takes the first rows.",
        metavar="TASKS",
    )
    text: str | None = option(
        None, "Passages for damage: a .txt file, or a table with a column text; by default a built-in set."
    )
    against: str | None = option(None, "Measure this model too, and tell the differences.", metavar="BASE")
    edit: Path | None = option(None, "Apply this edit at run time, against MODEL itself.")
    base: str | None = option(
        None, "If MODEL is an edit: the model that it is applied to and compared with; by default the one it names."
    )
    strength: float | None = option(None, "The strength of an edit that is applied at run time, instead of its own.")
    limit: int | None = option(None, "Use a seeded sample of that many rows of each benchmark.", minimum=2)
    seed: int = seed_option("Seed of --limit, of intervals and of tests.")
    batch_tokens: int = same_option(CaptureOptions, "batch_tokens")
    plot: Path | None = option(None, "Write a picture (PNG, PDF, SVG).", path="file")
    record: bool = option(False, "Write the figures into the manifest and the model card of MODEL.")
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    judge: JudgeOptions = field(default_factory=JudgeOptions)

    def __post_init__(self) -> None:
        check_values(self)
        if not self.benchmarks and self.lm_eval is None:
            raise InputError(
                "--benchmark: nothing is to be measured. Give --benchmark NAME=FILE, or --benchmark damage."
            )
        for one in self.benchmarks:
            check_benchmark(one)
        if self.text is not None and DAMAGE not in self.benchmarks:
            raise InputError("--text: only --benchmark damage reads it. Give --benchmark damage too.")
        generations = {one.partition("=")[0] for one in self.benchmarks} & set(GENERATIONS)
        if self.judge.judge is not None and TRUTHFULQA_GENERATION not in generations:
            raise InputError(
                "--judge: it judges answers to the questions of TruthfulQA only. Give --benchmark "
                "truthfulqa-generation=FILE too."
            )
        if self.generation.chat_template_kwargs is not None and not generations:
            raise InputError(
                "--chat-template-kwargs: no model answers with text here. Give --benchmark prompts or "
                "truthfulqa-generation=FILE too."
            )
        if self.record and (self.against is None or self.edit is not None):
            raise InputError(
                "--record: it keeps the metrics of an export beside those of its base. Give --against, and no --edit."
            )

    def with_verdicts_beside(self, results: Path) -> EvaluateOptions:
        """The same options, with the verdicts of a judge kept beside a file of results, if no other file is given.

        Args:
            results: the file.

        Raises:
            InputError: the results are to be written to something that must not be replaced.
        """
        if self.judge.judge is None or self.judge.judge_cache is not None or is_stream(results):
            return self
        return replace(self, judge=replace(self.judge, judge_cache=results.with_suffix(".verdicts.jsonl")))


@dataclass(frozen=True)
class CompareOptions:
    """Which prompts two models answer, and how."""

    prompts: str | None = option(None, "A .txt file with a prompt a line, or a table with a column prompt or question.")
    own_prompts: tuple[str, ...] = option((), "A prompt; may be given several times.", name="prompt", metavar="TEXT")
    template: str = option(
        "auto",
        "How a prompt is put; auto: as the tokenizer's chat template says, and as Q: and A: where there is none.",
        ("auto", "chat", "qa", "none"),
    )
    new_tokens: int = same_option(GenerationOptions, "new_tokens")
    chat_template_kwargs: str | None = same_option(GenerationOptions, "chat_template_kwargs")
    strength: float | None = same_option(EvaluateOptions, "strength")
    html: Path | None = option(None, "Write a web page of one file.", path="file")

    def __post_init__(self) -> None:
        check_values(self)
        template_values(self.chat_template_kwargs)


@dataclass(frozen=True)
class InspectOptions:
    """Which pictures of an edit are drawn."""

    plot: Path | None = option(None, "Write a picture (PNG, PDF, SVG) of spectra, ranks and changes.", path="file")
    plot_activations: Path | None = option(
        None,
        "Write a picture of the demonstrations' activations and what the edit makes of them. Needs --model.",
        path="file",
    )
    model: str | None = option(None, "For --plot-activations: the model that the edit was fitted on.")
    plot_layers: str | None = option(
        None, "For --plot-activations: which layers, such as 18,29; by default the three that change most."
    )
    seed: int = seed_option("Seed of --limit.")

    def __post_init__(self) -> None:
        check_values(self)
        if self.plot_activations is not None and self.model is None:
            raise InputError(
                "--plot-activations: it runs the model that the edit was fitted on. Name that model with --model."
            )
