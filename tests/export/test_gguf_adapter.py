"""Adapters for llama.cpp: a LoRA and a control vector, written, verified, and refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from sea_export.cards.model_card import model_card
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit, compose
from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.loaded_model import open_loaded_model
from sea_export.export.formats import export_format
from sea_export.export.gguf_adapter import gguf_adapter_writer
from sea_export.export.gguf_adapter.constant_check import check_constants
from sea_export.export.gguf_adapter.llama_cpp_files import CONTROL_VECTOR, LORA, AdapterFile
from sea_export.export.manifest import read_manifest
from sea_export.files.digests import file_digest
from sea_export.hub import push
from sea_export.model.architecture import find_output_projections
from sea_export.model.base import open_base
from sea_export.model.load_model import skeleton
from sea_export.model.run_options import RunOptions
from sea_export.model.targets import Target
from sea_export.options import EditOptions, ExportOptions, FitOptions
from sea_export.saving import locate_fit, save
from sea_export.verification.verify import verify
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.gguf_files import write_gguf, write_gguf_of
from tests.helpers.messages import assert_names
from tests.helpers.tiny_edits import layer_edit, spectral_edit
from tests.helpers.tiny_models import random_model

gguf = pytest.importorskip("gguf")

MLPS = [Target(1, "mlp"), Target(2, "mlp")]
BOTH = [Target(0, "attention"), Target(1, "mlp")]


def edit(targets: list[Target], *, center: str = "off", size: int = 32) -> SpectralEdit:
    return spectral_edit(targets, center=center, size=size, normalization="none")


def constant_edit(layer: int) -> SpectralEdit:
    """An edit by a constant alone."""
    whole = edit([Target(layer, "mlp")], center="affine").layers[Target(layer, "mlp")][0]
    empty = torch.zeros(32, 0)
    return SpectralEdit(
        {Target(layer, "mlp"): (replace(whole, positive=empty, negative=empty, shift=9 * whole.shift),)}, {"base": {}}
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def base(folder: Path, **options: object) -> Path:
    write_gguf(folder / "m.gguf", layers=3, **options)
    return folder / "m.gguf"


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return {one.name: torch.tensor(one.data) for one in gguf.GGUFReader(file).tensors}


def fields(file: Path) -> dict[str, object]:
    return {name: one.contents() for name, one in gguf.GGUFReader(file).fields.items() if not name.startswith("GGUF.")}


def files(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def by_hand(model: PreTrainedModel, output: Path, weights: dict[str, str], layers: torch.nn.ModuleList) -> ExitStack:
    """A model with W + alpha/r B A for each weight, and the directions added to the outputs of layers."""
    hooks = ExitStack()
    if (output / LORA).exists():
        factors, alpha = tensors(output / LORA), fields(output / LORA)["adapter.lora.alpha"]
        for name in {name.rpartition(".lora_")[0] for name in factors}:
            a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
            parameter = model.get_parameter(weights[name])
            change = alpha / b.shape[-1] * b @ a
            parameter.data += change if change.shape == parameter.shape else change.mT
    if (output / CONTROL_VECTOR).exists():
        for name, direction in tensors(output / CONTROL_VECTOR).items():
            layer = layers[int(name.removeprefix("direction."))]
            hook = layer.register_forward_hook(
                lambda _, inputs, given, direction=direction: (
                    (given[0] + direction, *given[1:]) if isinstance(given, tuple) else given + direction
                )
            )
            hooks.callback(hook.remove)
    return hooks


def largest_difference(path: Path, output: Path, own: SpectralEdit, weights: dict[str, str]) -> float:
    """How far the predictions with the files put on by hand are from those of the run-time edit."""
    with open_base(str(path), dtype=torch.float32) as opened, torch.inference_mode():
        model = opened.load_model(dtype=torch.float32)
        tokens = torch.tensor([[1, 5, 7, 9, 11]])
        unedited = model(tokens).logits
        with own.apply(model, opened.output_projections(own.targets)):
            expected = model(tokens).logits
        assert not torch.allclose(unedited, expected, atol=1e-2)
        layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
        with by_hand(model, output, weights, layers):
            actual = model(tokens).logits
        return float((actual - expected).abs().max() / expected.abs().max())


LLAMA = {f"blk.{n}.ffn_down.weight": f"model.layers.{n}.mlp.down_proj.weight" for n in range(3)} | {
    f"blk.{n}.attn_output.weight": f"model.layers.{n}.self_attn.o_proj.weight" for n in range(3)
}


@pytest.mark.parametrize("center", ["off", "linear"])
def test_a_linear_edit_is_a_lora(center: str, tmp_path: Path) -> None:
    path, output, own = base(tmp_path, types={"ffn_down": "Q4_1"}), tmp_path / "out", edit(BOTH, center=center)
    result = save(own, path, output, format="gguf-adapter")
    assert files(output) == {LORA, "Modelfile", "README.md", "sea_export.json", "sea_edit"}
    written, header = tensors(output / LORA), fields(output / LORA)
    ranks = {name: tensor.shape[-2] for name, tensor in written.items() if name.endswith("lora_a")}
    assert len(set(ranks.values())) == 1
    assert header == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": next(iter(ranks.values())),
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny Title",
    }
    assert set(ranks) == {"blk.0.attn_output.weight.lora_a", "blk.1.ffn_down.weight.lora_a"}
    assert written["blk.1.ffn_down.weight.lora_b"].shape == (32, header["adapter.lora.alpha"])
    assert largest_difference(path, output, own, LLAMA) < 1e-5
    assert result.verification is not None
    assert result.verification.passed
    assert verify(output, path).passed


def test_an_affine_edit_has_a_control_vector_too(tmp_path: Path) -> None:
    path, output, own = base(tmp_path), tmp_path / "out", edit(MLPS, center="affine")
    assert save(own, path, output, format="gguf-adapter").verification is not None
    assert files(output) == {LORA, CONTROL_VECTOR, "README.md", "sea_export.json", "sea_edit"}
    assert fields(output / CONTROL_VECTOR) == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny Title",
    }
    written = tensors(output / CONTROL_VECTOR)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == {
        "direction.1": (32,),
        "direction.2": (32,),
    }
    assert torch.equal(written["direction.1"], own.layers[MLPS[0]][0].shift)
    assert largest_difference(path, output, own, LLAMA) < 1e-5
    assert verify(output, path).passed


def test_an_edit_by_a_constant_is_a_control_vector_alone(tmp_path: Path) -> None:
    path, output, own = base(tmp_path), tmp_path / "out", constant_edit(1)
    save(own, path, output, format="gguf-adapter", dtype=torch.float32)
    assert files(output) == {CONTROL_VECTOR, "README.md", "sea_export.json", "sea_edit"}
    assert largest_difference(path, output, own, LLAMA) < 1e-5
    card = " ".join((output / "README.md").read_text().split())
    assert f"```bash llama-cli -m m.gguf --control-vector {CONTROL_VECTOR} ```" in card
    assert "There is no Modelfile" in card


def test_biases_of_the_base_are_edited_by_the_control_vector(tmp_path: Path) -> None:
    """Also by a linear edit: it changes what the bias adds to the output."""
    path, output, own = base(tmp_path, biases=True), tmp_path / "out", edit(MLPS)
    save(own, path, output, format="gguf-adapter", verify=False, dtype=torch.float32)
    assert set(tensors(output / CONTROL_VECTOR)) == {"direction.1", "direction.2"}
    assert largest_difference(path, output, own, LLAMA) < 1e-5
    with pytest.raises(InputError, match=r"0\.mlp: .* the edit needs a constant in layer 0\. Choose other --layers"):
        save(edit([Target(0, "mlp")]), path, tmp_path / "first", format="gguf-adapter", verify=False)


def test_products_of_edits_and_ranks_above_the_width(tmp_path: Path) -> None:
    """Factors are never larger than the change that they make."""
    path, output = base(tmp_path), tmp_path / "out"
    own = compose([edit(MLPS, center="affine"), edit(MLPS[:1], center="affine"), edit(MLPS, center="linear")])
    save(own, path, output, format="gguf-adapter", verify=False, dtype=torch.float32)
    assert fields(output / LORA)["adapter.lora.alpha"] == 32
    assert largest_difference(path, output, own, LLAMA) < 1e-4


@pytest.mark.parametrize("center", ["off", "affine"])
def test_inputs_first(center: str, tmp_path: Path) -> None:
    write_gguf_of(tmp_path / "m.gguf", "gpt2")
    output, own = tmp_path / "out", edit([Target(1, "mlp")], center=center)
    save(own, tmp_path / "m.gguf", output, format="gguf-adapter", verify=False, dtype=torch.float32)
    names = {"blk.1.ffn_down.weight": "transformer.h.1.mlp.c_proj.weight"}
    assert largest_difference(tmp_path / "m.gguf", output, own, names) < 1e-4


@pytest.mark.parametrize("center", ["off", "affine"])
def test_experts_have_factors_of_their_own(center: str, tmp_path: Path) -> None:
    """The constant is that of their sum, so that experts can have one here."""
    write_gguf_of(tmp_path / "m.gguf", "qwen3moe")
    output, own = tmp_path / "out", edit([Target(1, "mlp")], center=center)
    save(own, tmp_path / "m.gguf", output, format="gguf-adapter", dtype=torch.float32)
    written = tensors(output / LORA)
    assert written["blk.1.ffn_down_exps.weight.lora_a"].ndim == 3
    names = {"blk.1.ffn_down_exps.weight": "model.layers.1.mlp.experts.down_proj"}
    assert largest_difference(tmp_path / "m.gguf", output, own, names) < 1e-4


def test_a_model_in_parts(tmp_path: Path) -> None:
    base(tmp_path, split=12)
    first, own = tmp_path / "m-00001-of-00003.gguf", edit(MLPS)
    save(own, first, tmp_path / "out", format="gguf-adapter", verify=False)
    assert files(tmp_path / "out") == {LORA, "README.md", "sea_export.json", "sea_edit"}
    assert len(read_manifest(tmp_path / "out")["base"]["files"]) == 4
    whole = tmp_path / "whole"
    whole.mkdir()
    save(own, base(whole), tmp_path / "of whole", format="gguf-adapter", verify=False)
    one, other = tensors(tmp_path / "out" / LORA), tensors(tmp_path / "of whole" / LORA)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("family", "architecture", "weight"),
    [
        ("mistral", "llama", "model.layers.1.mlp.down_proj.weight"),
        ("neox", "gptneox", "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"),
        ("gemma2", "gemma2", "model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_bases_in_safetensors(
    family: str, architecture: str, weight: str, tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path, output = tiny_checkpoint_of(family), tmp_path / "out"
    own = edit([Target(1, "mlp")], size=24)
    result = save(own, path, output, format="gguf-adapter")
    assert result.verification is not None
    assert fields(output / LORA)["general.architecture"] == architecture
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    written = tensors(output / LORA)
    changed = written["blk.1.ffn_down.weight.lora_b"] @ written["blk.1.ffn_down.weight.lora_a"]
    stored = model.get_parameter(weight).detach()
    assert torch.allclose(stored + changed, own.layers[Target(1, "mlp")][0].linear(stored.T).T, atol=1e-5)
    assert read_manifest(output)["gguf_adapter"]["base_file"] == f"{path.name}.gguf"
    assert "`convert_hf_to_gguf.py` makes of it" in (output / "README.md").read_text()


CONSTANTS = {
    "a norm after the block": ("gemma2", [Target(1, "mlp")], "changed by a norm or a factor"),
    "no norm before it": ("olmo2", [Target(1, "mlp")], "changed by a norm or a factor"),
    "a factor": ("granite", [Target(2, "mlp")], "changed by a norm or a factor"),
    "another block after it": ("llama", [Target(1, "attention")], "read by another block"),
    "layer 0": (
        "llama",
        [Target(1, "mlp"), Target(0, "mlp")],
        r"0\.mlp: llama\.cpp adds control vectors to layers from 1",
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_without_a_place_are_refused(case: str) -> None:
    family, targets, message = CONSTANTS[case]
    config = tiny_family_config(family)
    if family == "granite":
        config.residual_multiplier = 0.22
    model = skeleton(config)
    with pytest.raises(InputError, match=message):
        check_constants(model, find_output_projections(model, targets))


@pytest.mark.parametrize(("family", "target"), [("cohere", "attention"), ("cohere", "mlp"), ("llama", "mlp")])
def test_constants_that_are_only_added_have_a_place(family: str, target: str) -> None:
    model = skeleton(tiny_family_config(family))
    check_constants(model, find_output_projections(model, [Target(1, target)]))


def test_refusals_come_before_a_fit(tiny_checkpoint: Path) -> None:
    export, attention = ExportOptions(format="gguf-adapter"), [Target(1, "attention")]
    with open_base(str(tiny_checkpoint)) as opened:
        with pytest.raises(InputError, match="read by another block"):
            locate_fit(opened, attention, FitOptions(center="affine"), export)
        assert locate_fit(opened, attention, FitOptions(center="linear"), export).projections


def test_what_scales_all_of_a_weight_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    format = export_format("gguf-adapter")
    for options in (EditOptions(normalization="calibrated"), EditOptions(projections="positive")):
        with pytest.raises(InputError, match=r"--format: gguf-adapter holds changes of low rank"):
            format.check_options(FitOptions(edit=options), ExportOptions(format="gguf-adapter"))
        layer = layer_edit(None, "off", options)
        own = SpectralEdit({Target(1, "mlp"): (layer,)}, {"base": {}})
        with pytest.raises(InputError, match=r"--format: gguf-adapter holds changes of low rank"):
            save(own, tiny_checkpoint, tmp_path / "out", format="gguf-adapter")
    with pytest.raises(InputError, match="--normalization: token"):
        format.check_options(FitOptions(edit=EditOptions(normalization="token")), ExportOptions(format="gguf-adapter"))
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    random_model(tiny_family_config("opt")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with open_base(str(tmp_path)) as opened, pytest.raises(InputError, match=r"\(architecture opt\)"):
        locate_fit(opened, [Target(1, "mlp")], FitOptions(), ExportOptions(format="gguf-adapter"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, m.gguf, and an unverified adapter of it with both files."""
    folder = tmp_path_factory.mktemp("gguf-adapter")
    save(edit(MLPS, center="affine"), base(folder), folder / "out", format="gguf-adapter", verify=False)
    return folder


