"""Records the results of an evaluation in the manifest and the model card of the evaluated checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sea_export.cards.description import update_description
from sea_export.evaluation.benchmark_names import DAMAGE
from sea_export.evaluation.report import BenchmarkReport
from sea_export.export.manifest import read_manifest
from sea_export.locks import taking_turns

__all__ = ["record_evaluation"]


def record_evaluation(
    output: Path, reports: Sequence[BenchmarkReport], *, against: str, dtype: str, sampled: bool = False
) -> None:
    """Writes the results into the manifest of an output, and its model card again.

    Args:
        output: a checkpoint that sea-export wrote.
        reports: the results. They replace earlier results of the same benchmarks.
        against: the name of the base.
        dtype: the dtype in which both were computed.
        sampled: whether only a sample of the rows was used. The card says so, and no table of the Hub gets the metrics.

    Raises:
        InputError: sea-export did not write the checkpoint.
    """
    with taking_turns(output):
        recorded = (read_manifest(output).get("evaluation") or {}).get("benchmarks", ())
        own = {one.benchmark: {**one.record(), "sampled": sampled and one.benchmark != DAMAGE} for one in reports}
        known = {report["benchmark"]: report for report in recorded} | own
        evaluation = {"against": against, "dtype": dtype, "benchmarks": list(known.values())}
        update_description(output, {"evaluation": evaluation})
