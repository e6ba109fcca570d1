"""What an evaluation or a comparison refuses before anything is loaded, and before torch is imported."""

from __future__ import annotations

from pathlib import Path

from sea_export.demonstrations.tables import check_source
from sea_export.edit.stored_edit import read_stored_edit
from sea_export.errors import InputError
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.evaluation_options import TABLES, CompareOptions, EvaluateOptions
from sea_export.export.manifest import gguf_of_export, read_manifest
from sea_export.files.writing import check_destinations
from sea_export.model.location import check_model_name
from sea_export.model.run_options import RunOptions
from sea_export.text import is_utf8

__all__ = ["check_comparison", "check_evaluation"]


def check_evaluation(model: str, options: EvaluateOptions, run: RunOptions) -> None:
    """Refuses an evaluation that could not begin, or whose results could not be written.

    Args:
        model: what is measured.
        options: on what, and against what.
        run: how models are opened.

    Raises:
        InputError: a model or a file is missing, or a file cannot be written.
    """
    base = options.against or (model if options.edit is not None else None)
    sources = [one.partition("=")[2] for one in options.benchmarks]
    read = (model, base, options.edit, options.text, options.judge.judge, *sources)
    check_destinations([options.json_file, options.plot, options.verdict_file], read=read)
    models = [name for name in (model, base) if name is not None]
    for name in models:
        check_model_name(gguf_of_export(name), adapters=True)
    _check_in_memory(models, run)
    if run.revision is not None and all(Path(name).exists() for name in models):
        raise InputError("--revision: it belongs to a Hub id, and all models here are local paths. Leave it out.")
    if options.edit is not None:
        read_stored_edit(options.edit)
    if options.record:
        read_manifest(Path(model))
    if options.plot is not None:
        check_picture(options.plot)
    for name, _, source in (one.partition("=") for one in options.benchmarks):
        if source and name.partition(":")[0] in TABLES:
            check_source(source)


def check_comparison(base: str, edited: str, options: CompareOptions, run: RunOptions) -> None:
    """Refuses a comparison that could not begin, or whose page could not be written.

    Args:
        base: the one model.
        edited: the other one.
        options: the prompts, and how they are answered.
        run: how models are opened.

    Raises:
        InputError: a model is missing, a prompt is no text, or the page cannot be written.
    """
    check_destinations([options.html], read=[base, edited, options.prompts])
    for name in (base, edited):
        check_model_name(gguf_of_export(name), adapters=True)
    _check_in_memory([base, edited], run)
    if not all(map(is_utf8, options.own_prompts)):
        raise InputError("--prompt: it is not UTF-8 text. Write it in UTF-8.")


def _check_in_memory(models: list[str], run: RunOptions) -> None:
    if run.layerwise:
        raise InputError(f"--layerwise: {models[0]} has to be in memory as a whole for this. Leave --layerwise out.")