@pytest.mark.parametrize(
    "what", ["factor", "direction", "alpha", "architecture", "longer", "shorter", "missing", "not a number"]
)
def test_verification_finds_what_was_changed_afterwards(what: str, exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(exported / "out", output)
    file = output / (CONTROL_VECTOR if what == "direction" else LORA)
    reader, contents = gguf.GGUFReader(file), bytearray(file.read_bytes())
    if what in ("factor", "direction", "not a number"):
        place = reader.tensors[0].data_offset
        contents[place + 2 : place + 4] = b"\xc0\x7f" if what == "not a number" else b"\x00\x3f"
    elif what in ("alpha", "architecture"):
        field = reader.fields["adapter.lora.alpha" if what == "alpha" else "general.architecture"]
        contents[field.offset + sum(part.nbytes for part in field.parts) - 1] ^= 1
    contents = {"longer": contents + b"\0", "shorter": contents[:-64], "missing": bytearray()}.get(what, contents)
    file.write_bytes(contents) if contents else file.unlink()
    assert not verify(output, exported / "m.gguf").passed
    # And where the manifest was changed too, so that only the comparison with the base finds it.
    manifest = json.loads((output / "sea_export.json").read_text())
    manifest["files"] = {name: file_digest(output / name) for name in manifest["files"] if (output / name).exists()}
    (output / "sea_export.json").write_text(json.dumps(manifest))
    try:
        assert not verify(output, exported / "m.gguf").passed
    except InputError:  # where the header is broken now
        refused = True
    else:
        refused = False
    assert refused == (what in ("shorter", "missing"))


def test_an_adapter_of_another_base_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its m\.gguf is not that of the base of the manifest|its model\.safetensors"):
        verify(exported / "out", base(tmp_path, types={"ffn_down": "Q4_0"}))


def test_a_base_may_be_moved(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The files name the base as it was called. Its digests say that it is the same one."""
    save(edit([Target(1, "mlp")], size=24), tiny_checkpoint, tmp_path / "out", format="gguf-adapter", verify=False)
    shutil.copytree(tiny_checkpoint, tmp_path / "moved")
    assert fields(tmp_path / "out" / LORA)["general.base_model.0.name"] == tiny_checkpoint.name
    assert f"FROM ./{tiny_checkpoint.name}.gguf" in (tmp_path / "out" / "Modelfile").read_text()
    assert verify(tmp_path / "out", tmp_path / "moved").passed


def test_commands_know_the_format(exported: Path, tmp_path: Path) -> None:
    edit(MLPS, center="affine").save(tmp_path / "edit")
    output = tmp_path / "my output"
    saved = run("save", tmp_path / "edit", output, "--base", exported / "m.gguf", "--format", "gguf-adapter")
    command = f"llama-cli -m m.gguf --lora '{output / LORA}' --control-vector '{output / CONTROL_VECTOR}'"
    assert_names(saved.output, "rank", "Control vector for llama.cpp: constants in 2 layers", command)
    assert "ollama" not in saved.output
    assert_names(saved.output, f"'{output / 'sea_edit'}' --against")
    assert (output / LORA).read_bytes() == (exported / "out" / LORA).read_bytes()
    assert_names(run("inspect", output).output, "1.mlp")
    assert run("verify", output, "--base", exported / "m.gguf").exit_code == 0
    manifest = read_manifest(output)
    assert manifest["gguf_adapter"]["files"] == [LORA, CONTROL_VECTOR]
    card = " ".join(model_card(manifest).split())
    assert f"```bash llama-cli -m m.gguf --lora {LORA} --control-vector {CONTROL_VECTOR} ```" in card
    assert "from_pretrained" not in card
    assert "library_name: llama.cpp" in card
    with pytest.raises(InputError, match=r"only llama\.cpp loads it"), open_loaded_model(str(output), RunOptions()):
        pass
    assert_names(run("diff", output / LORA, exported / "out" / LORA).output, "0 tensors differ")


def test_a_layer_at_a_time_is_verified_too(exported: Path, tmp_path: Path) -> None:
    own = edit(MLPS, center="affine")
    result = save(own, exported / "m.gguf", tmp_path / "out", format="gguf-adapter", layerwise=True)
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.fold_error is not None
    assert result.verification.fold_error.relative_logit_difference < 1e-5


def test_a_full_disk_leaves_nothing_behind(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: AdapterFile, directory: Path) -> None:
        (directory / file.name).write_bytes(b"GGUF")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AdapterFile, "write", full)
    with pytest.raises(SeaExportError, match="out: it could not be written: No space left on device"):
        save(edit(MLPS), exported / "m.gguf", tmp_path / "out", format="gguf-adapter", verify=False)
    assert files(tmp_path) == set()


def test_a_damaged_or_changed_base_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = base(tmp_path)
    whole = path.read_bytes()
    for length in (10, 300, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            save(edit(MLPS), path, tmp_path / "out", format="gguf-adapter")
    path.write_bytes(whole)

    def changed(*arguments: object) -> object:
        path.write_bytes(whole[:-1] + b"\1")
        return write(*arguments)

    write = gguf_adapter_writer.write_gguf_adapter
    monkeypatch.setattr(gguf_adapter_writer, "write_gguf_adapter", changed)
    with pytest.raises(SeaExportError, match="it has changed since the base was opened"):
        save(edit(MLPS), path, tmp_path / "out", format="gguf-adapter", verify=False)
    assert files(tmp_path) == {"m.gguf"}


def test_it_may_be_published_though_its_base_is_only_here(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a PEFT adapter it names no place of the base."""
    asked: list[str] = []
    monkeypatch.setattr(push, "open_destination", lambda repo_id, public: asked.append(repo_id))
    with open_base(str(tiny_checkpoint)) as opened:
        push.prepare_push(opened, export_format("gguf-adapter"), "me/adapter", public=False)
        assert asked == ["me/adapter"]
        with pytest.raises(InputError, match="the adapter names its base by a path"):
            push.prepare_push(opened, export_format("adapter"), "me/adapter", public=False)
