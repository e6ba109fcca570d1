"""`sea-export tune`: find the settings by measurement."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import asked_file, give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions
from sea_export.tuning.tuning_options import TuneOptions


@click.command("tune")
@click.argument("model", shell_complete=complete_files)
@click.argument("output", type=click.Path(path_type=Path))
@options(tune=TuneOptions, data=DemonstrationOptions, run=RunOptions, export=ExportOptions)
@reported
@json_option
def command(
    model: str, output: Path, tune: TuneOptions, data: DemonstrationOptions, run: RunOptions, export: ExportOptions
) -> None:
    """Search method, form, layers, target, truncation, damping and more for the best score within a damage budget.

    Every edit gets the largest strength within the budget, or within a share of it. Settings are chosen on a part of
    the rows and reported on the others. Without --benchmark the rows are demonstrations that are not fitted on, of
    other kinds where they have kinds. The chosen edit is not worse than the base on the rows that chose it, and is
    baked into the checkpoint OUTPUT. MODEL is a Hub id, a local directory, or a .gguf file.
    """
    from sea_export.demonstrations.findings import log_findings
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.demonstrations.neutral_text import load_texts
    from sea_export.demonstrations.tables import check_source
    from sea_export.export.output import check_output
    from sea_export.model.location import locate_model
    from sea_export.tuning.search_files import check_files

    check_output(output, overwrite=export.overwrite)
    tune = tune.kept_beside(output)
    source = (tune.benchmark or "").partition("=")[2]
    check_files(tune, output, (model, data.demonstrations, source, tune.text))
    if source:
        check_source(source)
    if tune.text is not None:
        load_texts(tune.text)
    read = read_demonstrations(data, tune.seed)
    log_findings(read)
    location = locate_model(model, run.revision)

    # Nothing before this needs torch, which takes seconds to import.
    from sea_export.cli.opening import begin_computing, opened_model
    from sea_export.cli.printing import print_next_steps, print_saved
    from sea_export.cli.progress import counting_progress, saving_progress
    from sea_export.cli.terminal import console
    from sea_export.cli.tune_output import print_trial, print_tuning, write_tuning
    from sea_export.interface.searching import held_out_of, search_and_bake
    from sea_export.tuning.tune import Tuning
    from sea_export.tuning.tuning_rows import TuningRows

    TuningRows.load(tune, held_out_of(read, tune).held_out)  # raises, before the model is opened
    record = None if asked_file() is not None else tune.record_file(output)

    def found(tuning: Tuning, rows: TuningRows) -> None:
        print_tuning(tuning, rows)
        write_tuning(tuning, tune, record)

    begin_computing(run.threads)
    with opened_model(location, run, output) as opened:
        console.print(f"Trials are kept in {tune.storage}: the same command goes on from them.", soft_wrap=True)
        tuned = search_and_bake(
            *(opened, read, tune, output, export),
            progress=counting_progress,
            saving_progress=saving_progress,
            tell=print_trial,
            found=found,
            announce=console.print,
        )
    print_saved(tuned.saved, tuned.tuning.edit)
    print_next_steps(tuned.saved.output, model)
    give_result("tune", tuned)
