"""Differences of two GGUF models."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sea_export.errors import InputError, SeaExportError
from tests.helpers.changed_gguf import join_gguf
from tests.helpers.gguf_files import write_gguf

gguf = pytest.importorskip("gguf")

from sea_export.model import gguf_values  # noqa: E402
from sea_export.model.diff_models import diff  # noqa: E402
from sea_export.model.gguf_diff import GgufDifference, compare_gguf  # noqa: E402
from sea_export.model.gguf_header import read_gguf_header  # noqa: E402


def test_a_model_does_not_differ_from_itself_in_parts(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", layers=2)
    write_gguf(tmp_path / "n.gguf", layers=2, split=9)
    difference = compare_gguf(tmp_path / "m.gguf", tmp_path / "n-00001-of-00003.gguf")
    assert not difference.tensors_changed
    assert difference.tensors_identical == 21
    assert not difference.keys_changed
    assert set(difference.keys_only_in_b) == {"split.no", "split.count", "split.tensors.count"}
    assert not difference.keys_only_in_a


def test_types_values_shapes_and_keys_are_told(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", layers=2, types={"ffn_up": "F32"})
    write_gguf(
        tmp_path / "b.gguf", layers=2, types={"ffn_up": "Q8_0", "attn_q": "F32"}, without="blk.1.ffn_norm.weight"
    )
    difference = compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert set(difference.tensors_changed) == {
        f"blk.{layer}.{name}.weight" for layer in range(2) for name in ("ffn_up", "attn_q")
    }
    one, other, change = difference.tensors_changed["blk.1.ffn_up.weight"]
    assert (one.type.name, other.type.name) == ("F32", "Q8_0")
    assert 0 < change.relative < 0.01
    assert 0 < change.maximum < 0.02
    assert difference.tensors_only_in_a == ("blk.1.ffn_norm.weight",)
    assert not difference.tensors_only_in_b
    write_gguf(tmp_path / "c.gguf", layers=2, feed_forward=96)
    difference = compare_gguf(tmp_path / "a.gguf", tmp_path / "c.gguf")
    assert set(difference.tensors_of_other_shape) == {
        f"blk.{layer}.ffn_{name}.weight" for layer in range(2) for name in ("gate", "up", "down")
    }
    assert difference.keys_changed == ("llama.feed_forward_length",)


def test_equal_values_in_other_types_do_not_differ_in_value(tmp_path: Path) -> None:
    for name, type in (("a", "F32"), ("b", "BF16")):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        kind = gguf.GGMLQuantizationType[type]
        values = gguf.quants.np.arange(64, dtype="f4").reshape(2, 32)
        writer.add_tensor("t", gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.add_tensor("i", gguf.quants.np.arange(5 + (name == "b"), dtype="i4")[-5:])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    changed = compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors_changed
    assert changed["t"][2].maximum == changed["t"][2].relative == 0
    assert changed["i"][2].maximum == 1


def write_tensors(path: Path, **tensors: tuple[object, str]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (values, type) in tensors.items():
        kind = gguf.GGMLQuantizationType[type]
        writer.add_tensor(name, gguf.quants.quantize(gguf.quants.np.asarray(values, "f4"), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_pieces_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = gguf.quants.np.random.default_rng(0)
    values = random.standard_normal((6, 96))
    for name, type in (("a", "F32"), ("b", "Q8_0")):
        write_tensors(tmp_path / f"{name}.gguf", t=(values, type))
    whole = compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors_changed["t"][2]
    monkeypatch.setattr(gguf_values, "_PIECE_VALUES", 256)
    pieces = compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors_changed["t"][2]
    assert pieces.maximum == whole.maximum > 0
    assert pieces.relative == pytest.approx(whole.relative)


def test_no_block_is_cut_by_a_piece() -> None:
    assert all(gguf_values._PIECE_VALUES % values == 0 for values, _ in gguf.GGML_QUANT_SIZES.values())


def test_tensors_without_values_or_dimensions_are_compared(tmp_path: Path) -> None:
    for name, type, number in (("a", 0, 1.0), ("b", 1, 2.0)):
        records = [["none", [0, 3], type, 0], ["one", [], 0, 0]]
        header = {"version": 3, "tensor_count": 2, "entry_count": 0, "entries": [], "records": records}
        (tmp_path / f"{name}.gguf").write_bytes(join_gguf(header, struct.pack("<f", number)))
    changed = compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors_changed
    assert changed["none"][2].maximum == 0
    assert changed["one"][2].maximum == 1


def test_one_number_is_no_block(tmp_path: Path) -> None:
    header = {"version": 3, "tensor_count": 1, "entry_count": 0, "entries": [], "records": [["one", [], 8, 0]]}
    (tmp_path / "a.gguf").write_bytes(join_gguf(header, bytes(64)))
    with pytest.raises(InputError, match="which no tensor of Q8_0 has"):
        compare_gguf(tmp_path / "a.gguf", tmp_path / "a.gguf")


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.gguf", t=([1.0, 2.0], "F32"))
    (tensor,) = read_gguf_header(tmp_path / "a.gguf").tensors
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[: tensor.start + 4])
    with pytest.raises(SeaExportError, match="it became shorter"):
        gguf_values.read_bytes(tmp_path / "a.gguf", tensor)


@pytest.mark.parametrize("split", [0, 2])
def test_a_directory_with_the_files_of_one_model_is_that_model(split: int, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory, types in ((one, {}), (two, {"ffn_down": "F32"})):
        directory.mkdir()
        write_gguf(directory / "m.gguf", split=split, types=types)
    (first, *_) = sorted(one.glob("*.gguf"))
    difference = diff(first, two)
    assert isinstance(difference, GgufDifference)
    assert difference == diff(one, two)
    assert list(difference.tensors_changed) == ["blk.0.ffn_down.weight"]


def test_a_gguf_file_is_compared_with_another_one_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    for pair in ((tmp_path / "m.gguf", tiny_checkpoint), (tiny_checkpoint, tmp_path / "m.gguf")):
        with pytest.raises(InputError, match=f"{tiny_checkpoint}: it is no .gguf file"):
            diff(*pair)
    with pytest.raises(InputError, match=r"x\.gguf: there is no such file"):
        diff(tmp_path / "m.gguf", tmp_path / "x.gguf")


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"b\.gguf: its GGUF header is broken \(the file ends inside"):
        compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(InputError, match="it cannot be read"):
        compare_gguf(tmp_path / "a.gguf", tmp_path)
