"""`scripts/benchmark_methods` measures, goes on where it was interrupted, and prints what it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.benchmark_files import write_truthfulqa

ROOT = Path(__file__).parents[1]
BUDGET = 0.05


def run(*arguments: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_methods"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _is_of(record: dict[str, Any], arm: str, what: str) -> bool:
    return (record["settings"]["arm"], record["settings"]["what"]) == (arm, what)


@pytest.mark.slow
def test_methods_are_compared_at_equal_damage(tiny_checkpoint: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    given = (
        *("--model", tiny_checkpoint, "--truthfulqa", write_truthfulqa(tmp_path / "questions.csv"), "--kl", BUDGET),
        *("--demonstrations-limit", 60, "--text-step", 40, "--prompts", 3, "--results", results),
    )
    first = run(*given, "--methods", "natural-bias")
    both = run(*given, "--methods", "natural-bias,turned-sign,spectral")
    assert "natural bias" in first
    assert all(name in both for name in ("natural bias", "turned sign", "spectral"))
    assert run("--table", "--results", results) == both
    methods = "natural-bias,spectral,natural-bias-spectral-subspace"
    pooled = run(*given, "--methods", methods, "--report").split("rows of both halves")[1]
    assert "Difference from spectral, on the same rows" in pooled
    assert "- natural bias, held-out demonstrations: mean margin per token: " in pooled
    assert "- natural bias, truthfulqa: MC2: " in pooled
    halves = [one["metrics"]["MC2"] for one in records(results) if _is_of(one, "spectral", "truthfulqa")]
    edited, base = (np.mean([row[0] for half in halves for row in half[name]]) for name in ("rows", "base_rows"))
    assert f"{100 * (edited - base):+.1f} [" in next(row for row in pooled.splitlines() if row.startswith("| spectral"))
    found = records(results)
    keys = [json.dumps(one["settings"], sort_keys=True) for one in found]
    assert len(set(keys)) == len(keys), "nothing was measured twice"
    strengths = {one["settings"]["arm"]: one for one in found if "strength" in one}
    subspace = "natural bias, spectral subspace"
    assert set(strengths) == {"natural bias", "turned sign", "spectral", subspace}
    assert all(0.95 * BUDGET <= max(one["kl"].values()) <= BUDGET for one in strengths.values())
    measured = {one["settings"]["what"] for one in found}
    assert {"held-out demonstrations", "truthfulqa"} < measured


@pytest.mark.slow
def test_draws_of_shuffled_labels_are_summed_up(tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = (
        "--model",
        tiny_checkpoint,
        "--demonstrations-limit",
        60,
        "--kl",
        BUDGET,
        "--results",
        tmp_path / "r.jsonl",
    )
    small = ("--text-step", 40, "--prompts", 3)
    names = ["shuffled-labels", "shuffled-labels-2", "shuffled-labels-3"]
    printed = run(*given, *small, "--methods", ",".join(names))
    assert "(3 draws)" in printed
    strengths = {one["strength"] for one in records(tmp_path / "r.jsonl") if "strength" in one}
    assert len(strengths) == len(names), "each draw is another edit"
    questions = write_truthfulqa(tmp_path / "questions.csv")
    _, _, *rows = run(*given, "--agreement", "--truthfulqa", questions).splitlines()
    judged = [[cell.strip() for cell in row.split("|")[5:-1]] for row in rows]
    assert [name for name, *_ in judged] == ["left out of the fit", "of other kinds", "questions of TruthfulQA"]
    for _, gain, shuffled, by_chance in judged:
        assert float(shuffled.split("±")[1]) > 0
        assert (float(gain.split("±")[0]) > float(shuffled.split("±")[0])) == (float(by_chance) < 0.5)
