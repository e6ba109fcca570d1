"""What commands print about edits and outputs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.cards.effect_text import EXAMPLE_RULE, effect_sentences
from sea_export.cli.layer_table import print_layers
from sea_export.cli.terminal import console, errors, plain_table
from sea_export.errors import printable
from sea_export.export.formats import export_format
from sea_export.export.llama_cpp import conversion_commands, llama_cpp_command
from sea_export.export.manifest import further_arguments, read_manifest
from sea_export.export.modelfile import MODELFILE
from sea_export.export.output import EDIT_DIRECTORY

if TYPE_CHECKING:
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.saving import SaveResult
    from sea_export.verification.verification import Verification

__all__ = [
    "print_commands",
    "print_effect",
    "print_examples",
    "print_next_steps",
    "print_saved",
    "print_storage_errors",
    "print_verdict",
    "print_verification",
]


def print_storage_errors(errors_of: Mapping[str, Mapping[str, float]]) -> None:
    """Prints what the storage of requantized weights does to the edit, if there are such.

    Args:
        errors_of: name of a weight -> its errors.
    """
    table = plain_table(
        *("requantized weight", "error of the folded weight", "about the error of the base's", "change kept")
    )
    for name, one in errors_of.items():
        table.add_row(printable(name), f"{one['error']:.2%}", f"{one['own_rounding']:.2%}", f"{one['kept']:.1%}")
    if errors_of:
        console.print(table)


def print_effect(edit: SpectralEdit) -> None:
    """Prints what was measured of an edit, if anything was."""
    effect = edit.provenance.get("effect")
    if effect is not None:
        for sentence in effect_sentences(effect, edit.provenance["options"]["edit"]["strength"]):
            console.print(sentence, soft_wrap=True)


def print_verification(verification: Verification) -> None:
    """Prints the measurements of a verification, its problems, and what it did not check."""
    reference = "run-time edit" if verification.exact else "export in memory"
    rounded = "with edited weights moved" if verification.storage_errors else f"computed in {verification.dtype}"
    agreements = {
        "run-time edit / export in memory (fold error)": verification.fold_error,
        f"{reference} / as stored, base in {verification.dtype} (rounding error)": verification.rounding_error,
        f"base / base {rounded} (its own rounding)": verification.base_rounding,
        "base / run-time edit (what the edit does)": verification.effect,
    }
    table = plain_table("compared with", "largest logit difference", "mean KL (nats)", "top-1 agreement")
    for name, agreement in agreements.items():
        if agreement is not None:
            table.add_row(
                name,
                f"{agreement.max_logit_difference:.1e}",
                f"{agreement.mean_divergence:.1e}",
                f"{agreement.top1_agreement:.2%}",
            )
    if table.row_count:
        console.print(table)
    if verification.statement:
        console.print(verification.statement, soft_wrap=True)
    for problem in verification.problems:
        errors.print(f"Problem: {problem}", style="red", soft_wrap=True)
    if verification.unchecked:
        console.print(f"Not checked: {', '.join(verification.unchecked)}.", soft_wrap=True)


def print_verdict(verification: Verification, output: str) -> None:
    """Prints in one line whether an output is verified, or what failed."""
    if verification.passed:
        console.print(f"Verified: {output} is the edit that it claims to be.", soft_wrap=True)
    else:
        console.print(f"Failed: {output} is not verified: {verification.problems[0]}.", soft_wrap=True)


def print_examples(edit: SpectralEdit) -> None:
    """Prints answers before and after, if the model was asked."""
    record = edit.provenance.get("examples")
    if record is None:
        return
    rule = EXAMPLE_RULE.format(prompts=record["prompts"])
    console.print(f"\nWhat it says, before and after. {rule}", soft_wrap=True)
    for one in record["shown"]:
        console.print(f"\n> {one['prompt']}", soft_wrap=True)
        for label, kind in (("before", "base"), ("after", "edited")):
            marks = "".join(f" [{mark}]" for mark in one[f"{kind}_marks"])
            console.print(f"  {label + ':':8}{' '.join(one[kind].split())}{marks}", soft_wrap=True)
    console.print()


def print_saved(result: SaveResult, edit: SpectralEdit) -> None:
    """Prints what was written, what is known of it, and how to load it."""
    print_layers(edit.summary)
    if result.verification is None:
        console.print("Exported, and not verified: sea-export verify does it.")
    else:
        print_verification(result.verification)
        console.print("Exported faithfully (verified).")
    print_effect(edit)
    print_examples(edit)
    manifest = read_manifest(result.output)
    if command := llama_cpp_command(manifest, result.output):
        console.print(f"Saved to {result.output}. Start llama.cpp with it by", soft_wrap=True)
        console.print(f"  {command}", soft_wrap=True)
        if MODELFILE in manifest["files"]:
            console.print("or Ollama by")
            console.print(f"  ollama create NAME -f {shlex.quote(str(result.output / MODELFILE))}", soft_wrap=True)
        return
    console.print(f"Saved to {result.output}. Load it with", soft_wrap=True)
    arguments = further_arguments(manifest)
    console.print(f'  AutoModelForCausalLM.from_pretrained("{result.output}"{arguments})', soft_wrap=True)


def print_next_steps(output: Path, base: str, *, pushed: bool = False) -> None:
    """Prints the commands that usually follow.

    Args:
        output: what was written.
        base: the base, as the user wrote it.
        pushed: whether it is pushed already.
    """
    manifest = read_manifest(output)
    format = export_format(manifest["format"])
    own_code = ("--trust-remote-code",) if manifest["base"].get("own_code") else ()
    trust = ("--trust-remote-code",) if format.runs_code or own_code else ()
    # Where transformers does not load the output, its edit is applied to the base at run time.
    edited, record = (output, ("--record",)) if format.loads_in_transformers else (output / EDIT_DIRECTORY, ())
    commands: dict[str, tuple[object, ...]] = {
        "Read answers of both": ("compare", base, edited, *trust),
        "Talk with both": ("chat", output, "--base", base, *own_code),
        "Measure both": ("evaluate", edited, "--against", base, "--benchmark", "damage", *record, *trust),
    }
    if not pushed and (manifest["base"]["revision"] is not None or not format.names_location):
        commands["Publish it"] = ("push", output, "ORG/NAME")
    print_commands(commands)
    if not (format.runs_code or format.loads_beside_base or format.changes_source):
        console.print("For llama.cpp and Ollama, with the programs of llama.cpp:")
        for command in conversion_commands(str(output), output.name):
            console.print(f"  {command}", soft_wrap=True)


def print_commands(commands: Mapping[str, Sequence[object]]) -> None:
    """Prints commands of this program that may be run next.

    Args:
        commands: what one is for -> the command and its arguments.
    """
    width = max(map(len, commands)) + 1
    for purpose, command in commands.items():
        shown = " ".join(shlex.quote(str(word)) for word in command)
        console.print(f"{purpose + ':':{width}} sea-export {shown}", soft_wrap=True)
