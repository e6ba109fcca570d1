"""`sea-export fit`: fit only."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import cache_option, options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.preset_option import preset_option
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.effect.effect_options import EffectOptions
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions


@click.command("fit")
@click.argument("model", shell_complete=complete_files)
@click.argument("edit", type=click.Path(path_type=Path))
@preset_option
@options(data=DemonstrationOptions, fit=FitOptions, effect=EffectOptions, run=RunOptions)
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace an edit that sea-export wrote before.")
@reported
@json_option
def command(
    model: str,
    edit: Path,
    overwrite: bool,
    cache: Path | None,
    data: DemonstrationOptions,
    fit: FitOptions,
    effect: EffectOptions,
    run: RunOptions,
) -> None:
    """Fit an edit of MODEL and write it to the directory EDIT, for `save` to bake.

    MODEL is a Hub id, a local directory, or a .gguf file.
    """
    effect.check(fit)
    from sea_export.demonstrations.findings import log_findings
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.export.output import check_beside, check_output, check_room, staged_output
    from sea_export.model.location import locate_model

    check_output(edit, overwrite=overwrite)
    check_beside(edit, cache)
    effect.check_texts()
    read = read_demonstrations(data, fit.capture.seed)
    log_findings(read)
    location = locate_model(model, run.revision)

    # Nothing before this needs torch, which takes seconds to import.
    from sea_export.cli.layer_table import print_layers
    from sea_export.cli.opening import begin_computing, joined_job, opened_model
    from sea_export.cli.printing import print_commands, print_effect, print_examples
    from sea_export.cli.progress import counting_progress, fit_progress, loaded
    from sea_export.cli.terminal import console
    from sea_export.edit.summary import log_warnings
    from sea_export.fitting.fit_base import with_weight_digests
    from sea_export.interface.measured_fit import measured_fit, split_demonstrations

    begin_computing(run.threads)
    with joined_job() as processes, opened_model(location, run, edit) as opened:
        split = split_demonstrations(opened, data.demonstrations, read, fit, effect)
        check_room(edit, opened.base.paths, needed_bytes=0)
        loaded(opened)
        measured = measured_fit(
            *(opened, split, fit, effect),
            fit_progress(len(split.fitted), processes),
            counting_progress,
            cache=cache,
            processes=processes,
        )
        if measured is None:
            return
        result = with_weight_digests(measured, opened.base)
    with staged_output(edit, overwrite=overwrite) as staging:
        result.save(staging)
    log_warnings(result.summary)
    print_layers(result.summary)
    print_effect(result)
    print_examples(result)
    console.print(f"Saved the edit to {edit}.", soft_wrap=True)
    give_result("fit", result)
    trust = ("--trust-remote-code",) if run.trust_remote_code else ()
    half = f"{result.provenance['options']['edit']['strength'] / 2:.3g}"
    print_commands(
        {
            "Try it": ("compare", model, edit, *trust),
            **({"Try half of it": ("compare", model, edit, "--strength", half, *trust)} if result.has_a_dial else {}),
            "Talk with both": ("chat", edit, "--base", model, *trust),
            "Measure it": ("evaluate", edit, "--base", model, "--benchmark", "damage", *trust),
            "Bake it": ("save", edit, "OUTPUT", "--base", model, *trust),
        }
    )
