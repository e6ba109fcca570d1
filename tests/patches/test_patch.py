"""From a patch and the base the output comes again, byte for byte, and from nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from transformers import PreTrainedModel

import sea_export
from sea_export.cli import main
from sea_export.edit import fold
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.files import cloning
from sea_export.model.targets import Target
from sea_export.patches import make_patch as making
from sea_export.patches import refolded
from sea_export.patches.make_patch import MadePatch
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.gguf_files import write_gguf
from tests.helpers.low_rank_edits import low_rank
from tests.helpers.messages import assert_names, naming
from tests.helpers.peak_memory import PeakMemory
from tests.helpers.tiny_edits import MLP_TARGETS, TARGET_SETS, spectral_edit
from tests.helpers.tiny_models import random_model, tiny_config

BOTH = TARGET_SETS["both"]


def again(base: Path, output: Path, folder: Path) -> MadePatch:
    """Makes a patch of an output, applies it, and compares the result with the output."""
    made = sea_export.make_patch(output, folder / "p.safetensors", base=base)
    sea_export.apply_patch(base, folder / "p.safetensors", folder / "again")
    assert contents_of(folder / "again") == contents_of(output)
    assert {one.name for one in folder.iterdir()} == {"p.safetensors", "again", output.name}
    return made


EDITS: dict[str, Callable[[], SpectralEdit]] = {
    "calibrated": lambda: spectral_edit(MLP_TARGETS),
    "of both": lambda: spectral_edit(BOTH),
    "with a constant read": lambda: spectral_edit(MLP_TARGETS, center="linear"),
    "of low rank": lambda: low_rank(BOTH, 2),
}


@pytest.mark.parametrize("layout", ["tiny_checkpoint", "tiny_sharded_checkpoint"])
@pytest.mark.parametrize("name", EDITS)
def test_a_merged_output_comes_again_from_its_edit(
    name: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base, edit = request.getfixturevalue(layout), EDITS[name]()
    sea_export.save(edit, base, tmp_path / "out", verify=False)
    made = again(base, tmp_path / "out", tmp_path)
    assert len(made.folded) == len(edit.targets)
    assert made.stored == ()
    assert made.size < made.output_bytes / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_comes_again(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tmp_path / "models" / "base"
    random_model(tiny_config("gpt2")).to(dtype).save_pretrained(base)
    (tmp_path / "here").mkdir()
    sea_export.save(spectral_edit(BOTH), base, tmp_path / "here" / "out", verify=False)
    made = again(base, tmp_path / "here" / "out", tmp_path / "here")
    assert len(made.folded) == 3
    assert all(name.endswith(".bias") for name in made.stored), "of GPT-2"


def test_new_biases_and_a_changed_config_come_again(tiny_sharded_checkpoint: Path, tmp_path: Path) -> None:
    edit = low_rank(MLP_TARGETS, 2, constant=True)
    sea_export.save(edit, tiny_sharded_checkpoint, tmp_path / "out", verify=False)
    made = again(tiny_sharded_checkpoint, tmp_path / "out", tmp_path)
    assert len(made.folded) == 2
    assert len(made.stored) == 12


def test_without_a_fold_the_changed_tensors_are_stored_as_they_are(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, tmp_path / "out", verify=False)
    monkeypatch.setattr(making, "_folds", lambda *_, **__: {})
    made = again(tiny_checkpoint, tmp_path / "out", tmp_path)
    assert set(made.stored) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 3)}
    held, written = load_file(tmp_path / "p.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name in made.stored:
        assert torch.equal(held[f"model.safetensors:{name}"], written[name])


@pytest.mark.parametrize("format", ["adapter", "custom-code"])
def test_other_formats_come_again(format: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sea_export.save(low_rank(MLP_TARGETS, 2), tiny_checkpoint, tmp_path / "out", format=format, verify=False)
    made = again(tiny_checkpoint, tmp_path / "out", tmp_path)
    assert made.folded == ()
    weights = (tiny_checkpoint / "model.safetensors").stat().st_size
    assert made.size < weights, "the weights of the base are not in it"


@pytest.mark.parametrize("split", [0, 4])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_a_gguf_output_comes_again(kind: str, split: int, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write_gguf(tmp_path / "base" / "m.gguf", types={"ffn_down": kind}, split=split)
    first = min((tmp_path / "base").iterdir())
    (tmp_path / "here").mkdir()
    edit = spectral_edit([Target(0, "mlp")], size=32)
    sea_export.save(edit, first, tmp_path / "here" / "out", format="gguf", verify=False)
    made = again(first, tmp_path / "here" / "out", tmp_path / "here")
    assert made.stored == ("blk.0.ffn_down.weight",)


def test_where_blocks_can_be_shared_the_output_is_the_same(
    tiny_sharded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that shares blocks gives a copy its whole contents at once."""

    def share(source, destination) -> bool:
        destination.write(Path(source.name).read_bytes())
        destination.seek(0)
        return True

    sea_export.save(spectral_edit(MLP_TARGETS), tiny_sharded_checkpoint, tmp_path / "out", verify=False)
    monkeypatch.setattr("sea_export.export.streaming.share_blocks", share)
    assert cloning.share_blocks is not share
    again(tiny_sharded_checkpoint, tmp_path / "out", tmp_path)


