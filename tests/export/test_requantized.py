"""`--requantize`: an edit folded into the quantized storage of its base, and nothing else changed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import sea_export
from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.formats import EditNeeds
from sea_export.export.merged.merge_check import check_merge
from sea_export.export.merged.merged_format import FORMAT
from sea_export.model.base import open_base
from sea_export.model.targets import Target
from sea_export.options import ExportOptions
from tests.helpers.hostile_checkpoints import change_json
from tests.helpers.messages import assert_names, naming
from tests.helpers.quantized_models import FP8_SCALES, HIDDEN, fp8_base, mxfp4_base
from tests.helpers.tiny_edits import spectral_edit

TARGETS = [Target(1, "mlp"), Target(2, "mlp")]
STORAGES = (*FP8_SCALES, "mixture", "mxfp4")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base_in(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """A base of a storage. Read only."""
    made: dict[str, Path] = {}

    def base(storage: str) -> Path:
        if storage not in made:
            directory = tmp_path_factory.mktemp(storage.replace(" ", "-")) / "base"
            if storage == "mxfp4":
                made[storage] = mxfp4_base(directory, tokenizer)
            else:
                scales = "float32" if storage == "mixture" else storage
                made[storage] = fp8_base(directory, tokenizer, scales, mixture=storage == "mixture")
        return made[storage]

    return base


@pytest.fixture
def demonstrations_file(demonstrations: tuple[Demonstration, ...], tmp_path: Path) -> Path:
    rows = [{"prompt": one.prompt, "positive": one.positive, "negative": one.negative} for one in demonstrations]
    file = tmp_path / "demonstrations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result: Result, facts: list[str], output: Path) -> None:
    """Before anything is loaded for the fit, in one line, and with nothing written."""
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert_names(errors[0], *facts)
    assert not output.exists()


def edit_of(targets: list[Target] = TARGETS, *, center: str = "off") -> SpectralEdit:
    return spectral_edit(targets, size=HIDDEN, center=center)


def requantized(base: Path, output: Path, edit: SpectralEdit) -> Path:
    sea_export.save(edit, base, output, requantize=True, verify=False)
    return output


def changed_tensors(a: Path, b: Path) -> set[str]:
    first, second = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    assert first.keys() == second.keys()
    return {name for name in first if not as_bytes(first[name]).equal(as_bytes(second[name]))}


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def down_projections(directory: Path) -> dict[str, torch.Tensor]:
    """Those of the edited layers, as transformers loads them."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if "down_proj" in name and "bias" not in name and f"layers.{TARGETS[0].layer}." in name
    }


