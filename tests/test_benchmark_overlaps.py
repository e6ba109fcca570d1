"""`scripts/benchmark_overlaps` finds demonstrations that a benchmark asks too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.benchmark_files import write_truthfulqa

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("prompt", "status"), [("Of what is the moon made?", 1), ("Which river flows through Vienna?", 0)]
)
def test_a_question_of_the_benchmark_is_found(prompt: str, status: int, tmp_path: Path) -> None:
    demonstrations = tmp_path / "demonstrations.jsonl"
    prompts = [prompt, "In which year was the bridge built?"]
    lines = [{"prompt": one, "positive": "One thing.", "negative": "Another."} for one in prompts]
    demonstrations.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, ROOT / "scripts" / "benchmark_overlaps", "--demonstrations", demonstrations]
    command += ["--truthfulqa", write_truthfulqa(tmp_path / "questions.csv")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == status, done.stderr
    assert f"{status} above 0.6" in done.stdout
    assert prompt in done.stdout
