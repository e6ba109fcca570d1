"""`sea-export import`: an edit of vectors or of an adapter that another program has found."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import options, single_option
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.importing.import_options import ImportOptions
from sea_export.model.run_options import RunOptions


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("edit", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Hub id, directory or .gguf file of the model that SOURCE is for.")
@options(chosen=ImportOptions)
@click.option("--overwrite", is_flag=True, help="Replace an edit that sea-export wrote before.")
@single_option(RunOptions, "revision")
@single_option(RunOptions, "trust_remote_code")
@reported
@json_option
def command(
    source: Path,
    edit: Path,
    model: str,
    chosen: ImportOptions,
    overwrite: bool,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Make an edit of SOURCE, vectors or an adapter of another program, and write it to the directory EDIT.

    No code that comes with SOURCE is run. It is one of these:

    \b
    a control vector in GGUF, by repeng or llama.cpp (tensors direction.N,
    added to what layer N gives, counted from 0)
      sea-export import happy.gguf happy --model org/model --coefficient 1.5
    vectors in .safetensors, each with the number of its layer in its name
      sea-export import v.safetensors edit --model org/model --as add
    .npz, the same; .npy, one vector, or a row for each layer
      sea-export import rows.npy edit --model org/model --as add \\
        --numbering outputs
    .json: a list of numbers, a list of rows, or an object of such lists
      sea-export import refusal.json edit --model org/model --as ablate
    .pt, .pth, .bin: a pickle of PyTorch that holds tensors alone, such as
    torch.save(steering_vector.layer_activations, "v.pt") of steering-vectors
      sea-export import v.pt edit --model org/model --as add --site mlp
    one direction of a file that has one for each layer, removed everywhere
      sea-export import mean_diffs.pt edit --model org/model --as ablate \\
        --numbering inputs --source-layer 12 [--keep-norm rows]
    the directory of an adapter of PEFT, LoRA or DoRA, of linear maps:
    adapter_config.json and adapter_model.safetensors
      sea-export import adapter edit --model org/model --coefficient 0.7
    """
    from sea_export.export.output import check_output, staged_output
    from sea_export.importing.source_forms import check_source_file
    from sea_export.model.location import locate_model

    check_output(edit, overwrite=overwrite)
    chosen.meaning(check_source_file(source), source.name)
    location = locate_model(model, revision)

    # Nothing before this needs torch, which takes seconds to import.
    from sea_export.cli.layer_table import print_layers
    from sea_export.cli.opening import opened_model
    from sea_export.cli.printing import print_commands
    from sea_export.cli.terminal import console
    from sea_export.evaluation.inspection import inspect
    from sea_export.export.output import check_room
    from sea_export.importing.import_edit import imported_edit, read_source

    read = read_source(source, chosen)
    with opened_model(location, RunOptions(trust_remote_code=trust_remote_code), edit) as opened:
        check_room(edit, opened.base.paths, needed_bytes=0)
        imported = imported_edit(read, opened.base, chosen)
    with staged_output(edit, overwrite=overwrite) as staging:
        imported.save(staging)
    print_layers(imported.summary, imported.weight_changes.summary)
    console.print(f"Saved the edit to {edit}. What it does to answers was not measured.", soft_wrap=True)
    trust = ("--trust-remote-code",) if trust_remote_code else ()
    print_commands(
        {
            "Try it": ("compare", model, edit, *trust),
            "Measure it": ("evaluate", edit, "--base", model, "--benchmark", "damage", *trust),
            "Bake it": ("save", edit, "OUTPUT", "--base", model, *trust),
        }
    )
    give_result("import", inspect(edit))
