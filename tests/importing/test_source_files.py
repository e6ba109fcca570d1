"""Files of vectors: each form is read as what it says, and nothing that a pickle asks for is run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from sea_export.errors import InputError
from sea_export.importing.import_options import ImportOptions
from sea_export.importing.source_file import SourceFile, read_source_file
from sea_export.importing.source_vectors import source_vectors
from tests.helpers.gguf_files import write_control_vector, write_gguf
from tests.helpers.messages import naming

SIZE, LAYERS = 6, 4
VECTORS = {layer: torch.arange(SIZE, dtype=torch.float32) + 10 * layer for layer in (1, 3)}
NAMED = {f"layers.{layer}": vector for layer, vector in VECTORS.items()}


def write_npz(path: Path) -> None:
    np.savez_compressed(path, **{name: vector.numpy() for name, vector in NAMED.items()})


WRITERS: dict[str, Callable[[Path], object]] = {
    "v.gguf": lambda path: write_control_vector(path, VECTORS),
    "v.safetensors": lambda path: save_file(NAMED, path),
    "v.npz": write_npz,
    "v.json": lambda path: path.write_text(json.dumps({name: vector.tolist() for name, vector in NAMED.items()})),
    "nested.json": lambda path: path.write_text(
        json.dumps({"model": "tiny", "directions": {str(layer): one.tolist() for layer, one in VECTORS.items()}})
    ),
    "v.pt": lambda path: torch.save(VECTORS, path),
    "old.bin": lambda path: torch.save(NAMED, path, _use_new_zipfile_serialization=False),
}


def vectors_of(file: SourceFile, **options: object) -> dict[int, torch.Tensor]:
    found = source_vectors(file, LAYERS, SIZE, ImportOptions(**options)).by_layer
    assert found is not None
    return dict(found)


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_vectors_of_its_layers(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    file = read_source_file(tmp_path / name)
    found = vectors_of(file)
    assert sorted(found) == [1, 3]
    for layer, vector in VECTORS.items():
        assert torch.equal(found[layer], vector.double()[None])
    assert file.name == name
    assert len(file.sha256) == 64


def array(tmp_path: Path, rows: object) -> SourceFile:
    np.save(tmp_path / "rows.npy", rows)
    return read_source_file(tmp_path / "rows.npy")


def test_rows_for_layers_are_asked_about(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(LAYERS, SIZE)).astype(np.float16)
    file = array(tmp_path, rows)
    with pytest.raises(InputError, match=naming("--numbering", "outputs", "inputs")):
        vectors_of(file)
    outputs, inputs = (vectors_of(file, numbering=one) for one in ("outputs", "inputs"))
    assert sorted(outputs) == [0, 1, 2, 3]
    assert sorted(inputs) == [-1, 0, 1, 2]
    for layer in range(LAYERS):
        assert torch.equal(outputs[layer], inputs[layer - 1])
        assert torch.equal(outputs[layer][0], torch.from_numpy(rows[layer]).double())


def test_one_row_more_than_layers_is_hidden_states(tmp_path: Path) -> None:
    file = array(tmp_path, np.ones((LAYERS + 1, SIZE)))
    assert sorted(vectors_of(file)) == [-1, 0, 1, 2, 3]
    with pytest.raises(InputError, match=naming("--numbering", "inputs")):
        vectors_of(file, numbering="outputs")


@pytest.mark.parametrize("rows", [np.ones(SIZE), np.ones((1, SIZE)), np.asfortranarray(np.ones((2, SIZE)))])
def test_other_rows_belong_to_no_layer(rows: np.ndarray, tmp_path: Path) -> None:
    found = source_vectors(array(tmp_path, rows), LAYERS, SIZE, ImportOptions())
    assert found.by_layer is None
    assert found.alone is not None
    assert torch.equal(found.alone, torch.ones(np.atleast_2d(rows).shape[0], SIZE, dtype=torch.float64))
    with pytest.raises(InputError, match=naming("--numbering")):
        source_vectors(array(tmp_path, rows), LAYERS, SIZE, ImportOptions(numbering="outputs"))


def test_negative_numbers_count_from_the_end(tmp_path: Path) -> None:
    torch.save({-1: torch.ones(SIZE), -3: 2 * torch.ones(SIZE)}, tmp_path / "v.pt")
    found = vectors_of(read_source_file(tmp_path / "v.pt"))
    assert {layer: float(rows[0, 0]) for layer, rows in found.items()} == {3: 1, 1: 2}


def test_a_hyphen_after_a_name_is_no_sign(tmp_path: Path) -> None:
    save_file({"layer-2": torch.ones(SIZE), "direction.-1": torch.ones(SIZE)}, tmp_path / "v.safetensors")
    assert sorted(vectors_of(read_source_file(tmp_path / "v.safetensors"))) == [2, 3]


def test_the_vector_of_one_number_can_be_taken_alone(tmp_path: Path) -> None:
    torch.save(VECTORS, tmp_path / "v.pt")
    file = read_source_file(tmp_path / "v.pt")
    for number in (3, -1):
        alone = source_vectors(file, LAYERS, SIZE, ImportOptions(source_layer=number)).alone
        assert alone is not None
        assert torch.equal(alone[0], VECTORS[3].double())
    with pytest.raises(InputError, match=naming("--source-layer", "1, 3")):
        source_vectors(file, LAYERS, SIZE, ImportOptions(source_layer=2))


# Refusals


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zipped(name: str, contents: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, contents)
    return stream.getvalue()


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def object_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Hostile()], dtype=object), allow_pickle=True)
    return stream.getvalue()


WRONG: dict[str, tuple[str, bytes]] = {
    "nothing": ("v.json", b"{}"),
    "text alone": ("v.json", b'{"model": "tiny"}'),
    "rows of different lengths": ("v.json", b'{"1": [[1, 2], [3]]}'),
    "text for numbers": ("v.json", b'{"1": ["a", "b"]}'),
    "a number too large": ("v.json", b'{"1": [1' + b"0" * 400 + b"]}"),
    "no JSON": ("v.json", b"{"),
    "deep": ("v.json", b"[" * 200 + b"]" * 200),
    "deep names": ("v.json", b'{"a": ' * 9 + b"[1]" + b"}" * 9),
    "objects in an array": ("v.npy", object_array()),
    "more than there is": ("v.npy", npy_header((10**12,)) + b"\0" * 8),
    "negative shape": ("v.npy", npy_header((-1,)) + b"\0" * 8),
    "text in an array": ("v.npy", npy_header((2,), "<U1") + b"\0" * 8),
    "no array": ("v.npy", b"hello"),
    "objects in an archive": ("v.npz", zipped("1.npy", object_array())),
    "more than there is, in an archive": ("v.npz", zipped("1.npy", npy_header((10**12,)))),
    "too much in an archive": ("v.npz", zipped("1.npy", bytes(1 << 28))),
    "no archive": ("v.npz", b"PK"),
    "code": ("v.pt", saved({"1": Hostile()})),
    "code in an old pickle": ("v.pt", pickle.dumps(Hostile(), protocol=2)),
    "complex numbers": ("v.pt", saved({1: torch.ones(SIZE, dtype=torch.complex64)})),
    "a tensor larger than its numbers": ("v.pt", saved({1: torch.ones(1).expand(10**9)})),
    "a number alone": ("v.pt", saved(3)),
    "an archive of several disks": ("v.pt", b"PK\6\7\1" + bytes(15) + b"PK\5\6" + bytes(18)),
    "integers": ("v.safetensors", save({"1": torch.ones(SIZE, dtype=torch.int32)})),
    "no GGUF": ("v.gguf", b"GGUF"),
    "no form": ("v.txt", b""),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("little_memory")
def test_what_is_no_file_of_vectors_is_refused(case: str, tmp_path: Path) -> None:
    name, contents = WRONG[case]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(InputError, match=naming(str(tmp_path / name))):
        read_source_file(tmp_path / name)


def test_a_model_in_gguf_is_no_control_vector(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=naming("direction.N")):
        read_source_file(tmp_path / "m.gguf")


def test_directories_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=naming("no such file")):
        read_source_file(tmp_path / "v.gguf")
    with pytest.raises(InputError, match=naming(tmp_path)):
        read_source_file(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=naming("adapter", "file")):
        read_source_file(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "fact"),
    [
        ({"happy": (SIZE,), "sad": (SIZE,)}, "happy"),
        ({"1.2": (SIZE,)}, "1.2"),
        ({"a1": (SIZE,), "b1": (SIZE,)}, "b1"),
        ({"1": (SIZE + 1,)}, SIZE + 1),
        ({"4": (SIZE,)}, 4),
        ({"-5": (SIZE,)}, -5),
        ({"3": (SIZE,), "-1": (SIZE,)}, "-1"),
        ({"v": (2, 3, SIZE)}, SIZE),
        ({"v": ()}, SIZE),
        ({"9999999999": (SIZE,)}, "9999999999"),
    ],
)
def test_vectors_of_no_layer_of_the_model_are_refused(arrays: dict[str, tuple[int, ...]], fact: object) -> None:
    file = SourceFile("v.json", "JSON", "0", {name: torch.ones(shape).double() for name, shape in arrays.items()})
    with pytest.raises(InputError, match=naming("v.json", fact)):
        source_vectors(file, LAYERS, SIZE, ImportOptions())