def test_an_output_that_came_again_verifies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sea_export.save(low_rank(MLP_TARGETS, 2), tiny_checkpoint, tmp_path / "out", verify=False)
    again(tiny_checkpoint, tmp_path / "out", tmp_path)
    assert sea_export.verify(tmp_path / "again", tiny_checkpoint).passed


# Other processors


def test_numbers_that_the_processor_rounds_its_own_way_are_in_the_patch(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, tmp_path / "out", verify=False)
    roundings, fold_tensor = refolded.tensor_roundings, fold.fold_tensor
    doubtful = [3, 77]

    def wide(stored, edits, output_dim):
        lowest, highest = roundings(stored, edits, output_dim)
        highest.view(-1)[doubtful] = torch.nextafter(lowest.view(-1)[doubtful], torch.tensor(torch.inf))
        return lowest, highest

    def otherwise(stored, edits, output_dim):
        folded = fold_tensor(stored, edits, output_dim)
        folded.view(-1)[doubtful] = torch.nextafter(folded.view(-1)[doubtful], torch.tensor(torch.inf))
        return folded

    monkeypatch.setattr(refolded, "tensor_roundings", wide)
    made = sea_export.make_patch(tmp_path / "out", tmp_path / "p.safetensors", base=tiny_checkpoint)
    assert len(made.folded) == 2
    held = load_file(tmp_path / "p.safetensors")
    assert [value.tolist() for name, value in held.items() if name.endswith(":positions")] == [doubtful, doubtful]
    monkeypatch.setattr(fold, "fold_tensor", otherwise)
    sea_export.apply_patch(tiny_checkpoint, tmp_path / "p.safetensors", tmp_path / "again")
    assert contents_of(tmp_path / "again") == contents_of(tmp_path / "out")


def test_a_fold_that_differs_is_noticed_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, tmp_path / "out", verify=False)
    sea_export.make_patch(tmp_path / "out", tmp_path / "p.safetensors", base=tiny_checkpoint)
    fold_tensor = fold.fold_tensor
    monkeypatch.setattr(fold, "fold_tensor", lambda *given: fold_tensor(*given) * (1 + 1e-6))
    with pytest.raises(InputError, match=naming("p.safetensors", "model.safetensors")):
        sea_export.apply_patch(tiny_checkpoint, tmp_path / "p.safetensors", tmp_path / "again")
    assert not (tmp_path / "again").exists()


# What is refused


