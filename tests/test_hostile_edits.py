"""Wrong edits, manifests and adapters, given to the commands that read them: one error, and nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hostile_edits import ADAPTERS, EDITS, FOREIGN_EDITS, MANIFESTS
from refusals import Commands
from tiny_edits import MLP_TARGETS, spectral_edit

import sea_export

REFUSED_EDIT = "An edit that is damaged or does not fit the base is refused in one sentence, and nothing is written"
REFUSED_EXPORT = "An export with a false manifest, edit or adapter is refused in one sentence, and nothing is written"


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
    for form in ("merged", "adapter"):
        sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, directory / form, format=form, verify=False)
    return directory


@pytest.mark.promise(REFUSED_EDIT)
@pytest.mark.parametrize("name", EDITS)
def test_inspect_refuses(name: str, arena: Path, commands: Commands) -> None:
    EDITS[name](arena / "edit")
    commands.refuses(arena, "inspect", arena / "edit")


@pytest.mark.promise(REFUSED_EDIT)
@pytest.mark.parametrize("form", ["merged", "adapter", "custom-code"])
def test_save_refuses_what_does_not_fit_the_base(
    form: str, arena: Path, commands: Commands, count_case: object
) -> None:
    for name, attack in FOREIGN_EDITS.items():
        count_case()
        shutil.copytree(arena / "edit", arena / name)
        attack(arena / name)
        commands.refuses(arena, "save", arena / name, arena / "out", "--base", arena / "model", "--format", form)


@pytest.mark.promise(REFUSED_EXPORT)
@pytest.mark.parametrize("name", MANIFESTS)
def test_verify_refuses(name: str, exports: Path, arena: Path, commands: Commands) -> None:
    shutil.copytree(exports / "merged", arena / "out")
    MANIFESTS[name](arena / "out")
    commands.refuses(arena, "verify", arena / "out", "--base", arena / "model")


@pytest.mark.promise(REFUSED_EXPORT)
@pytest.mark.parametrize("name", ADAPTERS)
def test_verify_refuses_adapters(name: str, exports: Path, arena: Path, commands: Commands) -> None:
    shutil.copytree(exports / "adapter", arena / "out")
    ADAPTERS[name](arena / "out")
    commands.refuses(arena, "verify", arena / "out", "--base", arena / "model")


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
