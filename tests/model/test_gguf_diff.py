"""Differences of two GGUF models."""

from __future__ import annotations

from pathlib import Path

import pytest

from sea_export.errors import InputError
from tests.helpers.gguf_files import write_gguf

gguf = pytest.importorskip("gguf")

from sea_export.model.gguf_diff import compare_gguf  # noqa: E402


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


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"b\.gguf: its GGUF header is broken \(the file ends inside"):
        compare_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(InputError, match="it cannot be read"):
        compare_gguf(tmp_path / "a.gguf", tmp_path)
