"""Copies of GGUF files with some tensors edited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sea_export.errors import InputError, SeaExportError
from sea_export.model.targets import Target
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_edits import spectral_edit

gguf = pytest.importorskip("gguf")

from sea_export.edit.fold import fold_tensor  # noqa: E402
from sea_export.export.gguf_file.encoding import GgufEdit, encode, is_encodable, output_type  # noqa: E402
from sea_export.export.gguf_file.gguf_writer import GgufChanges, write_part  # noqa: E402
from sea_export.model.gguf_header import GgufTensor, number_entry, read_gguf_header, text_entry  # noqa: E402
from sea_export.model.gguf_parts import join_parts, read_parts  # noqa: E402
from sea_export.model.gguf_values import decode  # noqa: E402

DOWN = "blk.1.ffn_down.weight"
LAYERS = spectral_edit([Target(1, "mlp")], size=32).layers[Target(1, "mlp")]
Type = gguf.GGMLQuantizationType


def edit(type: str) -> GgufEdit:
    return GgufEdit(LAYERS, Type[type])


def base(folder: Path, **options: object) -> Path:
    write_gguf(folder / "m.gguf", layers=3, **options)
    return folder / "m.gguf"


def written(path: Path, changes: GgufChanges) -> Path:
    output = path.parent / "out"
    output.mkdir()
    parts = read_parts(path)
    for index in range(len(parts)):
        write_part(parts, index, output, changes)
    return output / path.name


def raw_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor, as the gguf package reads them."""
    return {one.name: (one.tensor_type.name, one.data.tobytes()) for one in gguf.GGUFReader(path).tensors}


def raw_fields(path: Path) -> dict[str, bytes]:
    fields = gguf.GGUFReader(path).fields
    return {name: b"".join(part.tobytes() for part in field.parts) for name, field in fields.items()}


