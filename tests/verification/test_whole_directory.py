"""`verify` answers for the whole directory: whatever is changed, added or removed in a finished output is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sea_export
from sea_export.edit.fold import bias_roundings, fold_bias, fold_tensor, tensor_roundings
from sea_export.options import CENTERS
from tests.helpers.tampering import (
    Tampering,
    another_order,
    change_json,
    forged,
    one_unit,
    other_metadata,
    tensors_changed,
)
from tests.helpers.tiny_edits import SIZE, some_edit
from tests.helpers.tiny_models import random_model, tiny_config

FORMATS = ("merged", "adapter", "custom-code")
EDITED, UNEDITED = "model.layers.2.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"
SIDE_FILES = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
EDIT_FILES = ("sea_edit/sea_edit.json", "sea_edit/sea_edit.safetensors")
CODE_FILES = ("modeling_sea.py", "sea-edit.safetensors")
INDEX = "model.safetensors.index.json"
FILES = {
    "merged": (*SIDE_FILES, *EDIT_FILES, "README.md", "config.json", INDEX, "code/more.py", "notes.txt"),
    "adapter": (*EDIT_FILES, "README.md", "adapter_config.json", "adapter_model.safetensors"),
    "custom-code": (*SIDE_FILES, *EDIT_FILES, "README.md", "config.json", INDEX, *CODE_FILES, "code/more.py"),
}
ADDED = (
    "adapter_config.json",
    "chat_template.json",
    "custom_generate/generate.py",
    "model.safetensors",
    "modeling_other.py",
    "pytorch_model.bin",
    "sea_edit/more.json",
    "special_tokens_map.json",
    ".hidden",
)


@pytest.fixture(scope="module")
def base(tiny_sharded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded base with files of every kind."""
    directory = tmp_path_factory.mktemp("whole") / "base"
    shutil.copytree(tiny_sharded_checkpoint, directory)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    (directory / "notes.txt").write_bytes(b"\x00notes\r\n")
    (directory / "code").mkdir()
    (directory / "code" / "more.py").write_text("MORE = 1\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def output_of(base: Path, fit_tiny, llama, tmp_path_factory) -> Callable[[str], Path]:
    """Gives the output of a format, made once. Read only."""
    outputs = {format: tmp_path_factory.mktemp("outputs") / "out" for format in FORMATS}

    def output(format: str) -> Path:
        if not outputs[format].exists():
            sea_export.save(fit_tiny(llama), base, outputs[format], format=format, verify=False)
        return outputs[format]

    return output


@pytest.fixture
def copy_of(output_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Gives a copy of the output of a format, to be changed."""
    return lambda format: Path(shutil.copytree(output_of(format), tmp_path / "copy"))


def answer(output: Path, base: Path) -> str:
    """What `verify` says is wrong, which must be something. It must be said before any prediction is compared."""
    try:
        found = sea_export.verify(output, base)
    except sea_export.InputError as error:
        return str(error)
    assert not found.passed
    assert not found.measured
    return "; ".join(found.problems)


def each(names: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(format, name) for format in FORMATS for name in names[format]]


@pytest.mark.parametrize(("format", "file"), each(FILES))
def test_a_changed_file_is_named(format: str, file: str, copy_of, base: Path) -> None:
    output = copy_of(format)
    contents = bytearray((output / file).read_bytes())
    contents[-1] ^= 1
    (output / file).write_bytes(contents)
    assert f"{file} has other contents" in answer(output, base)


@pytest.mark.parametrize(("format", "file"), each(FILES))
def test_a_removed_file_is_named(format: str, file: str, copy_of, base: Path) -> None:
    output = copy_of(format)
    (output / file).unlink()
    assert f"{file} is missing" in answer(output, base)


@pytest.mark.parametrize(("format", "file"), each(dict.fromkeys(FORMATS, ADDED)))
def test_an_added_file_is_named(format: str, file: str, copy_of, base: Path) -> None:
    output = copy_of(format)
    if (output / file).exists():
        pytest.skip("outputs of this format have such a file")
    (output / file).parent.mkdir(exist_ok=True)
    (output / file).write_text("{}", encoding="utf-8")
    assert f"{file} was added" in answer(output, base)


def removed(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[EDITED]


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{EDITED}.old"] = tensors.pop(EDITED)


def other_dtype(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EDITED] = tensors[EDITED].half()


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EDITED] = tensors[EDITED].reshape(-1, 2)


def swapped_rows(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EDITED] = tensors[EDITED].flip(0).contiguous()


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EDITED][0, 0] = float("nan")


def extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.9.extra"] = torch.ones(2)


TENSORS: dict[str, Tampering] = {
    "one unit in the last place of an edited tensor": one_unit(EDITED),
    "one unit in the last place of an unedited tensor": one_unit(UNEDITED),
    "one unit in the last place of a norm": one_unit("model.norm.weight", (7,)),
    "a missing tensor": tensors_changed(removed, of=EDITED),
    "a renamed tensor": tensors_changed(renamed, of=EDITED),
    "another dtype": tensors_changed(other_dtype, of=EDITED),
    "another shape": tensors_changed(other_shape, of=EDITED),
    "rows in another order": tensors_changed(swapped_rows, of=EDITED),
    "a number that is none": tensors_changed(not_a_number, of=EDITED),
    "a tensor too many": tensors_changed(extra, of=EDITED),
    "tensors in another order": another_order(UNEDITED),
    "other metadata": other_metadata(UNEDITED),
}
CONFIGS: dict[str, Tampering] = {
    "layers": change_json("config.json", num_hidden_layers=6),
    "a billion layers": change_json("config.json", num_hidden_layers=10**9),
    "another end token": change_json("generation_config.json", eos_token_id=5),
    "a template": lambda output: (output / "chat_template.jinja").write_text("{{ 'no' }}", encoding="utf-8"),
    "a tokenizer": change_json("tokenizer_config.json", model_max_length=3),
    "notes": lambda output: (output / "notes.txt").write_text("other notes", encoding="utf-8"),
    "no template": lambda output: (output / "chat_template.jinja").unlink(),
}


@pytest.mark.parametrize("tampering", [*TENSORS.values(), *CONFIGS.values()], ids=[*TENSORS, *CONFIGS])
def test_what_was_changed_together_with_its_digest_is_found_in_a_merged_output(
    tampering: Tampering, copy_of, base: Path
) -> None:
    output = copy_of("merged")
    tampering(output)
    forged(output)
    assert answer(output, base)


CODE_TENSORS = {name: TENSORS[name] for name in TENSORS if "unedited" in name or "norm" in name or "other " in name}


@pytest.mark.parametrize("tampering", [*CODE_TENSORS.values(), *CONFIGS.values()], ids=[*CODE_TENSORS, *CONFIGS])
def test_what_was_changed_together_with_its_digest_is_found_in_a_custom_code_output(
    tampering: Tampering, copy_of, base: Path
) -> None:
    output = copy_of("custom-code")
    tampering(output)
    forged(output)
    assert answer(output, base)


def in_adapter(change: Callable[[dict[str, torch.Tensor], str], None], part: str = "lora_B") -> Tampering:
    """Changes the first tensor of an adapter whose name has a part."""

    def tamper(output: Path) -> None:
        file = output / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors, next(name for name in sorted(tensors) if part in name))
        save_file(tensors, file, {"format": "pt"})

    return tamper


def replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor], str], None]:
    return lambda tensors, name: tensors.update({name: change(tensors[name]).contiguous()})


ADAPTER_CHANGES: dict[str, Tampering] = {
    "one factor a little larger": in_adapter(replaced(lambda tensor: 1.0001 * tensor)),
    "the other factor a little smaller": in_adapter(replaced(lambda tensor: 0.9999 * tensor), "lora_A"),
    "another dtype": in_adapter(replaced(lambda tensor: tensor.half())),
    "another shape": in_adapter(replaced(lambda tensor: tensor[:, :1])),
    "rows in another order": in_adapter(replaced(lambda tensor: tensor.flip(0))),
    "a number that is none": in_adapter(replaced(lambda tensor: tensor * float("nan"))),
    "a missing tensor": in_adapter(lambda tensors, name: tensors.pop(name)),
    "a renamed tensor": in_adapter(lambda tensors, name: tensors.update({f"{name}.old": tensors.pop(name)})),
    "a tensor too many": in_adapter(lambda tensors, name: tensors.update({"extra": torch.ones(2)})),
    "another rank": change_json("adapter_config.json", r=1),
    "another scale": change_json("adapter_config.json", lora_alpha=9),
    "other modules": change_json("adapter_config.json", target_modules=["up_proj"]),
    "another initialization": change_json("adapter_config.json", init_lora_weights="pissa"),
}


CODE_CHANGES: dict[str, Tampering] = {
    "another statement of the code": lambda output: (output / "modeling_sea.py").open("a").write("\nSCALE = 2\n"),
    "other tensors of the edit": tensors_changed(
        lambda tensors: tensors.update({name: 1.0001 * tensor for name, tensor in tensors.items()}),
        of="model.layers.2.mlp.sea_edit.0.read",
    ),
}


CHANGES = {
    **{("adapter", what): tampering for what, tampering in ADAPTER_CHANGES.items()},
    **{("custom-code", what): tampering for what, tampering in CODE_CHANGES.items()},
}


@pytest.mark.parametrize(("format", "what"), CHANGES)
def test_what_was_changed_together_with_its_digest_is_found(format: str, what: str, copy_of, base: Path) -> None:
    output = copy_of(format)
    CHANGES[format, what](output)
    forged(output)
    assert answer(output, base)


@pytest.mark.parametrize("format", FORMATS)
def test_another_strength_in_the_recorded_edit_is_found(format: str, copy_of, base: Path) -> None:
    output = copy_of(format)
    file = output / "sea_edit" / "sea_edit.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    for numbers in description["layers"].values():
        numbers[0]["strength"] = 1.001
    file.write_text(json.dumps(description), encoding="utf-8")
    forged(output)
    assert answer(output, base)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("file", ["weights", "generation_config.json"])
def test_another_base_is_named(format: str, file: str, copy_of, base: Path, tmp_path: Path) -> None:
    if format == "adapter" and file != "weights":
        pytest.skip("an adapter belongs to the weights of its base")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    if file == "weights":
        one_unit("model.embed_tokens.weight")(other)
        file = sorted(path.name for path in base.glob("model-*"))[0]
    else:
        change_json(file, eos_token_id=5)(other)
    with pytest.raises(sea_export.InputError, match=f"other: its {file} is not that of the base"):
        sea_export.verify(copy_of(format), other)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_an_untouched_output_passes_and_what_was_not_checked_is_said(format: str, copy_of, base: Path) -> None:
    output = copy_of(format)
    (output / ".git").mkdir()
    (output / ".git" / "HEAD").write_text("ref", encoding="utf-8")
    (output / ".gitattributes").write_text("*", encoding="utf-8")
    found = sea_export.verify(output, base)
    assert found.passed
    assert found.measured
    assert set(found.unchecked) == {"sea_export.json", ".git/", ".gitattributes"}


# Other processors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("output_dim", [0, 1])
def test_sums_in_any_order_round_to_the_numbers_that_verification_allows(output_dim: int, dtype: torch.dtype) -> None:
    """A processor decides in which order the terms of a sum are added. Here the terms themselves are permuted."""
    generator = torch.Generator().manual_seed(output_dim)
    edits = [some_edit(0), some_edit(1, center="linear")]
    weight = torch.randn(SIZE, 4000, generator=generator).movedim(0, output_dim).contiguous().to(dtype)
    lowest, highest = tensor_roundings(weight, edits, output_dim)
    assert (lowest != highest).double().mean() < 1e-3
    for _ in range(5):
        order = torch.randperm(SIZE, generator=generator)
        permuted = [edit.map_tensors(lambda tensor: _permuted(tensor, order)) for edit in edits]  # noqa: B023
        folded = fold_tensor(weight.index_select(output_dim, order), permuted, output_dim)
        folded = folded.index_select(output_dim, order.argsort())
        assert bool(((lowest <= folded) & (folded <= highest)).all())


def _permuted(tensor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A tensor of an edit with its features, if it has any, in another order."""
    return tensor[order] if tensor.shape[0] == SIZE and tensor.ndim <= 2 else tensor


@pytest.mark.parametrize("center", CENTERS)
def test_a_folded_bias_is_one_that_verification_allows(center: str) -> None:
    bias = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    edits = [some_edit(0, center=center), some_edit(1, center=center)]
    lowest, highest = bias_roundings(bias, edits)
    folded = fold_bias(bias, edits, bias.dtype)
    assert folded is not None
    assert bool(((lowest <= folded) & (folded <= highest)).all())
    assert (lowest != highest).double().mean() < 0.1


OTHER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
CHECK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(3)
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.formats import EditNeeds, export_format
from sea_export.model.base import open_base
from sea_export.options import ExportOptions
output, base, name = sys.argv[1:]
edit, format, options = SpectralEdit.load(output), export_format(name), ExportOptions(format=name)
with open_base(base) as opened:
    located = format.locate(opened, edit.targets, EditNeeds.of_edit(edit), options)
    plan = format.plan(edit, opened, located, options, None)
    problems = format.check(Path(output), opened, edit, plan).problems
raise SystemExit("; ".join(problems) or 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("format", ["merged", "custom-code", "adapter"])
def test_an_output_passes_on_a_processor_that_adds_in_another_order(
    format: str, dtype: torch.dtype, fit_tiny, llama, tokenizer, tmp_path: Path
) -> None:
    """The kernels are those of a processor without vector units, and of other block sizes."""
    config = tiny_config("llama")
    config.intermediate_size = 256
    random_model(config).to(dtype).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    sea_export.save(fit_tiny(llama), tmp_path / "base", tmp_path / "out", format=format, verify=False)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path / "out"), str(tmp_path / "base"), format],
        env={**os.environ, **OTHER_KERNELS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
