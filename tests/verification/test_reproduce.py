"""`reproduce`: the same run gives the same bytes, another one is told from it, what cannot be repeated is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.files.digests import file_digest
from sea_export.verification.reproduce import compare_runs
from tests.helpers.messages import assert_names
from tests.helpers.parameters import UNMEASURED

FIT = (*UNMEASURED, "--layers", "last:2", "--explained-variance", "0.7")
WEIGHT = "model.layers.3.mlp.down_proj.weight"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def pairs(demonstrations: tuple[Demonstration, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"ask": one.prompt, "positive": one.positive, "negative": one.negative} for one in demonstrations]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def first(tiny_checkpoint: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged run on six of the demonstrations. Read only."""
    output = tmp_path_factory.mktemp("first") / "out"
    options = ("--demonstrations", pairs, "--prompt-field", "ask", "--limit", 6, "--seed", 3, *FIT, "--no-verify")
    done("fit-and-save", tiny_checkpoint, output, *options)
    return output


@pytest.fixture
def copied(first: Path, tmp_path: Path) -> Path:
    """A copy of `first` that may be changed."""
    return shutil.copytree(first, tmp_path / "copied")


def repeat(output: Path, again: Path, base: Path, pairs: Path, *more: object) -> Result:
    return run("reproduce", output, again, "--base", base, "--demonstrations", pairs, *more)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def change_manifest(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = output / "sea_export.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")