@pytest.fixture
def exported(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    sea_export.save(spectral_edit(MLP_TARGETS), tiny_checkpoint, tmp_path / "out", verify=False)
    return tmp_path / "out"


@pytest.fixture
def patch(exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    sea_export.make_patch(exported, tmp_path / "p.safetensors", base=tiny_checkpoint)
    return tmp_path / "p.safetensors"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _cut(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def _flip(base: Path) -> None:
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)


def _link(base: Path) -> None:
    (base.parent / "elsewhere.json").write_bytes((base / "config.json").read_bytes())
    (base / "config.json").unlink()
    (base / "config.json").symlink_to(base.parent / "elsewhere.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_cut, "model.safetensors"),
        (_flip, "model.safetensors"),
        (lambda base: (base / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda base: (base / "config.json").write_text("{}"), "config.json"),
        (_link, "config.json"),
    ],
    ids=["cut", "flipped", "missing file", "other config", "link out"],
)
def test_another_base_is_refused(
    change: Callable[[Path], object], named: str, patch: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    change(base)
    before = contents_of(tmp_path)
    result = run("patch", "apply", base, patch, tmp_path / "again")
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, named)
    assert contents_of(tmp_path) == before
    result = run("patch", "make", tmp_path / "out", tmp_path / "q.safetensors", "--base", base)
    assert result.exit_code == 2, result.output
    assert contents_of(tmp_path) == before


def test_an_output_that_was_changed_is_refused(exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    card = exported / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(text + "more", encoding="utf-8")
    with pytest.raises(InputError, match=naming("README.md")):
        sea_export.make_patch(exported, tmp_path / "p.safetensors", base=tiny_checkpoint)
    card.write_text(text, encoding="utf-8")
    (exported / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=naming("notes.txt")):
        sea_export.make_patch(exported, tmp_path / "p.safetensors", base=tiny_checkpoint)
    assert not (tmp_path / "p.safetensors").exists()


def test_an_output_of_a_converted_base_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    edit = spectral_edit([Target(0, "mlp")], size=32)
    sea_export.save(edit, tmp_path / "m.gguf", tmp_path / "out", verify=False)
    with pytest.raises(InputError, match=naming("out", "converted", "m.gguf")):
        sea_export.make_patch(tmp_path / "out", tmp_path / "p.safetensors", base=tmp_path / "m.gguf")


def test_what_is_there_stays(patch: Path, exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = patch.read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    make = ("patch", "make", exported)
    for arguments, named in (
        ((*make, patch, "--base", tiny_checkpoint), "--overwrite"),
        ((*make, tmp_path / "mine.safetensors", "--base", tiny_checkpoint, "--overwrite"), "mine.safetensors"),
        ((*make, tmp_path / "p.bin", "--base", tiny_checkpoint), ".safetensors"),
        ((*make, exported / "p.safetensors", "--base", tiny_checkpoint, "--overwrite"), "p.safetensors"),
        ((*make, tiny_checkpoint / "p.safetensors", "--base", tiny_checkpoint), "p.safetensors"),
        ((*make, tmp_path / "missing" / "p.safetensors", "--base", tiny_checkpoint), "missing"),
        ((*make, tmp_path / "q.safetensors"), "--base"),
        (("patch", "apply", tiny_checkpoint, patch, exported), "--overwrite"),
        (("patch", "apply", tiny_checkpoint, patch, tiny_checkpoint / "again"), "again"),
        (("patch", "apply", tiny_checkpoint, exported / "model.safetensors", tmp_path / "again"), "patch"),
        (("patch", "apply", tiny_checkpoint, tmp_path / "missing.safetensors", tmp_path / "again"), "missing"),
        (("patch", "apply", tmp_path / "missing", patch, tmp_path / "again"), "missing"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert_names(result.stderr, named)
    assert patch.read_bytes() == made
    assert {one.name for one in tmp_path.iterdir()} == {"out", "p.safetensors", "mine.safetensors"}
    assert (tmp_path / "mine.safetensors").read_bytes() == b"mine"


# The command


def test_the_commands_say_what_they_made(exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    patch, output = tmp_path / "p.safetensors", tmp_path / "again"
    result = run("patch", "make", exported, patch, "--base", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert_names(result.stdout, patch, "2 changed tensors", "0 are stored")
    result = run("patch", "make", exported, patch, "--base", tiny_checkpoint, "--overwrite")
    assert result.exit_code == 0, result.output
    result = run("patch", "apply", tiny_checkpoint, patch, output)
    assert result.exit_code == 0, result.output
    assert_names(result.stdout, output, "byte for byte", "sea-export verify")
    (output / "README.md").unlink()
    result = run("patch", "apply", tiny_checkpoint, patch, output, "--overwrite")
    assert result.exit_code == 0, result.output
    assert contents_of(output) == contents_of(exported)


@pytest.mark.slow
def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """Of a model of 240 MB whose largest tensor has 12 MB."""
    if not PeakMemory.is_known():
        pytest.skip("this system does not tell the peak")
    config = tiny_config("llama")
    config.hidden_size, config.head_dim, config.intermediate_size, config.num_hidden_layers = 1000, 250, 3000, 5
    model: PreTrainedModel = random_model(config)
    model.save_pretrained(tmp_path / "base")
    del model
    edit = low_rank([Target(layer, "mlp") for layer in range(5)], 4, size=1000)
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", verify=False)
    peak = PeakMemory()
    sea_export.make_patch(tmp_path / "out", tmp_path / "p.safetensors", base=tmp_path / "base")
    sea_export.apply_patch(tmp_path / "base", tmp_path / "p.safetensors", tmp_path / "again")
    assert peak.growth() < 120_000_000
