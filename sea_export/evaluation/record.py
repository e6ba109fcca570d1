"""Figures of an evaluation, kept with the checkpoint that they are of: in its manifest and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sea_export.claims import taking_turns
from sea_export.evaluation.report import BenchmarkReport
from sea_export.export.manifest import read_manifest, write_manifest
from sea_export.model_card import CARD, write_model_card

__all__ = ["record_evaluation"]


def record_evaluation(
    output: Path, base_directory: Path, reports: Sequence[BenchmarkReport], *, against: str, dtype: str
) -> None:
    """Writes the figures into the manifest of `output`, and its model card anew.

    Args:
        output: a checkpoint that sea-export wrote.
        base_directory: the base's files, whose model card tells license and language.
        reports: the figures; those of benchmarks that were recorded before are replaced.
        against: what the base is called.
        dtype: what both were computed in.

    Raises:
        InputError: `output` is not a checkpoint of ours.
    """
    with taking_turns(output):
        manifest = read_manifest(output)
        known = {report["benchmark"]: report for report in (manifest.get("evaluation") or {}).get("benchmarks", ())}
        known |= {report.benchmark: asdict(report) for report in reports}
        manifest["evaluation"] = {"against": against, "dtype": dtype, "benchmarks": list(known.values())}
        write_model_card(output, base_directory, manifest)
        files = {name: digest for name, digest in manifest["files"].items() if name != CARD}
        write_manifest(output, {**manifest, "files": files})