def test_without_changes_the_copy_is_the_base(tmp_path: Path) -> None:
    path = base(tmp_path)
    assert written(path, GgufChanges({})).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("stored", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16", "F32"])
@pytest.mark.parametrize("type", ["Q8_0", "F32"])
def test_only_the_edited_tensor_and_places_change(stored: str, type: str, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": stored})
    output = written(path, GgufChanges({DOWN: edit(type)}))
    before, after = raw_tensors(path), raw_tensors(output)
    assert list(before) == list(after)
    assert {name for name in before if before[name] != after[name]} == {DOWN}
    assert after[DOWN][0] == type
    assert raw_fields(path) == raw_fields(output)
    values = decode(np.frombuffer(before[DOWN][1], np.uint8), (32, 64), Type[stored])
    assert after[DOWN][1] == encode(fold_tensor(values, LAYERS, -2), Type[type]).tobytes()


def test_with_the_same_size_nothing_moves(tmp_path: Path) -> None:
    path = base(tmp_path)
    tensor = next(one for one in read_gguf_header(path).tensors if one.name == DOWN)
    before = path.read_bytes()
    after = written(path, GgufChanges({DOWN: edit("Q8_0")})).read_bytes()
    end = tensor.start + tensor.nbytes
    assert before[: tensor.start] + before[end:] == after[: tensor.start] + after[end:]
    assert before != after


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_tensors_are_aligned_as_in_the_base(alignment: int, tmp_path: Path) -> None:
    path = base(tmp_path, alignment=alignment, types={"ffn_down": "Q4_0"})
    output = written(path, GgufChanges({DOWN: edit("F16")}))
    assert read_gguf_header(output).alignment == alignment
    assert all(one.start % alignment == 0 for one in read_gguf_header(output).tensors)
    assert raw_tensors(path).keys() == raw_tensors(output).keys()


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_types_that_can_only_be_read_are_folded(name: str, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": name}, feed_forward=256)
    output = written(path, GgufChanges({DOWN: edit("Q8_0")}))
    before, after = raw_tensors(path), raw_tensors(output)
    values = decode(np.frombuffer(before[DOWN][1], np.uint8), (32, 256), Type[name])
    assert after[DOWN] == ("Q8_0", encode(fold_tensor(values, LAYERS, -2), Type.Q8_0).tobytes())


def test_experts_are_folded_one_by_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = np.random.default_rng(0).standard_normal((5, 32, 64)).astype(np.float32)
    writer.add_tensor("blk.1.ffn_down_exps.weight", gguf.quants.quantize(values, Type.Q8_0), raw_dtype=Type.Q8_0)
    writer.add_tensor("other", values[0])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    output = written(tmp_path / "m.gguf", GgufChanges({"blk.1.ffn_down_exps.weight": edit("Q8_0")}))
    stored = gguf.quants.quantize(values, Type.Q8_0)
    folded = fold_tensor(torch.from_numpy(gguf.quants.dequantize(stored, Type.Q8_0)), LAYERS, -2)
    tensors = raw_tensors(output)
    assert tensors["blk.1.ffn_down_exps.weight"][1] == gguf.quants.quantize(folded.numpy(), Type.Q8_0).tobytes()
    assert tensors["other"][1] == values[0].tobytes()


def test_metadata_and_tensors_are_added_at_the_end(tmp_path: Path) -> None:
    path = base(tmp_path)
    entries = [text_entry("general.name", "Another"), number_entry("general.base_model.count", 1)]
    bias = torch.arange(32.0)
    output = written(path, GgufChanges({DOWN: edit("Q8_0")}, {"blk.1.ffn_down.bias": bias}, entries))
    before, after = raw_fields(path), raw_fields(output)
    assert {name for name in before if before[name] != after[name]} == {
        "general.name",
        "GGUF.tensor_count",
        "GGUF.kv_count",
    }
    assert list(after)[-1] == "general.base_model.count"
    assert list(raw_tensors(output))[-1] == "blk.1.ffn_down.bias"
    assert raw_tensors(output)["blk.1.ffn_down.bias"] == ("F32", bias.numpy().tobytes())
    assert gguf.GGUFReader(output).fields["general.name"].contents() == "Another"


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_last_tensor_without_padding(cut: int, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": "Q5_1"})
    whole = path.read_bytes()
    last = read_gguf_header(path).tensors[-1]
    path.write_bytes(whole[: last.start + last.nbytes] if cut == 0 else whole + bytes(cut))
    bias = torch.arange(32.0)
    output = written(path, GgufChanges({DOWN: edit("F16"), last.name: edit("F16")}, {"b": bias, "c": bias}))
    assert raw_tensors(output)["c"][1] == bias.numpy().tobytes()
    assert list(raw_tensors(output)) == [*raw_tensors(path), "b", "c"]


def test_a_split_model_is_written_in_its_parts(tmp_path: Path) -> None:
    whole = base(tmp_path / "whole" if (tmp_path / "whole").mkdir() is None else tmp_path)
    base(tmp_path, split=10)
    first = min(tmp_path.glob("m-*-of-*.gguf"))
    output = written(first, GgufChanges({DOWN: edit("F16")}, entries=[text_entry("general.version", "2")]))
    parts, kept = read_parts(output), read_parts(first)
    assert len(parts) == 3
    assert sum(raw_tensors(a.path) != raw_tensors(b.path) for a, b in zip(parts, kept, strict=True)) == 1
    changed = [raw_fields(a.path) != raw_fields(b.path) for a, b in zip(parts, kept, strict=True)]
    assert changed == [True, False, False]
    join_parts(kept, tmp_path / "joined.gguf")
    assert raw_tensors(tmp_path / "joined.gguf") == raw_tensors(whole)
    assert not any(name.startswith("split.") for name in raw_fields(tmp_path / "joined.gguf"))


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    base(tmp_path, split=10)
    first, second, third = sorted(tmp_path.glob("m-*-of-*.gguf"))
    with pytest.raises(InputError, match=r"Give the first one, m-00001-of-00003\.gguf"):
        read_parts(second)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        read_parts(first)
    third.write_bytes(kept)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match="do not belong together"):
        read_parts(tmp_path / "renamed.gguf")
    third.unlink()
    (tmp_path / "renamed.gguf").rename(first)
    with pytest.raises(InputError, match=r"m-00003-of-00003\.gguf is missing"):
        read_parts(first)


@pytest.mark.parametrize(
    ("stored", "asked", "chosen"),
    [
        ("Q4_K", "auto", "Q8_0"),
        ("F16", "auto", "F16"),
        ("BF16", "auto", "BF16"),
        ("Q4_1", "same", "Q4_1"),
        ("Q6_K", "F16", "F16"),
        ("F32", "Q8_0", "Q8_0"),
    ],
)
def test_the_type_of_an_edited_tensor(stored: str, asked: str, chosen: str) -> None:
    assert output_type(GgufTensor("t", (32, 256), Type[stored]), asked).name == chosen
    assert output_type(GgufTensor("t", (32,), Type.F32), asked).name == "F32"


def test_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="t is stored as Q4_K, which the gguf package reads and cannot write"):
        output_type(GgufTensor("t", (32, 256), Type.Q4_K), "same")
    with pytest.raises(InputError, match="t has rows of 40 values, and Q8_0 holds multiples of 32"):
        output_type(GgufTensor("t", (32, 40), Type.F16), "Q8_0")
    assert [one.name for one in (Type.Q4_0, Type.Q8_0, Type.BF16, Type.Q4_K, Type.IQ4_XS) if not is_encodable(one)] == [
        "Q4_K",
        "IQ4_XS",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": "F32"})
    tensor = next(one for one in read_gguf_header(path).tensors if one.name == DOWN)
    with open(path, "r+b") as stream:
        stream.seek(tensor.start + 4)
        stream.write(np.float32(value).tobytes())
    with pytest.raises(InputError, match=f"{DOWN}: the base has values in it that are infinite"):
        written(path, GgufChanges({DOWN: edit("F32")}))


@pytest.mark.parametrize("type", ["F16", "Q8_0"])
def test_numbers_that_a_type_cannot_hold_are_refused(type: str, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": "F32"})
    tensor = next(one for one in read_gguf_header(path).tensors if one.name == DOWN)
    with open(path, "r+b") as stream:
        stream.seek(tensor.start)
        stream.write(np.full(64, 1e9, np.float32).tobytes())
    with pytest.raises(SeaExportError, match=f"{DOWN}: with the edit folded in it has values that are not finite"):
        written(path, GgufChanges({DOWN: edit(type)}))
