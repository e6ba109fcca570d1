"""Figures of an evaluation, kept with the checkpoint that they are of: in its manifest and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sea_export.cards.description import update_description
from sea_export.evaluation.report import BenchmarkReport
from sea_export.export.manifest import read_manifest
from sea_export.locks import taking_turns

__all__ = ["record_evaluation"]


def record_evaluation(output: Path, reports: Sequence[BenchmarkReport], *, against: str, dtype: str) -> None:
    """Writes the figures into the manifest of `output`, and its model card anew.

    Args:
        output: a checkpoint that sea-export wrote.
        reports: the figures; those of benchmarks that were recorded before are replaced.
        against: what the base is called.
        dtype: what both were computed in.

    Raises:
        InputError: `output` is not a checkpoint of ours.
    """
    with taking_turns(output):
        recorded = (read_manifest(output).get("evaluation") or {}).get("benchmarks", ())
        known = {report["benchmark"]: report for report in recorded} | {one.benchmark: asdict(one) for one in reports}
        evaluation = {"against": against, "dtype": dtype, "benchmarks": list(known.values())}
        update_description(output, {"evaluation": evaluation})
