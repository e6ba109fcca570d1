"""An adapter from the command line: imported, told, tried beside its base, baked, and taken apart by layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sea_export
from sea_export.chat.chat_options import ChatOptions
from sea_export.chat.chat_session import open_chat
from sea_export.chat.chat_source import find_chat_source
from sea_export.chat.page_actions import page_state
from sea_export.cli import main
from sea_export.model.run_options import RunOptions
from tests.helpers.adapter_files import random_adapter
from tests.helpers.messages import assert_names
from tests.helpers.tiny_models import tiny_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the tiny `llama` and its edit. Read only."""
    folder = tmp_path_factory.mktemp("adapter")
    random_adapter(tiny_model("llama"), folder / "tuned", r=3, target_modules=["q_proj", "down_proj"], use_dora=True)
    sea_export.import_edit(folder / "tuned", tiny_checkpoint).save(folder / "edit")
    return folder


def test_import_and_inspect_tell_of_each_weight(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("import", folder / "tuned", tmp_path / "edit", "--model", tiny_checkpoint, "--coefficient", 0.5)
    for result in (run(*arguments), run("inspect", tmp_path / "edit")):
        assert result.exit_code == 0, result.output
        assert_names(result.stdout, "model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj", 3, 0.5, "scaled")
    assert "positive activations" not in result.stdout, "there is no table of layers"
    picture = run("inspect", tmp_path / "edit", "--plot", tmp_path / "p.png")
    assert picture.exit_code == 2
    assert_names(picture.stderr, "--plot", "spectra")


def test_options_of_vectors_are_refused(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run("import", folder / "tuned", tmp_path / "edit", "--model", tiny_checkpoint, "--as", "add")
    assert result.exit_code == 2
    assert_names(result.stderr, "--as", "tuned", "--only")
    assert not (tmp_path / "edit").exists()


@pytest.mark.parametrize(("option", "value", "layers"), [("--only", "1-2", {1, 2}), ("--except", "0,3", {1, 2})])
def test_some_layers_are_baked(
    option: str, value: str, layers: set[int], folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = (option, value, "--base", tiny_checkpoint, "--no-verify")
    result = run("save", f"{folder / 'edit'}*0.5", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    edit = sea_export.load_edit(tmp_path / "out")
    assert edit.weight_changes.decoder_layers == layers
    assert {one.strength for one in edit.weight_changes.summary} == {0.5}
    changed = run("diff", tiny_checkpoint, tmp_path / "out")
    assert_names(changed.stdout, "model.layers.1.mlp.down_proj.weight", "4 tensors differ")
    again = run("reproduce", tmp_path / "out", tmp_path / "again", "--base", tiny_checkpoint)
    assert again.exit_code == 2
    assert_names(again.stderr, "tuned", "coefficient 0.5")


def test_it_is_compared_and_measured_at_a_strength(folder: Path, tiny_checkpoint: Path) -> None:
    asked = ("--prompt", "Who knows?", "--new-tokens", 4, "--strength", 0.5)
    compared = run("compare", tiny_checkpoint, folder / "edit", *asked)
    assert compared.exit_code == 0, compared.output
    assert_names(compared.stdout, "strength 0.5")
    measured = run("evaluate", folder / "edit", "--base", tiny_checkpoint, "--benchmark", "damage", "--limit", 2)
    assert measured.exit_code == 0, measured.output


def test_it_is_talked_with(folder: Path, tiny_checkpoint: Path) -> None:
    options = ChatOptions(base=str(tiny_checkpoint), new_tokens=4, layers="last:2")
    source = find_chat_source(str(folder / "edit"), options, RunOptions())
    with open_chat(source, options, RunOptions()) as session:
        assert page_state(session)["edited_layers"] == "0-3"
        assert page_state(session)["own_strength"] == 1
        assert list(session.setting.edit.decoder_layers) == [2, 3]
        assert session.ask("Who knows?", lambda _, __: True) is not None
        session.setting = session.setting.at_strength(0.25).in_layers("all")
        assert {one.strength for one in session.setting.edit.weight_changes.summary} == {0.25}
