"""Wrong edits, manifests and adapters, given to the commands that read them: one error, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import sea_export
from sea_export.cards.record_evaluation import record_evaluation
from sea_export.errors import InputError
from sea_export.evaluation.report import BenchmarkReport
from sea_export.export.manifest import MANIFEST
from sea_export.options import FitOptions
from tests.helpers.hostile_edits import ADAPTERS, EDITS, FOREIGN_EDITS, MANIFESTS
from tests.helpers.refusals import Commands, state_of
from tests.helpers.tampering import forged
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit

pytestmark = pytest.mark.slow

REFUSED_EDIT = "An edit that is damaged or does not fit the base is refused in one sentence, and nothing is written"
REFUSED_EXPORT = "An export with a false manifest, edit or adapter is refused in one sentence, and nothing is written"
TUNING = {"benchmark": "truthfulqa", "rows": 7, "metric": "MC2", "max_kl": 0.2, "trials": 30, "pick": "best"}


@pytest.fixture
def arena(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A directory with a good model and an edit to be changed."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    spectral_edit(MLP_TARGETS).save(tmp_path / "edit")
    return tmp_path


@pytest.fixture(scope="module")
def exports(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of each format, good ones."""
    directory = tmp_path_factory.mktemp("exports")
    told = {"demonstrations": {"count": 2, "sha256": "0"}, "options": asdict(FitOptions()), "tuning": TUNING}
    edit = replace(spectral_edit(MLP_TARGETS), provenance=told)
    for form in ("merged", "adapter"):
        sea_export.save(edit, tiny_checkpoint, directory / form, format=form, verify=False)
    return directory


@pytest.mark.guarantee(REFUSED_EDIT)
@pytest.mark.parametrize("name", EDITS)
def test_inspect_refuses(name: str, arena: Path, commands: Commands) -> None:
    EDITS[name](arena / "edit")
    commands.refuses(arena, "inspect", arena / "edit")


@pytest.mark.guarantee(REFUSED_EDIT)
@pytest.mark.parametrize("form", ["merged", "adapter", "custom-code"])
def test_save_refuses_what_does_not_fit_the_base(
    form: str, arena: Path, commands: Commands, count_case: object
) -> None:
    for name, attack in FOREIGN_EDITS.items():
        count_case()
        shutil.copytree(arena / "edit", arena / name)
        attack(arena / name)
        commands.refuses(arena, "save", arena / name, arena / "out", "--base", arena / "model", "--format", form)


@pytest.mark.guarantee(REFUSED_EXPORT)
@pytest.mark.parametrize("name", MANIFESTS)
def test_verify_refuses(name: str, exports: Path, arena: Path, commands: Commands) -> None:
    shutil.copytree(exports / "merged", arena / "out")
    MANIFESTS[name](arena / "out")
    if name.startswith(("edit", "weights that are cut")):
        forged(arena / "out")
    commands.refuses(arena, "verify", arena / "out", "--base", arena / "model")


@pytest.mark.guarantee(REFUSED_EXPORT)
@pytest.mark.parametrize("name", ADAPTERS)
def test_verify_refuses_adapters(name: str, exports: Path, arena: Path, commands: Commands) -> None:
    shutil.copytree(exports / "adapter", arena / "out")
    ADAPTERS[name](arena / "out")
    forged(arena / "out")
    commands.refuses(arena, "verify", arena / "out", "--base", arena / "model")


WRONG: tuple[Any, ...] = (None, "text", -1e308, ["text"], [{}], {"benchmarks": [{}], "composed": 3})


@pytest.mark.guarantee(REFUSED_EXPORT)
def test_figures_are_recorded_in_any_manifest_or_it_is_refused(
    exports: Path, arena: Path, count_case: Callable[[], None]
) -> None:
    """Every entry, and every entry of those, and of those, in turn is something else."""
    shutil.copytree(exports / "merged", arena / "out")
    report = BenchmarkReport("damage", rows=1, metrics=())
    record_evaluation(arena / "out", [report], against="base", dtype="float32")
    good = json.loads((arena / "out" / MANIFEST).read_text(encoding="utf-8"))
    refused = 0
    for place in places_in(good, depth=3):
        for wrong in WRONG:
            count_case()
            written = json.dumps(with_entry(good, place, wrong))
            (arena / "out" / MANIFEST).write_text(written, encoding="utf-8")
            before = state_of(arena)
            words = refusal(arena / "out", report)
            if words is not None:
                refused += 1
                assert MANIFEST in words
                assert state_of(arena) == before
    assert refused > 100


def refusal(output: Path, report: BenchmarkReport) -> str | None:
    """In what words it is refused to record a figure, if it is."""
    try:
        record_evaluation(output, [report], against="base", dtype="float32")
    except InputError as error:
        return str(error)
    return None


Place = tuple[str | int, ...]


def places_in(whole: Any, depth: int) -> Iterator[Place]:
    """Where there are entries in what JSON describes, of lists only the first."""
    entries = whole.items() if isinstance(whole, dict) else enumerate(whole[:1]) if isinstance(whole, list) else ()
    for key, value in entries:
        yield (key,)
        if depth > 1:
            yield from ((key, *deeper) for deeper in places_in(value, depth - 1))


def with_entry(whole: Any, place: Place, value: Any) -> Any:
    """A copy with another value at a place."""
    if not place:
        return value
    copy = whole.copy()
    copy[place[0]] = with_entry(whole[place[0]], place[1:], value)
    return copy


def test_the_files_that_are_changed_are_good(exports: Path, arena: Path, commands: Commands) -> None:
    """Otherwise they would be refused for another reason than the change."""
    for arguments in (
        ("inspect", arena / "edit"),
        ("inspect", exports / "merged"),
        ("verify", exports / "merged", "--base", arena / "model"),
        ("verify", exports / "adapter", "--base", arena / "model"),
        ("save", arena / "edit", arena / "out", "--base", arena / "model", "--no-verify"),
    ):
        outcome = commands.run(*arguments)
        assert outcome.status == 0, outcome.output