@pytest.mark.parametrize("storage", STORAGES)
def test_transformers_reads_the_edit_and_the_rest_is_the_bases(
    storage: str, base_in: Callable[[str], Path], tmp_path: Path
) -> None:
    base, edit = base_in(storage), edit_of()
    output = requantized(base, tmp_path / "out", edit)
    changed = changed_tensors(base, output)
    assert changed
    assert all(".down_proj" in name and ("layers.1." in name or "layers.2." in name) for name in changed)
    for file in base.iterdir():
        assert file.name == WEIGHTS or (output / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = down_projections(base), down_projections(output)
    (layer,) = edit.layers[TARGETS[0]]
    for name, weight in before.items():
        transposed = storage == "mxfp4"
        expected = layer.apply(weight if transposed else weight.mT)
        found = after[name] if transposed else after[name].mT
        error = float((found - expected).norm() / expected.norm())
        assert error < (0.15 if storage == "mxfp4" else 0.035)
        assert error < float((weight - after[name]).norm() / weight.norm()) * 0.75, "less than the edit changes"


@pytest.mark.parametrize("storage", ["float32", "mxfp4"])
def test_an_affine_edit_is_in_the_biases(storage: str, base_in: Callable[[str], Path], tmp_path: Path) -> None:
    """gpt-oss has biases; of a Llama they are turned on, in the dtype that it computes in."""
    output = requantized(base_in(storage), tmp_path / "out", edit_of(center="affine"))
    stored = load_file(output / WEIGHTS)
    biases = {name: tensor for name, tensor in stored.items() if "down_proj" in name and name.endswith("bias")}
    assert {tensor.dtype for tensor in biases.values()} == {torch.bfloat16}
    _, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def planned(base: Path, output: Path, edit: SpectralEdit) -> tuple[str, ...]:
    """The problems that the check of the tensors finds."""
    options = ExportOptions(requantize=True)
    with open_base(str(base)) as opened:
        located = FORMAT.locate(opened, edit.targets, EditNeeds.of_edit(edit), options)
        plan = FORMAT.plan(edit, opened, located, options, lambda: pytest.fail("no model is needed"))
        return check_merge(output, opened.checkpoint, plan).problems


def one_unit(tensor: torch.Tensor) -> None:
    """Changes the number in the middle by one unit in its last place."""
    flat = tensor.reshape(-1).view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize])
    flat[flat.numel() // 2] += 1


@pytest.mark.parametrize("storage", STORAGES)
def test_a_unit_in_the_last_place_is_found(storage: str, base_in: Callable[[str], Path], tmp_path: Path) -> None:
    base, edit = base_in(storage), edit_of()
    output = requantized(base, tmp_path / "out", edit)
    assert planned(base, output, edit) == ()
    tensors = load_file(output / WEIGHTS)
    for name in sorted(changed_tensors(base, output))[:4]:
        altered = {other: tensor.clone() for other, tensor in tensors.items()}
        one_unit(altered[name])
        save_file(altered, output / WEIGHTS, metadata={"format": "pt"})
        problems = planned(base, output, edit)
        assert problems, name
        assert name in problems[0]
    unedited = next(name for name in tensors if "layers.0" in name and "gate_up" not in name and "proj" in name)
    altered = {other: tensor.clone() for other, tensor in tensors.items()}
    one_unit(altered[unedited])
    save_file(altered, output / WEIGHTS, metadata={"format": "pt"})
    assert unedited in planned(base, output, edit)[0]


def test_edited_weights_that_are_not_quantized_are_folded_as_they_are(
    base_in: Callable[[str], Path], tmp_path: Path
) -> None:
    """A base may leave some maps out of its quantization; gpt-oss leaves out all but its experts."""
    base, plain = tmp_path / "base", "model.layers.2.mlp.down_proj"
    shutil.copytree(base_in("float32"), base)
    tensors = load_file(base / WEIGHTS)
    del tensors[f"{plain}.weight_scale_inv"]
    tensors[f"{plain}.weight"] = torch.randn(HIDDEN, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    skipped = {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": [plain]}}
    change_json(base / "config.json", lambda whole: whole | skipped)
    attention = edit_of([Target(1, "attention"), Target(2, "attention")])
    for one, edit, quantized in ((base, edit_of(), True), (base_in("mxfp4"), attention, False)):
        output = tmp_path / f"out-{quantized}"
        requantized(one, output, edit)
        assert planned(one, output, edit) == ()
        changed = {name: tensor.dtype for name, tensor in load_file(output / WEIGHTS).items()}
        dtypes = {changed[name] for name in changed_tensors(one, output)}
        assert torch.bfloat16 in dtypes
        assert (torch.float8_e4m3fn in dtypes) == quantized
        assert torch.uint8 not in dtypes


def test_tensors_of_another_form_are_found(base_in: Callable[[str], Path], tmp_path: Path) -> None:
    base, edit = base_in("float32"), edit_of()
    output = requantized(base, tmp_path / "out", edit)
    tensors = load_file(output / WEIGHTS)
    name = "model.layers.1.mlp.down_proj.weight_scale_inv"
    for other in (tensors[name].bfloat16(), tensors[name].reshape(-1), None):
        altered = {**tensors, name: other}
        save_file({key: tensor for key, tensor in altered.items() if tensor is not None}, output / WEIGHTS)
        assert name in " ".join(planned(base, output, edit))


def weaker(edit: SpectralEdit, strength: float) -> SpectralEdit:
    layers = {
        target: tuple(replace(one, strength=strength, scale=None) for one in edits)
        for target, edits in edit.layers.items()
    }
    return replace(edit, layers=layers)


def test_an_edit_of_strength_zero_changes_no_bit(base_in: Callable[[str], Path], tmp_path: Path) -> None:
    for storage in ("float32", "power of two"):
        with pytest.raises(SeaExportError, match="changes nothing"):
            requantized(base_in(storage), tmp_path / "out", weaker(edit_of(), 0.0))


def test_an_edit_that_the_storage_rounds_away_does_not_pass(base_in: Callable[[str], Path], tmp_path: Path) -> None:
    edit = weaker(edit_of(), 0.02)
    output = requantized(base_in("mxfp4"), tmp_path / "out", edit)
    assert any("rounds most of the edit away" in problem for problem in planned(base_in("mxfp4"), output, edit))


# Verified, told and repeated


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", "mxfp4"])
def test_a_run_is_verified_told_and_repeated(
    storage: str, base_in: Callable[[str], Path], demonstrations_file: Path, tmp_path: Path
) -> None:
    base, output = base_in(storage), tmp_path / "out"
    options = ("--layers", "1-2", "--strength", "1", "--no-measure", "--requantize")
    saved = run("fit-and-save", base, output, "--demonstrations", demonstrations_file, *options)
    assert saved.exit_code == 0, saved.output
    assert "requantized" in " ".join(saved.output.split())
    manifest = json.loads((output / "sea_export.json").read_text())
    assert manifest["export"]["requantize"] is True
    errors = manifest["verification"]["storage_errors"]
    assert len(errors) == 2
    for error in errors.values():
        assert 0 < error["error"] < 2 * error["own_rounding"]
        assert math.isclose(error["kept"], 1, abs_tol=0.3)
    assert "requantized" in (output / "README.md").read_text()
    again = run(
        "reproduce",
        output / "sea_export.json",
        tmp_path / "again",
        "--base",
        base,
        "--demonstrations",
        demonstrations_file,
    )
    assert again.exit_code == 0, again.output
    assert "byte-identical" in again.output
    assert changed_tensors(output, tmp_path / "again") == set()
    verified = run("verify", tmp_path / "again", "--base", base)
    assert verified.exit_code == 0, verified.output
    inspected = run("inspect", output)
    assert "change kept" in inspected.output
    assert "down_proj" in inspected.output


# What is refused, before anything is fitted


REFUSED: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "plain weights too": (("--requantize", "--dequantize"), ["--requantize", "--dequantize"]),
    "another format": (("--requantize", "--format", "adapter"), ["--requantize", "merged"]),
    "its own code": (("--requantize", "--format", "custom-code"), ["--requantize", "merged"]),
    "neither": ((), ["fp8", "--requantize", "--dequantize"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused(
    case: str, base_in: Callable[[str], Path], demonstrations_file: Path, tmp_path: Path
) -> None:
    options, facts = REFUSED[case]
    given = ("--demonstrations", demonstrations_file, *options)
    result = run("fit-and-save", base_in("float32"), tmp_path / "out", *given)
    assert_refused(result, facts, tmp_path / "out")


def test_contradictions_are_refused_in_python(base_in: Callable[[str], Path], tmp_path: Path) -> None:
    for arguments, named in (
        ({"dequantize": True}, "requantize: "),
        ({"format": "adapter"}, "requantize: "),
        ({"layerwise": True}, "layerwise=False"),
    ):
        with pytest.raises(InputError, match=naming(named)):
            sea_export.save(edit_of(), base_in("float32"), tmp_path / "out", requantize=True, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_kind_is_refused(
    tiny_checkpoint: Path, base_in: Callable[[str], Path], demonstrations_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "gptq"
    shutil.copytree(tiny_checkpoint, other)
    method = {"quant_method": "gptq", "bits": 4}
    change_json(other / "config.json", lambda whole: whole | {"quantization_config": method})
    packed = tmp_path / "packed.gguf"
    packed.write_bytes(b"GGUF")
    refused = {tiny_checkpoint: ["not quantized"], other: ["gptq", "--dequantize"], packed: [packed.name, "unpacked"]}
    for base, facts in refused.items():
        result = run("fit-and-save", base, tmp_path / "out", "--demonstrations", demonstrations_file, "--requantize")
        assert_refused(result, ["--requantize", *facts], tmp_path / "out")
    with pytest.raises(InputError, match=naming("requantize: ", tiny_checkpoint.name)):
        requantized(tiny_checkpoint, tmp_path / "out", edit_of())


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda scale: scale.double(), ["float64"]),
        (lambda scale: scale[:, :3].contiguous(), ["(2, 3)"]),
        (lambda scale: scale.reshape(-1), ["(8,)"]),
        (lambda scale: scale[None].repeat(2, 1, 1), ["(2, 2, 4)"]),
    ],
)
def test_factors_that_are_no_grid_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], facts: list[str], base_in: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_in("float32"), base)
    tensors = load_file(base / WEIGHTS)
    name = "model.layers.1.mlp.down_proj.weight_scale_inv"
    save_file({**tensors, name: change(tensors[name])}, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=naming(name, *facts)):
        requantized(base, tmp_path / "out", edit_of())


@pytest.mark.parametrize(
    ("storage", "spoil"),
    [
        ("float32", lambda scales: scales.neg_()),
        ("float32", lambda scales: scales.fill_(torch.inf)),
        ("byte", lambda scales: scales.fill_(255)),
        ("mxfp4", lambda scales: scales.fill_(255)),
    ],
)
def test_factors_that_are_no_numbers_are_refused(
    storage: str, spoil: Callable[[torch.Tensor], torch.Tensor], base_in: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_in(storage), base)
    tensors = load_file(base / WEIGHTS)
    name = next(name for name in tensors if "layers.1." in name and "down_proj" in name and "scale" in name)
    spoil(tensors[name])
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=naming(name)):
        requantized(base, tmp_path / "out", edit_of())
    assert not (tmp_path / "out").exists()
