"""The edit between two checkpoints is found where there is one, and is denied where there is none."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel

import sea_export
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.extraction.extract import Extraction
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.targets import EMBEDDING, Target
from tests.helpers.low_rank_edits import low_rank, matrix_of
from tests.helpers.messages import assert_names, naming
from tests.helpers.tiny_edits import MLP_TARGETS, TARGET_SETS, constant_edit
from tests.helpers.tiny_models import random_model, tiny_config, tiny_model

BOTH = TARGET_SETS["both"]
WEIGHTS = "model.safetensors"


def stored_as(dtype: torch.dtype, name: str, directory: Path) -> Path:
    copy.deepcopy(tiny_model(name)).to(dtype).save_pretrained(directory)
    return directory


def exported(edit: SpectralEdit, base: Path, output: Path) -> Path:
    sea_export.save(edit, base, output, verify=False)
    return output


def changed_copy(base: Path, output: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint of one file, with its tensors changed."""
    shutil.copytree(base, output)
    tensors = load_file(output / WEIGHTS)
    change(tensors)
    save_file(tensors, output / WEIGHTS, metadata={"format": "pt"})
    return output


def assert_found(found: Extraction, edit: SpectralEdit, *, tolerance: float) -> None:
    """The edit came back: its maps and constants, and nothing beyond its rank."""
    assert found.problem is None
    assert found.edit.targets == edit.targets
    for one in found.writers:
        assert one.rank == 0 or one.singular_values[one.rank - 1] > 2 * one.rounding
        assert all(value < one.rounding for value in one.singular_values[one.rank :])
        assert one.half_units is not None
        assert one.half_units < 1
        (layer,), expected = found.edit.layers[one.target], edit.layers[one.target]
        exact = matrix_of(expected)
        assert (matrix_of([layer]) - exact).norm() <= tolerance * exact.norm()
        shift = expected[0].shift
        assert (layer.shift is None) == (shift is None)
        if shift is not None:
            assert (layer.shift - shift).norm() < tolerance * shift.norm()


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str
)
def test_an_edit_comes_back(dtype: torch.dtype, tolerance: float, rank: int, tmp_path: Path) -> None:
    base, edit = stored_as(dtype, "llama", tmp_path / "a"), low_rank(BOTH, rank)
    found = sea_export.extract(base, exported(edit, base, tmp_path / "b"))
    assert {one.rank for one in found.writers} == {rank}
    assert_found(found, edit, tolerance=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama-bias", "gemma2", "phi3", "llama-tied", "neox"])
def test_an_edit_of_another_family_comes_back(family: str, tiny_checkpoint_of: Callable, tmp_path: Path) -> None:
    base, edit = tiny_checkpoint_of(family), low_rank(BOTH, 2)
    assert_found(sea_export.extract(base, exported(edit, base, tmp_path / "b")), edit, tolerance=1e-3)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3"])
def test_an_edit_of_the_embedding_comes_back(family: str, tiny_checkpoint_of: Callable, tmp_path: Path) -> None:
    """Also where the head shared its weight in the base."""
    base, edit = tiny_checkpoint_of(family), low_rank([EMBEDDING, *MLP_TARGETS], 2)
    assert_found(sea_export.extract(base, exported(edit, base, tmp_path / "b")), edit, tolerance=1e-3)


def test_an_embedding_that_changes_its_head_too_is_denied(tiny_checkpoint_of: Callable, tmp_path: Path) -> None:
    base, name = tiny_checkpoint_of("llama-tied"), "model.embed_tokens.weight"
    change = torch.eye(24) + matrix_of(low_rank([EMBEDDING], 1).layers[EMBEDDING]).float()
    written = changed_copy(base, tmp_path / "b", lambda held: held.update({name: held[name] @ change.T}))
    denied(sea_export.extract(base, written), name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama-bias"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_constant_comes_back(family: str, rank: int, tiny_checkpoint_of: Callable, tmp_path: Path) -> None:
    """Also one for which a config entry was turned on, which gives other maps biases of zeros."""
    base, edit = tiny_checkpoint_of(family), low_rank(MLP_TARGETS, rank, constant=True)
    assert_found(sea_export.extract(base, exported(edit, base, tmp_path / "b")), edit, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fitted_edit_comes_back(
    dtype: torch.dtype, llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    base = stored_as(dtype, "llama", tmp_path / "a")
    edit = fit_tiny(llama, positive_rank=2, negative_rank=3, center="off")
    found = sea_export.extract(base, exported(edit, base, tmp_path / "b"))
    assert_found(found, edit, tolerance=1e-4 if dtype == torch.float32 else 0.1)


def test_an_extracted_edit_is_saved_as_an_adapter(
    llama: PreTrainedModel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base, tokens = tiny_checkpoint, torch.tensor([[7, 60, 31, 200, 5]])
    written = exported(low_rank(BOTH, 3), base, tmp_path / "b")
    sea_export.extract(base, written).edit.save(tmp_path / "edit")
    extracted = SpectralEdit.load(tmp_path / "edit")
    sea_export.save(extracted, base, tmp_path / "adapter", format="adapter", verify=False)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(written)(tokens).logits
        adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")(tokens).logits
        with extracted.apply(llama):
            run_time = llama(tokens).logits
        assert (llama(tokens).logits - expected).abs().max() > 0.01
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run_time, expected, atol=1e-4, rtol=1e-4)


def test_where_the_edit_comes_from_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = exported(low_rank(MLP_TARGETS, 2), tiny_checkpoint, tmp_path / "b")
    provenance = sea_export.extract(tiny_checkpoint, written).edit.provenance
    manifest = json.loads((written / "sea_export.json").read_text(encoding="utf-8"))
    assert provenance["base"]["weights"] == {WEIGHTS: manifest["base"]["files"][WEIGHTS]}
    assert provenance["extracted"]["checkpoint"]["name"] == "b"
    assert provenance["extracted"]["checkpoint"]["weights"] == {WEIGHTS: manifest["files"][WEIGHTS]}


def test_the_card_tells_it_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = exported(low_rank(MLP_TARGETS, 2), tiny_checkpoint, tmp_path / "theirs")
    edit = sea_export.extract(tiny_checkpoint, written).edit
    card = (exported(edit, tiny_checkpoint, tmp_path / "ours") / "README.md").read_text(encoding="utf-8")
    digest = edit.provenance["extracted"]["checkpoint"]["weights"][WEIGHTS]
    assert_names(card, "theirs", f"{digest[:16]}…", "sea-export extract", "rank")
    for word in ("demonstrations", "spectral", "fitted on"):
        assert word not in card.lower(), word


# Mixtures


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MixtralConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        vocab_size=320,
        max_position_embeddings=64,
    )
    directory = tmp_path_factory.mktemp("mixture")
    random_model(config).save_pretrained(directory)
    return directory


def test_one_edit_of_all_experts_comes_back(mixture: Path, tmp_path: Path) -> None:
    edit = low_rank([Target(1, "mlp")], 2)
    found = sea_export.extract(mixture, exported(edit, mixture, tmp_path / "b"))
    assert_found(found, edit, tolerance=1e-3)


def test_edits_of_single_experts_are_denied(mixture: Path, tmp_path: Path) -> None:
    written = exported(low_rank([Target(1, "mlp")], 2), mixture, tmp_path / "b")
    stored, original = load_file(written / WEIGHTS), load_file(mixture / WEIGHTS)
    differing = [name for name in stored if not torch.equal(stored[name], original[name])]
    if len(differing) > 1:  # an expert a tensor
        stored[differing[0]] = original[differing[0]]
    else:
        stored[differing[0]][0] = original[differing[0]][0]
    save_file(stored, written / WEIGHTS, metadata={"format": "pt"})
    found = sea_export.extract(mixture, written)
    assert found.problem is not None
    assert_names(found.problem, "1.mlp")


# Where there is none


def denied(found: Extraction, *facts: object) -> None:
    with pytest.raises(SeaExportError, match=naming(*facts)) as caught:
        _ = found.edit
    assert not isinstance(caught.value, InputError)


def moved(names: Iterable[str], size: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in names or tensors:
            tensors[name] += size * torch.randn(tensors[name].shape, generator=generator).to(tensors[name])

    return change


DOWN, OUTPUT = "model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_full_fine_tuning_is_denied(dtype: torch.dtype, tmp_path: Path) -> None:
    base = stored_as(dtype, "llama", tmp_path / "a")
    tuned = changed_copy(base, tmp_path / "b", moved((), 0.02))
    found = sea_export.extract(base, tuned)
    assert len(found.writers) == 9
    assert all(one.rank > 12 and one.edit is None and one.problem for one in found.writers)
    assert "lm_head.weight" in found.others
    assert not {DOWN, OUTPUT} & found.others.keys()
    denied(found, "b", "tensors", "0.attention")


@pytest.mark.parametrize("name", [DOWN, OUTPUT])
def test_a_change_of_full_rank_is_denied(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of a square weight every change is a map of its output, but none of low rank."""
    found = sea_export.extract(tiny_checkpoint, changed_copy(tiny_checkpoint, tmp_path / "b", moved([name], 0.02)))
    assert not found.others
    denied(found, "low rank")


def test_a_change_of_low_rank_that_is_no_edit_of_the_output_is_denied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A LoRA has its own inputs."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = tensors[DOWN]
        tensors[DOWN] = weight + 0.1 * torch.randn(24, 2, generator=generator) @ torch.randn(2, 40, generator=generator)

    found = sea_export.extract(tiny_checkpoint, changed_copy(tiny_checkpoint, tmp_path / "b", change))
    assert [one.rank for one in found.writers] == [2]
    denied(found, "1.mlp", "rank 2")


def test_a_change_of_the_size_of_rounding_is_denied(tmp_path: Path) -> None:
    base = stored_as(torch.bfloat16, "llama", tmp_path / "a")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        bits = tensors[DOWN].view(torch.int16)
        bits += (torch.rand(bits.shape, generator=generator) < 0.1).to(torch.int16)

    denied(sea_export.extract(base, changed_copy(base, tmp_path / "b", change)), "1.mlp")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_tensors_that_no_edit_changes_are_named(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = exported(low_rank(MLP_TARGETS, 2), tiny_checkpoint, tmp_path / "b")
    tuned = changed_copy(written, tmp_path / "c", moved([name], 0.02))
    found = sea_export.extract(tiny_checkpoint, tuned)
    assert found.others.keys() == {name}
    assert all(one.edit is not None for one in found.writers)
    denied(found, name)


def test_biases_that_no_edit_adds_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = exported(constant_edit(MLP_TARGETS), tiny_checkpoint, tmp_path / "b")
    name = "model.layers.0.mlp.up_proj.bias"
    tuned = changed_copy(written, tmp_path / "c", lambda tensors: tensors[name].add_(1))
    denied(sea_export.extract(tiny_checkpoint, tuned), name)


# What is refused


def test_what_cannot_be_compared_is_refused(
    tiny_checkpoint: Path, tiny_checkpoint_of: Callable, quantized_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "same")
    with pytest.raises(InputError, match=naming("same")):
        sea_export.extract(tiny_checkpoint, tmp_path / "same")
    with pytest.raises(InputError, match=naming("llama", "gpt2")):
        sea_export.extract(tiny_checkpoint, tiny_checkpoint_of("gpt2"))
    with pytest.raises(InputError, match=naming("bitsandbytes")):
        sea_export.extract(tiny_checkpoint, quantized_checkpoint)
    infinite = changed_copy(
        tiny_checkpoint, tmp_path / "infinite", lambda tensors: tensors[DOWN][0, 0].fill_(torch.inf)
    )
    with pytest.raises(InputError, match=naming("infinite", DOWN)):
        sea_export.extract(tiny_checkpoint, infinite)


def test_another_size_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.intermediate_size = 48
    random_model(config).save_pretrained(tmp_path / "wide")
    found = sea_export.extract(tiny_checkpoint, tmp_path / "wide")
    assert found.others[DOWN] is None
    denied(found, "wide")


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_writes_the_edit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = exported(low_rank(MLP_TARGETS, 2), tiny_checkpoint, tmp_path / "b")
    result = run("extract", tiny_checkpoint, written, tmp_path / "edit")
    assert result.exit_code == 0, result.output
    assert_names(result.stdout, "1.mlp", "3.mlp", "singular values", "error at 2", tmp_path / "edit")
    assert SpectralEdit.load(tmp_path / "edit").targets == tuple(MLP_TARGETS)
    again = run("save", tmp_path / "edit", tmp_path / "again", "--base", tiny_checkpoint, "--no-verify")
    assert again.exit_code == 0, again.output
    a, b = (Checkpoint.open(tmp_path / name) for name in ("b", "again"))
    for name in a.tensors:
        torch.testing.assert_close(b.read(name), a.read(name), atol=1e-6, rtol=1e-5)
    again = run("inspect", tmp_path / "again")
    assert again.exit_code == 0, again.output


def test_the_command_says_that_there_is_none(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tuned = changed_copy(tiny_checkpoint, tmp_path / "b", moved((), 0.02))
    result = run("extract", tiny_checkpoint, tuned, tmp_path / "edit")
    assert result.exit_code == 1
    assert_names(result.stdout, "3.attention", "singular values", "model.layers.0.mlp.up_proj.weight")
    assert_names(result.stderr, "Error: b", "low rank")
    assert not (tmp_path / "edit").exists()


def test_the_command_refuses_before_it_reads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    for arguments, named in (
        ((tmp_path / "missing", tiny_checkpoint, tmp_path / "edit"), "missing"),
        ((tiny_checkpoint, tiny_checkpoint, tmp_path / "taken"), "taken"),
        ((tiny_checkpoint, tiny_checkpoint, tiny_checkpoint / "edit"), "edit"),
    ):
        result = run("extract", *arguments)
        assert result.exit_code == 2
        assert_names(result.stderr, named)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
