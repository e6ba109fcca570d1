"""`evaluate` from end to end: the run-time edit and exports of every format give the same metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedModel

import sea_export
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation import evaluate
from sea_export.files.digests import file_digest
from tests.helpers.benchmark_files import bbq_rows, write_jsonl, write_truthfulqa
from tests.helpers.messages import assert_names


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("rows")
    return {
        "truthfulqa": write_truthfulqa(directory / "questions.csv"),
        "bbq": write_jsonl(directory / "bbq.jsonl", bbq_rows()),
    }


@pytest.fixture(scope="module")
def edit(llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit]) -> SpectralEdit:
    return fit_tiny(llama, center="linear")


@pytest.fixture(scope="module")
def exports(edit: SpectralEdit, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("exports")
    edit.save(directory / "edit")
    for form in ("merged", "adapter", "custom-code"):
        sea_export.save(edit, tiny_checkpoint, directory / form, format=form, verify=False)
    return {path.name: path for path in directory.iterdir()}


def figures(file: Path) -> dict[str, dict[str, Any]]:
    return {
        f"{report['benchmark']} {figure['group']} {figure['name']}": figure
        for report in json.loads(file.read_text(encoding="utf-8"))["benchmarks"]
        for figure in report["figures"]
    }


@pytest.fixture(scope="module")
def run_time(
    files: dict[str, Path], exports: dict[str, Path], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The metrics of the run-time edit."""
    file = tmp_path_factory.mktemp("figures") / "figures.json"
    result = run(
        *("evaluate", tiny_checkpoint, "--edit", exports["edit"], "--json", file, "--benchmark", "damage"),
        *("--benchmark", f"truthfulqa={files['truthfulqa']}", "--benchmark", f"bbq={files['bbq']}"),
    )
    assert result.exit_code == 0, result.output
    return figures(file)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "adapter", "custom-code"])
