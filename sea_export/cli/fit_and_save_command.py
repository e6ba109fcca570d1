"""`sea-export fit-and-save`: the main job."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import cache_option, options, visibility_option
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.preset_option import preset_option
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.effect.effect_options import EffectOptions
from sea_export.errors import InputError
from sea_export.export.formats import export_format
from sea_export.model.run_options import RunOptions, check_conversion
from sea_export.options import ExportOptions, FitOptions


@click.command("fit-and-save")
@click.argument("model", shell_complete=complete_files)
@click.argument("output", type=click.Path(path_type=Path))
@preset_option
@options(data=DemonstrationOptions, fit=FitOptions, effect=EffectOptions, run=RunOptions, export=ExportOptions)
@cache_option
@click.option("--push", "repo_id", metavar="REPO_ID", help="Push OUTPUT to this repository of the Hub afterwards.")
@visibility_option
@reported
@json_option
def command(
    model: str,
    output: Path,
    cache: Path | None,
    repo_id: str | None,
    public: bool,
    data: DemonstrationOptions,
    fit: FitOptions,
    effect: EffectOptions,
    run: RunOptions,
    export: ExportOptions,
) -> None:
    """Fit an edit of MODEL, bake it into the checkpoint OUTPUT, and verify that it is the edit.

    MODEL is a Hub id, a local directory, or a .gguf file. With --push, whether OUTPUT may be pushed is found out before
    anything is fitted, and the repository is made.
    """
    format = export_format(export.format)
    effect.check(fit)
    if effect.strength == 0:
        raise InputError("--strength: 0 edits nothing, so that there is nothing to bake. Give another number.")
    if public and repo_id is None:
        raise InputError("--public: it goes with --push. Give --push REPO_ID too, or leave it out.")
    format.check_options(fit, export)
    check_conversion(dequantize=run.dequantize, requantize=export.requantize)
    from sea_export.cli.early_process import early_process
    from sea_export.demonstrations.findings import log_findings
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.export.output import check_beside, check_output
    from sea_export.model.location import locate_model
    from sea_export.model.quantization_methods import check_kept_storage

    check_output(output, overwrite=export.overwrite)
    check_beside(output, cache)
    effect.check_texts()
    read = read_demonstrations(data, fit.capture.seed)
    log_findings(read)
    location = locate_model(model, run.revision)
    if export.requantize:
        check_kept_storage(location.path, location.name)
    with early_process(export, run) as process:
        # Nothing before this needs torch, which takes seconds to import.
        from sea_export.cli.opening import joined_job, opened_model
        from sea_export.cli.printing import print_next_steps, print_saved
        from sea_export.cli.progress import counting_progress, fit_progress, loaded, saving_progress
        from sea_export.cli.push_output import push_saved
        from sea_export.cli.terminal import console
        from sea_export.edit.summary import log_warnings
        from sea_export.fitting.layer_choice import choose_targets
        from sea_export.hub.push import SavedAndPushed, prepare_push
        from sea_export.interface.measured_fit import measured_fit, split_demonstrations
        from sea_export.saving import check_room_for, locate_fit, save_checkpoint

        with joined_job() as processes, opened_model(location, run, output) as opened:
            if opened.is_layerwise:
                process.end()  # memory is short
            split = split_demonstrations(opened, data.demonstrations, read, fit, effect)
            check_room_for(opened.base, output, export)
            targets = choose_targets(opened.base.skeleton, fit)
            located = locate_fit(opened.base, targets, fit, export)
            if repo_id is not None and processes.is_first:
                prepare_push(opened.base, format, repo_id, public=public)
            loaded(opened)
            edit = measured_fit(
                *(opened, split, fit, effect),
                fit_progress(len(split.fitted), processes),
                counting_progress,
                targets=targets,
                cache=cache,
                processes=processes,
            )
            if edit is None:
                return
            log_warnings(edit.summary)
            result = save_checkpoint(
                edit,
                opened.base,
                output,
                export,
                layerwise=run.layerwise,
                located=located,
                model=opened.model,
                process=process,
                progress=saving_progress,
                announce=console.print,
            )
    print_saved(result, edit)
    print_next_steps(result.output, model, pushed=repo_id is not None)
    pushed = None if repo_id is None else push_saved(output, repo_id, public=public)
    give_result("fit-and-save", SavedAndPushed(result, pushed))
