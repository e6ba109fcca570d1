"""`import`, and `save` and `inspect` of several edits, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import sea_export
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from tests.helpers.gguf_files import write_control_vector
from tests.helpers.messages import assert_names
from tests.helpers.tiny_edits import SIZE


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def vector(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """A folder with the edits `a` and `b`, of layers 1 and 2, and of layer 2."""
    for name, layers in (("a", (1, 2)), ("b", (2,))):
        vectors = {layer: vector(layer + 10 * len(layers)) for layer in layers}
        SpectralEdit.from_vectors(vectors, provenance={"base": {"name": "tiny"}}).save(tmp_path / name)
    return tmp_path


def constants(output: Path) -> dict[int, torch.Tensor]:
    edit = sea_export.load_edit(output)
    return {target.layer: edit.layers[target].constant() for target in edit.targets}


def test_a_control_vector_becomes_an_edit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_control_vector(tmp_path / "happy.gguf", {2: vector(0)})
    result = run("import", tmp_path / "happy.gguf", tmp_path / "edit", "--model", tiny_checkpoint, "--coefficient", 2)
    assert result.exit_code == 0, result.output
    assert_names(result.stdout, "2.mlp", "compare", "not measured")
    torch.testing.assert_close(constants(tmp_path / "edit")[2], 2 * vector(0).double())
    assert run("inspect", tmp_path / "edit").exit_code == 0
    again = ("import", tmp_path / "happy.gguf", tmp_path / "edit", "--model", tiny_checkpoint)
    assert run(*again).exit_code == 2
    assert run(*again, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("file", "options", "facts"),
    [
        ("v.json", (), ("--as",)),
        ("v.json", ("--as", "add"), ("--layers",)),
        ("missing.json", ("--as", "add"), ("missing.json",)),
        ("v.txt", ("--as", "add"), ("v.txt", ".gguf")),
        ("v.json", ("--as", "keep"), ("--site",)),
    ],
)
def test_what_is_wrong_is_told(
    file: str, options: tuple[object, ...], facts: tuple[object, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "v.json").write_text(json.dumps([1.0] * SIZE))
    (tmp_path / "v.txt").write_text("1 2 3")
    result = run("import", tmp_path / file, tmp_path / "edit", "--model", tiny_checkpoint, *options)
    assert result.exit_code == 2
    assert_names(result.stderr, *facts)
    assert not (tmp_path / "edit").exists()


def saved(edits: Path, base: Path, *arguments: object) -> Result:
    return run("save", "--base", base, "--no-verify", *arguments, edits / "out")


def test_edits_are_scaled_and_subtracted(edits: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = constants(edits / "a"), constants(edits / "b")
    expected = {1: 0.5 * a[1], 2: 0.5 * a[2] - b[2]}
    monkeypatch.chdir(edits)
    for terms in (("a*0.5", "b*-1"), ("--", "a*0.5", "-b"), ("--", "-a*-0.5", "-b*1e0")):
        result = saved(edits, tiny_checkpoint, *terms)
        assert result.exit_code == 0, result.output
        torch.testing.assert_close(constants(edits / "out"), expected)
        shutil.rmtree(edits / "out")


def test_an_edit_whose_name_looks_like_a_term_is_taken_as_it_is(
    edits: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(edits)
    (edits / "a").rename(edits / "b*2")
    result = saved(edits, tiny_checkpoint, "b*2")
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(constants(edits / "out"), constants(edits / "b*2"))


@pytest.mark.parametrize(("option", "value", "layers"), [("--only", "2", [2]), ("--except", "0-1", [2])])
def test_layers_are_kept_and_left_out(
    option: str, value: str, layers: list[int], edits: Path, tiny_checkpoint: Path
) -> None:
    result = saved(edits, tiny_checkpoint, edits / "a", option, value)
    assert result.exit_code == 0, result.output
    assert sorted(constants(edits / "out")) == layers


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("a*",), ("a*",)),
        (("a*x",), ("a*x",)),
        (("a*0",), ("a*0",)),
        (("a*nan",), ("a*nan",)),
        (("c*2",), ("c",)),
        (("a*2", "--strength", 1), ("--strength",)),
        (("a", "--only", "x"), ("--only",)),
        (("a", "--only", "5"), ("--only", 5)),
        (("a", "--except", "0-9"), ("--except", 9)),
        (("a", "--except", "0-2"), ("1.mlp",)),
        (("a", "-b"), ("-b",)),
    ],
)
def test_terms_that_say_nothing_are_refused(
    arguments: tuple[object, ...],
    facts: tuple[object, ...],
    edits: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(edits)
    result = saved(edits, tiny_checkpoint, *arguments)
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, *facts)
    assert not (edits / "out").exists()


def test_what_of_each_edit_survives_is_shown(edits: Path, tiny_checkpoint: Path) -> None:
    half = f"{edits / 'a'}*-0.5"
    assert saved(edits, tiny_checkpoint, edits / "a", half).exit_code == 0
    result = run("inspect", edits / "out")
    assert result.exit_code == 0, result.output
    assert_names(result.stdout, "kept", "50.0%", "-100.0%")
    assert "kept: how much" not in run("inspect", edits / "a").stdout


def test_an_ablated_model_has_no_embedding_along_the_direction(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "refusal.json").write_text(json.dumps(vector(1).tolist()))
    source, edit = tmp_path / "refusal.json", tmp_path / "edit"
    assert run("import", source, edit, "--model", tiny_checkpoint, "--as", "ablate").exit_code == 0
    result = run("save", edit, tmp_path / "out", "--base", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    before, after = (load_file(one / "model.safetensors") for one in (tiny_checkpoint, tmp_path / "out"))
    unit = vector(1) / vector(1).norm()
    assert (after["model.embed_tokens.weight"] @ unit).abs().max() < 1e-5
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
