"""Every checkpoint that lies, given to the commands that read one: one error, nothing written, memory bounded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import hostile_checkpoints
from tests.helpers.refusals import Commands
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit

pytestmark = pytest.mark.slow

REFUSED = "A checkpoint that lies about itself is refused in one sentence, and nothing is written"


@pytest.fixture
def arena(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A directory with a good model, a copy of it to be changed, and an edit for it."""
    for name in ("good", "model"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    spectral_edit(MLP_TARGETS).save(tmp_path / "edit")
    return tmp_path


@pytest.mark.guarantee(REFUSED)
@pytest.mark.parametrize("name", hostile_checkpoints.ALL)
def test_save_refuses(name: str, arena: Path, commands: Commands) -> None:
    hostile_checkpoints.ALL[name](arena / "model")
    commands.refuses(arena, "save", arena / "edit", arena / "out", "--base", arena / "model")


@pytest.mark.guarantee(REFUSED)
@pytest.mark.parametrize("name", hostile_checkpoints.OF_FILES)
def test_diff_refuses(name: str, arena: Path, commands: Commands) -> None:
    hostile_checkpoints.ALL[name](arena / "model")
    commands.refuses(arena, "diff", arena / "good", arena / "model")


@pytest.mark.guarantee(REFUSED)
@pytest.mark.parametrize("name", sorted(hostile_checkpoints.TENSORS.keys() - {"edited weight of integers"}))
def test_fit_refuses(name: str, arena: Path, commands: Commands) -> None:
    hostile_checkpoints.ALL[name](arena / "model")
    commands.refuses(arena, "fit", arena / "model", arena / "out", "--limit", "4", "--layers", "last:1")


def test_what_is_changed_is_good(arena: Path, commands: Commands) -> None:
    """Otherwise it would be refused for another reason than the change, and a copy in shards or pickled is good too."""
    changes = {"whole": lambda directory: None, "sharded": hostile_checkpoints.sharded}
    for name, change in changes.items():
        shutil.copytree(arena / "good", arena / name)
        change(arena / name)
        arguments = ("save", arena / "edit", arena / f"out-{name}", "--base", arena / name, "--no-verify")
        assert commands.run(*arguments).status == 0
