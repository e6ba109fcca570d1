"""`sea_export.evaluate` and `sea_export.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sea_export.capture.progress_callback import ProgressCallback, progress_of, waiting_of
from sea_export.cards.record_evaluation import record_evaluation
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.evaluate import Evaluation, evaluate_in_memory
from sea_export.evaluation.evaluate import evaluate as evaluate_model
from sea_export.evaluation.evaluation_options import CompareOptions, EvaluateOptions
from sea_export.evaluation.generation_options import GenerationOptions, JudgeOptions
from sea_export.evaluation.run_time_edit import load_run_time_edit
from sea_export.evaluation.side_by_side import ModelComparison, compare_in_memory, compare_models
from sea_export.interface.loaded_base import LoadedBase, in_memory
from sea_export.model.run_options import RunOptions

__all__ = ["compare", "evaluate"]

_EDIT = "edit"
_RUN = RunOptions()


def evaluate(
    model: str | Path | LoadedBase,
    benchmark: str | Sequence[str] = (),
    *,
    lm_eval: str | None = None,
    text: str | None = None,
    against: str | Path | None = None,
    edit: SpectralEdit | str | Path | None = None,
    base: str | Path | None = None,
    strength: float | None = None,
    limit: int | None = None,
    seed: int = EvaluateOptions.seed,
    batch_tokens: int = EvaluateOptions.batch_tokens,
    record: bool = False,
    new_tokens: int = GenerationOptions.new_tokens,
    chat_template_kwargs: str | None = None,
    judge: str | None = None,
    judge_url: str | None = None,
    judge_cache: Path | None = None,
    run: RunOptions = _RUN,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measures a model on benchmarks, alone or against its base, with 95 % intervals and paired tests.

    Args:
        model: a base or an export: a Hub id, a directory or a `.gguf` file; the directory of an edit, which is applied
            to its base at run time; or a base that `load` has opened.
        benchmark: what is measured: `NAME[:PROMPT]=FILE` or `damage`, one or several, as `--benchmark` takes it.
        lm_eval: tasks of lm-evaluation-harness.
        text: passages for damage; None for the built-in ones.
        against: the base, which is measured too.
        edit: an edit that is applied to `model` at run time.
        base: if `model` is the directory of an edit, the model that it is applied to; None for the one that it names.
        strength: that of an edit that is applied at run time; None for its own.
        limit: use a sample of that many rows of each benchmark.
        seed: seed of the sample, of intervals and of tests.
        batch_tokens: about how many tokens a forward pass computes.
        record: write the figures into the manifest and the model card of `model`, which is an export.
        new_tokens: the longest answer, in tokens.
        chat_template_kwargs: values for the chat template, as JSON.
        judge: who judges the answers of truthfulqa-generation.
        judge_url: the OpenAI-compatible address of the judge.
        judge_cache: the file that keeps the verdicts.
        run: how models are opened, if they are not open.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: a model, a benchmark or a file is not usable.
    """
    live = isinstance(model, LoadedBase)
    options = EvaluateOptions(
        benchmarks=(benchmark,) if isinstance(benchmark, str) else tuple(benchmark),
        lm_eval=lm_eval,
        text=text,
        against=None if against is None else str(against),
        edit=None if live or edit is None else _stored(edit),
        base=None if base is None else str(base),
        strength=strength,
        limit=limit,
        seed=seed,
        batch_tokens=batch_tokens,
        record=record,
        generation=GenerationOptions(new_tokens, chat_template_kwargs),
        judge=JudgeOptions(judge, judge_url, judge_cache),
    )
    if isinstance(model, LoadedBase):
        if against is not None or base is not None or record:
            raise InputError("--against: a base that is open is measured with an edit, or alone. Give edit, or a path.")
        return evaluate_in_memory(in_memory(model), _at(edit, strength), options, run, progress_of(progress))
    found = evaluate_model(str(model), options, run, progress_of(progress))
    if record and found.against is not None:
        record_evaluation(
            *(Path(model), found.reports), against=found.against, dtype=found.dtype, sampled=limit is not None
        )
    return found


def compare(
    base: str | Path | LoadedBase,
    output: str | Path | SpectralEdit,
    *,
    prompts: str | Path | None = None,
    prompt: str | Sequence[str] = (),
    template: str = CompareOptions.template,
    new_tokens: int = CompareOptions.new_tokens,
    chat_template_kwargs: str | None = None,
    strength: float | None = None,
    run: RunOptions = _RUN,
    progress: ProgressCallback | None = None,
) -> ModelComparison:
    """Answers the same prompts with a base and an edited model, greedily. Without prompts there are some built-in ones.

    Args:
        base: a Hub id, a directory or a `.gguf` file, or a base that `load` has opened.
        output: an export of any format; or an edit, or the directory of one, which is applied to the base at run time.
            A base that is open takes edits only.
        prompts: a `.txt` file with a prompt a line, or a table with a column prompt or question.
        prompt: prompts of your own.
        template: `auto`, `chat`, `qa` or `none`: how a prompt is put.
        new_tokens: the longest answer, in tokens.
        chat_template_kwargs: values for the chat template, as JSON.
        strength: that of an edit; None for its own.
        run: how models are opened, if they are not open.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: a model or the prompts are not usable.
    """
    options = CompareOptions(
        prompts=None if prompts is None else str(prompts),
        own_prompts=(prompt,) if isinstance(prompt, str) else tuple(prompt),
        template=template,
        new_tokens=new_tokens,
        chat_template_kwargs=chat_template_kwargs,
        strength=strength,
    )
    if isinstance(base, LoadedBase):
        edit = _at(output, strength)
        assert edit is not None
        name = _EDIT if isinstance(output, SpectralEdit) else Path(output).name
        return compare_in_memory(in_memory(base), edit, name, options, waiting_of(progress))
    if isinstance(output, SpectralEdit):
        raise InputError("output: an edit in memory needs a base that is open. Give what sea_export.load returns.")
    return compare_models(str(base), str(output), options, run, waiting_of(progress))


def _stored(edit: SpectralEdit | str | Path) -> Path:
    if isinstance(edit, SpectralEdit):
        raise InputError("edit: an edit in memory needs a base that is open. Give what sea_export.load returns.")
    return Path(edit)


def _at(edit: SpectralEdit | str | Path | None, strength: float | None) -> SpectralEdit | None:
    """An edit at the strength that is asked for."""
    if edit is None:
        return None
    if isinstance(edit, SpectralEdit):
        return edit if strength is None else edit.with_strength(strength)
    return load_run_time_edit(Path(edit), strength)