def change_tensors(output: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes a file of a run, as if the run had written it so."""
    tensors = load_file(output / name)
    change(tensors)
    save_file(tensors, output / name, metadata={"format": "pt"})
    change_manifest(output, lambda manifest: manifest["files"].update({name: file_digest(output / name)}))


# Runs that are repeated


def test_the_same_run_gives_the_same_bytes(first: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    for number, manifest in enumerate((first, first / "sea_export.json")):
        result = repeat(manifest, tmp_path / str(number), tiny_checkpoint, pairs)
        assert result.exit_code == 0, result.output
        assert "byte-identical" in result.output
        assert "Changed since" not in result.output
        assert files(tmp_path / str(number)) == files(first), "manifest, card and all"


FORMS = {
    "adapter": ("--format", "adapter", "--adapter-rank", "3", "--dtype", "bfloat16"),
    "custom code": ("--format", "custom-code", "--feature-function", "tanh", "--position", "random", "--seed", "5"),
    "GGUF adapter": ("--format", "gguf-adapter", "--center", "affine"),
    "verified": ("--normalization", "calibrated", "--strength", "0.7"),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_option_is_repeated(form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = (*FORMS[form], "--demonstrations", "builtin:fairness", "--limit", 12, "--layers", "1,3")
    done(
        *("fit-and-save", tiny_checkpoint, tmp_path / "out", *options),
        *([] if form == "verified" else ["--no-verify"]),
    )
    result = done("reproduce", tmp_path / "out", tmp_path / "again", "--base", tiny_checkpoint)
    assert "byte-identical" in result.output
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_edits_fitted_apart_and_their_product(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    done("fit", tiny_checkpoint, tmp_path / "one", "--demonstrations", pairs, "--prompt-field", "ask", *FIT)
    done("fit", tiny_checkpoint, tmp_path / "two", "--demonstrations", "builtin:fairness", "--limit", 10, *FIT)
    for edits in (("one",), ("one", "two")):
        output, again = tmp_path / "-".join(["out", *edits]), tmp_path / "-".join(["again", *edits])
        given = [tmp_path / name for name in edits]
        done("save", *given, output, "--base", tiny_checkpoint, "--no-verify")
        result = repeat(output, again, tiny_checkpoint, pairs)
        assert "byte-identical" in result.output, result.output
        assert files(output) == files(again)


def test_an_edit_that_was_given_another_strength(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    done("fit", tiny_checkpoint, tmp_path / "edit", "--demonstrations", pairs, "--prompt-field", "ask", *FIT)
    output = tmp_path / "out"
    done("save", tmp_path / "edit", output, "--strength", 0.4, "--base", tiny_checkpoint, "--no-verify")
    assert {layer.strength for (layer,) in SpectralEdit.load(output).layers.values()} == {0.4}
    assert "0.4" in (output / "README.md").read_text(encoding="utf-8")
    result = repeat(output, tmp_path / "again", tiny_checkpoint, pairs)
    assert "byte-identical" in result.output, result.output
    assert files(output) == files(tmp_path / "again")


@pytest.mark.parametrize("kept", ["3", "1"])
def test_an_edit_that_was_reduced_to_some_layers(kept: str, tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    """Of the product of two edits, one of which may have none of these layers."""
    common = ("--demonstrations", pairs, "--prompt-field", "ask", *FIT)
    done("fit", tiny_checkpoint, tmp_path / "last", *common)
    done("fit", tiny_checkpoint, tmp_path / "all", *common, "--layers", "1-3")
    output = tmp_path / "out"
    edits = (tmp_path / "last", tmp_path / "all")
    done("save", *edits, output, "--strength", 0.4, "--only", kept, "--base", tiny_checkpoint, "--no-verify")
    edit = SpectralEdit.load(output)
    assert {target.layer for target in edit.targets} == {int(kept)}
    card = " ".join((output / "README.md").read_text(encoding="utf-8").split())
    assert f"layer {kept}, counted from 0. The edit was made for more layers" in card
    assert len(edit.layers[edit.targets[0]]) == (2 if kept == "3" else 1)
    result = repeat(output, tmp_path / "again", tiny_checkpoint, pairs, "--demonstrations", pairs)
    assert "byte-identical" in result.output, result.output
    refused = run("save", *edits, tmp_path / "other", "--only", "0", "--base", tiny_checkpoint)
    assert refused.exit_code == 2
    assert_names(refused.stderr, "--only", "1, 2, 3")


def test_the_choice_of_a_search_is_repeated_and_told(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    tuning = {"benchmark": "x", "rows": 7, "metric": "MC2", "max_kl": 0.2, "trials": 30, "pick": "best"}
    done("fit", tiny_checkpoint, tmp_path / "edit", "--demonstrations", pairs, "--prompt-field", "ask", *FIT)
    edit = SpectralEdit.load(tmp_path / "edit")
    replace(edit, provenance={**edit.provenance, "tuning": tuning}).save(tmp_path / "tuned")
    done("save", tmp_path / "tuned", tmp_path / "out", "--base", tiny_checkpoint, "--no-verify")
    result = repeat(tmp_path / "out", tmp_path / "again", tiny_checkpoint, pairs)
    assert "byte-identical" in result.output, result.output
    assert files(tmp_path / "out") == files(tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert "for the best MC2 within a mean KL of 0.2 nats per token, among 30 that were tried on 7 rows of x" in card


def test_what_python_fitted(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
    tiny_checkpoint: Path,
    pairs: Path,
    tmp_path: Path,
) -> None:
    """A loaded set is known by its origin; any other list is not, and whoever has it names it."""
    loaded = sea_export.load_demonstrations("builtin:truthfulness", limit=9)
    for name, contrasts in {"loaded": loaded, "a part": loaded[:8], "a list": demonstrations}.items():
        edit = sea_export.fit(llama, tokenizer, contrasts, layers="last:2")
        sea_export.save(edit, tiny_checkpoint, tmp_path / name, verify=False)
        result = run("reproduce", tmp_path / name, tmp_path / f"{name} again", "--base", tiny_checkpoint)
        if name == "loaded":
            assert "byte-identical" in result.output, result.output
            assert files(tmp_path / name) == files(tmp_path / f"{name} again")
        else:
            assert_refused(result, ["a list in memory"], tmp_path / f"{name} again")
    renamed = tmp_path / "pairs.jsonl"
    renamed.write_text(pairs.read_text(encoding="utf-8").replace('"ask"', '"prompt"'), encoding="utf-8")
    result = repeat(tmp_path / "a list", tmp_path / "again", tiny_checkpoint, renamed)
    assert "byte-identical" in result.output, result.output


# Equal to rounding


def test_sums_in_another_order_are_equal_to_rounding(
    copied: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    change_manifest(copied, lambda manifest: manifest["edit"]["options"]["capture"].update(batch_tokens=64))
    result = repeat(copied, tmp_path / "again", tiny_checkpoint, pairs)
    assert result.exit_code == 0, result.output
    assert "equal to rounding" in result.output
    assert WEIGHT in result.output
    assert_names(result.output, "Differs: model.safetensors")
    assert "Problem" not in result.output


def test_directions_that_point_the_other_way_are_the_same_edit(copied: Path, first: Path) -> None:
    def turn(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith((".positive", ".negative")):
                tensors[name] = -tensors[name]

    change_tensors(copied, "sea_edit/sea_edit.safetensors", turn)
    result = compare_runs(manifest_of(copied), copied, first)
    assert result.verdict == "equal to rounding"
    assert max(change.relative for change in result.tensors.values()) == pytest.approx(2)
    assert all(value < 1e-6 for value in result.edit.values())
    assert result.changed_files == ("sea_edit/sea_edit.safetensors",)


def manifest_of(output: Path) -> Mapping[str, Any]:
    manifest: dict[str, Any] = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    return manifest


# Different


def test_another_run_is_different_and_it_is_told_where(
    copied: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    change_manifest(copied, lambda manifest: manifest["edit"]["options"]["edit"].update(strength=0.9))
    result = repeat(copied, tmp_path / "again", tiny_checkpoint, pairs)
    assert result.exit_code == 1
    assert "is different" in result.output
    assert_names(result.output, WEIGHT, "model.safetensors", "3.mlp", "1.0e-01")
    assert (tmp_path / "again" / "model.safetensors").is_file(), "to be looked at"


@pytest.mark.parametrize(("factor", "verdict"), [(1 + 1e-4, "equal to rounding"), (1 + 1e-2, "different")])
def test_one_tensor_decides(factor: float, verdict: str, copied: Path, first: Path) -> None:
    change_tensors(copied, "model.safetensors", lambda tensors: tensors[WEIGHT].mul_(factor))
    result = compare_runs(manifest_of(copied), copied, first)
    assert result.verdict == verdict
    assert list(result.tensors) == [("model.safetensors", WEIGHT)]
    assert result.tensors["model.safetensors", WEIGHT].relative == pytest.approx(factor - 1, rel=0.1)
    assert bool(result.problems) == (verdict == "different")


def test_other_contents_and_other_files_are_different(copied: Path, first: Path) -> None:
    (copied / "config.json").write_text("{}", encoding="utf-8")
    (copied / "more.txt").write_text("more", encoding="utf-8")
    digests = {name: file_digest(copied / name) for name in ("config.json", "more.txt")}
    change_manifest(copied, lambda manifest: manifest["files"].update(digests))
    result = compare_runs(manifest_of(copied), copied, first)
    assert result.verdict == "different"
    one, other = result.problems
    assert_names(one, "more.txt")
    assert_names(other, "config.json")


def test_other_ranks_are_different(
    first: Path, copied: Path, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], llama: PreTrainedModel
) -> None:
    edit = fit_tiny(llama, layers="last:2", explained_variance=0.9)
    edit.save(copied / "sea_edit")
    digests = {f"sea_edit/{file.name}": file_digest(file) for file in (copied / "sea_edit").iterdir()}
    change_manifest(copied, lambda manifest: manifest["files"].update(digests))
    result = compare_runs(manifest_of(copied), copied, first)
    assert result.verdict == "different"
    assert any("shape" in problem for problem in result.problems)


def test_another_hidden_size_is_different(copied: Path, first: Path) -> None:
    """No base has both: the first run lies."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "values" not in name and tensor.ndim:
                tensors[name] = torch.nn.functional.pad(tensor, (0, 0, 0, 1) if tensor.ndim == 2 else (0, 1))

    change_tensors(copied, "sea_edit/sea_edit.safetensors", widen)
    result = compare_runs(manifest_of(copied), copied, first)
    assert result.verdict == "different"
    assert any("hidden size" in problem for problem in result.problems)


def test_a_manifest_that_lists_no_added_tensors_is_compared(copied: Path, first: Path) -> None:
    change_tensors(copied, "model.safetensors", lambda tensors: tensors[WEIGHT].mul_(1 + 1e-4))
    change_manifest(copied, lambda manifest: manifest.pop("added_tensors"))
    assert compare_runs(manifest_of(copied), copied, first).verdict == "equal to rounding"


def test_a_manifest_without_its_checkpoint_tells_less(
    copied: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    for file in files(copied):
        if file != "sea_export.json":
            (copied / file).unlink()
    result = repeat(copied, tmp_path / "again", tiny_checkpoint, pairs)
    assert "byte-identical" in result.output, result.output
    change_manifest(copied, lambda manifest: manifest["edit"]["options"]["edit"].update(strength=0.9))
    result = repeat(copied, tmp_path / "again", tiny_checkpoint, pairs, "--overwrite")
    assert result.exit_code == 1
    assert WEIGHT not in result.output
    assert "is different" in result.output


def test_versions_that_changed_are_named(copied: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    change_manifest(copied, lambda manifest: manifest["versions"].update(torch="0.1"))
    result = repeat(copied, tmp_path / "again", tiny_checkpoint, pairs)
    assert_names(result.output, "torch", "0.1", torch.__version__)
    assert result.output.count("Changed since") == 1


# Refused before any work


def assert_refused(result: Result, facts: Sequence[object], again: Path) -> None:
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, *facts)
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error:")]) == 1
    assert not again.exists()


@pytest.mark.usefixtures("no_capture")
def test_changed_demonstrations(first: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    text = pairs.read_text(encoding="utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace("?", "??"), encoding="utf-8")
    again = tmp_path / "again"
    assert_refused(repeat(first, again, tiny_checkpoint, other), [other, "SHA-256"], again)


@pytest.mark.usefixtures("no_capture")
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_changed_base(file: str, first: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    base, again = shutil.copytree(tiny_checkpoint, tmp_path / "base"), tmp_path / "again"
    data = bytearray((base / file).read_bytes())
    data[-3] ^= 1
    (base / file).write_bytes(data)
    assert_refused(repeat(first, again, base, pairs), [file, "base", "SHA-256"], again)


@pytest.mark.usefixtures("no_capture")
def test_what_has_to_be_named(first: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    where = ["pairs.jsonl", "--demonstrations"]
    assert_refused(run("reproduce", first, again, "--base", tiny_checkpoint), where, again)
    assert_refused(run("reproduce", first, again, "--demonstrations", pairs), [tiny_checkpoint.name, "--base"], again)
    assert_refused(repeat(first, again, tiny_checkpoint, pairs, "--demonstrations", pairs), where, again)


@pytest.mark.usefixtures("no_capture")
def test_the_run_itself_is_not_overwritten(first: Path, tiny_checkpoint: Path, pairs: Path) -> None:
    before = files(first)
    result = repeat(first, first, tiny_checkpoint, pairs, "--overwrite")
    assert result.exit_code == 2
    assert_names(result.stderr, first)
    assert files(first) == before


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "no options": (lambda manifest: manifest["edit"].pop("options"), ["edit", "sea-export save"]),
    "an unknown option": (
        lambda manifest: manifest["edit"]["options"].update(wavelength=3),
        ["wavelength"],
    ),
    "code of the base": (lambda manifest: manifest["export"].update(trust_remote_code=True), ["--trust-remote-code"]),
    "no export": (lambda manifest: manifest.pop("export"), ["'export'"]),
    "no threads": (lambda manifest: manifest["edit"]["computation"].update(threads=0), ["0 threads"]),
    "threads beyond number": (lambda manifest: manifest["edit"]["computation"].update(threads=2**40), ["threads"]),
    "positions that are none": (
        lambda manifest: manifest["edit"]["demonstrations"]["origin"].update(left_out="1,x"),
        ["left_out"],
    ),
    "a position of thousands of digits": (
        lambda manifest: manifest["edit"]["demonstrations"]["origin"].update(left_out="9" * 5000),
        ["left_out"],
    ),
    "no such dtype": (lambda manifest: manifest["base"].update(dtype="load"), ["dtype"]),
    "no version": (lambda manifest: manifest.pop("manifest_version"), ["sea_export.json", "manifest"]),
}


@pytest.mark.usefixtures("no_capture")
@pytest.mark.parametrize("case", DAMAGED)
def test_manifests_that_do_not_tell_enough(
    case: str, copied: Path, tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    change, facts = DAMAGED[case]
    change_manifest(copied, change)
    assert_refused(repeat(copied, tmp_path / "again", tiny_checkpoint, pairs), facts, tmp_path / "again")


def test_an_edit_forced_onto_another_base(
    first: Path, tiny_checkpoint_of: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    other = tiny_checkpoint_of("qwen3")
    done("save", first, tmp_path / "forced", "--base", other, "--force", "--no-verify")
    assert manifest_of(tmp_path / "forced")["edit"]["base"]["fitted_on"]["weights"]
    result = repeat(tmp_path / "forced", tmp_path / "again", other, pairs)
    assert_refused(result, ["another base", "--force"], tmp_path / "again")
