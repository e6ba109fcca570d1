"""What commands print about edits and outputs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from sea_export.cards.effect_text import effect_sentences
from sea_export.cli.terminal import console, errors
from sea_export.errors import printable
from sea_export.export.llama_cpp import llama_cpp_command
from sea_export.export.manifest import MANIFEST, further_arguments, read_manifest
from sea_export.export.modelfile import MODELFILE

if TYPE_CHECKING:
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.edit.summary import LayerSummary
    from sea_export.saving import SaveResult
    from sea_export.verification.verification import Verification

__all__ = ["print_effect", "print_layers", "print_saved", "print_storage_errors", "print_verification"]


def print_layers(layers: Sequence[LayerSummary]) -> None:
    """Prints ranks, spectra and relative change of each layer, without columns that say nothing of any of them."""
    columns = (
        "layer",
        "component",
        "kept",
        "dropped",
        "of",
        "first σ² (+)",
        "rank",
        "change",
        "signature",
        "reader error",
    )
    rows = [_layer_cells(layer) for layer in layers]
    shown = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    table = Table(*(columns[index] for index in shown))
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    console.print(table)


def _layer_cells(layer: LayerSummary) -> tuple[str, ...]:
    """One text a column; an empty one where the layer has no such value."""
    spectral = layer.spectrum > 0
    return (
        str(layer.target.layer),
        layer.target.component,
        str(layer.positive_rank) if spectral else "",
        str(layer.negative_rank) if spectral else "",
        str(layer.spectrum) if spectral else "",
        f"{layer.first_share:.2%}" if spectral else "",
        "" if layer.map_rank is None else str(layer.map_rank),
        f"{layer.relative_change:.2%}",
        f"{layer.signature:.4g}",
        "" if layer.reader_error is None else f"{layer.reader_error:.3f}",
    )


def print_storage_errors(directory: Path) -> None:
    """Prints what the storage of requantized weights does to the edit, if an output has a manifest that says so."""
    if not (directory / MANIFEST).is_file():
        return
    errors_of = (read_manifest(directory).get("verification") or {}).get("storage_errors", {})
    table = Table("requantized weight", "error of the folded weight", "about the error of the base's", "change kept")
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
    table = Table("compared with", "largest logit difference", "mean KL (nats)", "top-1 agreement")
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
        console.print(verification.statement)
    for problem in verification.problems:
        errors.print(f"Problem: {problem}", style="red", soft_wrap=True)
    if verification.unchecked:
        console.print(f"Not checked: {', '.join(verification.unchecked)}.", soft_wrap=True)


def print_saved(result: SaveResult, edit: SpectralEdit) -> None:
    """Prints what was written, and how to load it."""
    print_layers(edit.summary)
    if result.verification is not None:
        print_verification(result.verification)
    verified = "verified" if result.verification is not None else "not verified"
    manifest = read_manifest(result.output)
    if command := llama_cpp_command(manifest, result.output):
        console.print(f"Saved to {result.output} ({verified}). Start llama.cpp with it by")
        console.print(f"  {command}", soft_wrap=True)
        if MODELFILE in manifest["files"]:
            console.print("or Ollama by")
            console.print(f"  ollama create NAME -f {shlex.quote(str(result.output / MODELFILE))}", soft_wrap=True)
        return
    console.print(f"Saved to {result.output} ({verified}). Load it with")
    arguments = further_arguments(manifest)
    console.print(f'  AutoModelForCausalLM.from_pretrained("{result.output}"{arguments})', soft_wrap=True)
