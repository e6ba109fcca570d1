"""What an evaluation or a comparison refuses before anything is loaded, and before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sea_export.demonstrations.neutral_text import load_texts
from sea_export.demonstrations.tables import check_source
from sea_export.edit.base_of_edit import base_of_edits
from sea_export.edit.stored_edit import read_stored_edit
from sea_export.errors import InputError
from sea_export.evaluation.benchmark_names import FREE_PROMPTS, TABLES
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.evaluation_options import CompareOptions, EvaluateOptions
from sea_export.evaluation.gguf_exports import gguf_of_export
from sea_export.evaluation.prompts import load_prompts
from sea_export.evaluation.run_time_edit import check_run_time_edit, is_edit
from sea_export.export.manifest import read_manifest
from sea_export.files.writing import check_destinations
from sea_export.model.adapter_files import ADAPTER_CONFIG, base_of_adapter, check_adapter_files
from sea_export.model.location import check_model_name, locate_model
from sea_export.model.run_options import RunOptions
from sea_export.text import is_utf8

__all__ = [
    "check_comparison",
    "check_evaluation",
    "check_in_memory",
    "check_sources",
    "locate_models",
    "with_base_of_edit",
]


def check_evaluation(model: str, options: EvaluateOptions, run: RunOptions) -> None:
    """Refuses an evaluation that could not begin, or whose results could not be written.

    Args:
        model: what is measured.
        options: on what, and against what.
        run: how models are opened.

    Raises:
        InputError: a model or a file is missing, or a file cannot be written.
    """
    base = options.against
    sources = [one.partition("=")[2] for one in options.benchmarks]
    read = (model, base, options.edit, options.text, options.judge.judge, *sources)
    check_destinations([options.plot, options.judge.judge_cache], read=read)
    models = [name for name in (model, base) if name is not None]
    for name in models:
        check_model_name(gguf_of_export(name), adapters=True)
    check_in_memory(models, run)
    if run.revision is not None and all(Path(name).exists() for name in models):
        raise InputError("--revision: it belongs to a Hub id, and all models here are local paths. Leave it out.")
    check_run_time_edit(options.edit, options.strength, model)
    if options.record:
        read_manifest(Path(model))
    if options.plot is not None:
        check_picture(options.plot)
    check_sources(options)
    locate_models(models, run)


def check_sources(options: EvaluateOptions) -> None:
    """Refuses rows and texts that are missing or cannot be read.

    Args:
        options: they name the rows and the texts.

    Raises:
        InputError: see above.
    """
    for name, _, source in (one.partition("=") for one in options.benchmarks):
        if source and name.partition(":")[0] in TABLES:
            check_source(source)
        elif source and name == FREE_PROMPTS:
            load_prompts(source)
    if options.text is not None:
        load_texts(options.text)


def with_base_of_edit(model: str, options: EvaluateOptions) -> tuple[str, EvaluateOptions]:
    """The model that is opened, and the options that say what is applied to it.

    Args:
        model: what is to be measured. Of an edit, its base is opened, and the edit becomes `options.edit`.
        options: what the user asks for.

    Raises:
        InputError: the base of an edit is not known, or one is given to a model that is no edit.
    """
    if not is_edit(model):
        if options.base is not None:
            raise InputError(f"--base: it is of an edit, and {model} is none. Leave it out, or give --against.")
        return model, options
    if options.edit is not None:
        raise InputError(f"--edit: {model} is an edit itself, and only one is applied. Give its base as MODEL.")
    if options.base is not None and options.against is not None:
        raise InputError("--against: an edit is compared with its base, which --base names. Leave one of them out.")
    if options.record:
        raise InputError(f"--record: {model} is an edit, which has no model card. Bake it with sea-export save first.")
    base = options.base or options.against or base_of_edits([read_stored_edit(Path(model).expanduser())])
    return base, replace(options, edit=Path(model), base=None, against=None)


def locate_models(models: Sequence[str], run: RunOptions) -> None:
    """Finds, and downloads, every model of the Hub that is going to be loaded, before the first one is.

    Args:
        models: names that `check_model_name` has let pass.
        run: how models are opened.

    Raises:
        InputError: there is no such model.
    """
    for name in models:
        path = Path(name).expanduser()
        if (path / ADAPTER_CONFIG).is_file():
            check_adapter_files(path)
            path = Path(name := base_of_adapter(path)).expanduser()
        if not path.exists():
            locate_model(name, run.revision)


def check_comparison(base: str, edited: str, options: CompareOptions, run: RunOptions) -> None:
    """Refuses a comparison that could not begin, or whose page could not be written.

    Args:
        base: the one model.
        edited: the other one, or an edit of the first.
        options: the prompts, and how they are answered.
        run: how models are opened.

    Raises:
        InputError: a model is missing, a prompt is no text, or the page cannot be written.
    """
    check_destinations([options.html], read=[base, edited, options.prompts])
    models = [base] if is_edit(edited) else [base, edited]
    for name in models:
        check_model_name(gguf_of_export(name), adapters=True)
    check_run_time_edit(Path(edited) if is_edit(edited) else None, options.strength, edited)
    check_in_memory(models, run)
    if not all(map(is_utf8, options.own_prompts)):
        raise InputError("--prompt: it is not UTF-8 text. Write it in UTF-8.")
    locate_models(models, run)


def check_in_memory(models: Sequence[str], run: RunOptions) -> None:
    """Raises InputError if a model would not be in memory as a whole.

    Args:
        models: the names of the models.
        run: how they are opened.
    """
    if run.layerwise:
        raise InputError(f"--layerwise: {models[0]} has to be in memory as a whole for this. Leave --layerwise out.")