def test_exports_give_the_metrics_of_the_run_time_edit(
    form: str,
    files: dict[str, Path],
    exports: dict[str, Path],
    run_time: dict[str, dict[str, Any]],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    result = run(
        *("evaluate", exports[form], "--against", tiny_checkpoint, "--json", tmp_path / "figures.json"),
        *("--benchmark", f"truthfulqa={files['truthfulqa']}", "--benchmark", f"bbq={files['bbq']}"),
        *("--benchmark", "damage", *(["--trust-remote-code"] if form == "custom-code" else [])),
    )
    assert result.exit_code == 0, result.output
    found = figures(tmp_path / "figures.json")
    assert list(found) == sorted(run_time, key=list(found).index)
    for name, figure in found.items():
        for kind in ("value", "base", "difference"):
            assert figure[kind] == (run_time[name][kind] and pytest.approx(run_time[name][kind], abs=2e-4, rel=2e-4))


def test_the_edit_makes_a_difference(run_time: dict[str, dict[str, Any]]) -> None:
    """Negative control: without it, every export would give the base's metrics too."""
    assert run_time["damage  KL from the base"]["value"][0] > 1e-2
    assert abs(run_time["truthfulqa  MC2"]["difference"][0]) > 1e-3
    assert run_time["truthfulqa  NLL of true answers"]["p_value"] < 1


@pytest.mark.parametrize("base_option", ["--base", "--against"])
def test_an_edit_is_measured_against_its_base(
    base_option: str,
    files: dict[str, Path],
    exports: dict[str, Path],
    run_time: dict[str, dict[str, Any]],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """As with `--edit`; and the edit at no strength is the base."""
    rows = ("--benchmark", f"truthfulqa={files['truthfulqa']}", "--json", tmp_path / "figures.json")
    result = run("evaluate", exports["edit"], base_option, tiny_checkpoint, *rows)
    assert result.exit_code == 0, result.output
    found = figures(tmp_path / "figures.json")
    assert found == {name: run_time[name] for name in found}
    result = run("evaluate", exports["edit"], base_option, tiny_checkpoint, *rows, "--strength", 0)
    assert result.exit_code == 0, result.output
    for figure in figures(tmp_path / "figures.json").values():
        assert figure["value"] == figure["base"]
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["strength"] == 0


def test_an_edit_of_another_base_is_told(
    edit: SpectralEdit, files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = ("--base", tiny_checkpoint, "--benchmark", f"bbq={files['bbq']}", "--limit", 10)
    for weights, told in (({"model.safetensors": "0" * 64}, True), (digests(tiny_checkpoint), False)):
        replace(edit, provenance={"base": {"name": "other", "weights": weights}}).save(tmp_path / f"edit-{told}")
        result = run("evaluate", tmp_path / f"edit-{told}", *rows)
        assert result.exit_code == 0, result.output
        assert ("not those of other" in result.stderr) == told


def digests(checkpoint: Path) -> dict[str, str]:
    return {"model.safetensors": file_digest(checkpoint / "model.safetensors")}


def test_custom_code_is_not_run_without_being_trusted(exports: dict[str, Path], files: dict[str, Path]) -> None:
    result = run("evaluate", exports["custom-code"], "--benchmark", f"bbq={files['bbq']}")
    assert result.exit_code == 2
    assert_names(result.stderr, "--trust-remote-code")


def test_a_model_alone_and_a_sample(tiny_checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = run("evaluate", tiny_checkpoint, "--benchmark", f"bbq={files['bbq']}", "--limit", 10, "--json", file)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["benchmarks"][0]["rows"] == 10
    assert all(figure["base"] is None and figure["p_value"] is None for figure in report["benchmarks"][0]["figures"])
    assert "difference" not in result.output


@pytest.mark.slow
def test_pictures_and_records(
    edit: SpectralEdit, tiny_checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    output, picture = tmp_path / "out", tmp_path / "figures.svg"
    sea_export.save(edit, tiny_checkpoint, output, verify=False)
    assert "Not evaluated" in (output / "README.md").read_text(encoding="utf-8")
    options = ("--against", tiny_checkpoint, "--record", "--plot", picture)
    result = run("evaluate", output, "--benchmark", f"truthfulqa={files['truthfulqa']}", *options)
    assert result.exit_code == 0, result.output
    assert "<svg" in picture.read_text(encoding="utf-8")
    result = run("evaluate", output, "--benchmark", "damage", *options)
    assert result.exit_code == 0, result.output
    manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert [one["benchmark"] for one in manifest["evaluation"]["benchmarks"]] == ["truthfulqa", "damage"]
    card = (output / "README.md").read_text(encoding="utf-8")
    mc2 = manifest["evaluation"]["benchmarks"][0]["figures"][1]
    assert f"{100 * mc2['base'][0]:.1f} [" in card
    assert "KL from the base (nats)" in card
    assert run("verify", output, "--base", tiny_checkpoint).exit_code == 0


BAD_OPTIONS = {
    "nothing to measure": ([], "--benchmark"),
    "unknown benchmark": (["--benchmark", "mmlu=x.csv"], "mmlu"),
    "missing file": (["--benchmark", "bbq=nowhere.jsonl"], "nowhere.jsonl"),
    "no export to record in": (["--benchmark", "damage", "--record"], "--against"),
    "picture of an unknown kind": (["--benchmark", "damage", "--plot", "x.docx"], ".png, .pdf, .svg"),
    "json into nowhere": (["--benchmark", "damage", "--json", "no/where.json"], "no/where.json"),
    "revision of a local path": (["--benchmark", "damage", "--revision", "main"], "--revision"),
    "missing edit": (["--benchmark", "damage", "--edit", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_before_a_model_is_loaded(
    case: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded before the checks")

    monkeypatch.setattr(evaluate, "open_loaded_model", fail)
    options, fact = BAD_OPTIONS[case]
    result = run("evaluate", tiny_checkpoint, *options)
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, fact)
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error:")]) == 1
