"""One run finds each fact of its base once: what a step has found is handed to the next one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PretrainedConfig

from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.export.output import check_output
from sea_export.files.reading import read_json
from sea_export.fitting.layer_choice import choose_targets
from sea_export.model.architecture import find_output_projections
from sea_export.model.isolated_python import start_python
from sea_export.model.load_model import skeleton
from tests.helpers.calls import counted_calls
from tests.helpers.parameters import UNMEASURED, slow_but

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "config.json read by the package": read_json,
    "config loaded by transformers": PretrainedConfig.get_config_dict,
    "skeleton": skeleton,
    "search for output projections": find_output_projections,
    "choice of targets": choose_targets,
    "check of the output": check_output,
    "another process": start_python,
}


@pytest.mark.parametrize("format", slow_but(["merged"], ["merged", "adapter", "custom-code"]))
def test_a_fit_and_save_finds_each_fact_once(
    format: str, tiny_checkpoint: Path, demonstrations: tuple[Demonstration, ...], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def is_of_base(path: object, **options: object) -> bool:
        return Path(str(path)).resolve() in (base.resolve(), base.resolve() / "config.json")

    given = ["--demonstrations", tmp_path / "rows.jsonl", "--layers", "last:2", *UNMEASURED, "--format", format]
    with counted_calls(
        FUNCTIONS,
        {"config.json read by the package": is_of_base, "config loaded by transformers": is_of_base},
    ) as numbers:
        result = CliRunner().invoke(main, ["fit-and-save", *map(str, [base, tmp_path / "out", *given])])
    assert result.exit_code == 0, result.output
    assert numbers == dict.fromkeys(FUNCTIONS, 1)
