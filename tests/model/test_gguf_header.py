"""Headers of GGUF files, whole and broken."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from sea_export.errors import InputError
from tests.helpers.gguf_files import write_gguf

gguf = pytest.importorskip("gguf")

from sea_export.model.gguf_header import encode_header, read_gguf_header  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    return path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"t", sizes: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def file(entries: list[bytes], tensors: list[bytes], *, version: int = 3, data: int = 4096) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(entries))
    return b"GGUF" + counts + b"".join((*entries, *tensors)) + bytes(data)


def test_it_is_what_the_gguf_package_reads(whole: Path) -> None:
    header, reader = read_gguf_header(whole), gguf.GGUFReader(whole)
    assert [(one.name, one.type, one.start, one.nbytes) for one in header.tensors] == [
        (one.name, one.tensor_type, one.data_offset, one.n_bytes) for one in reader.tensors
    ]
    assert [tuple(reversed(one.shape)) for one in header.tensors] == [tuple(one.shape) for one in reader.tensors]
    assert [one.key for one in header.entries] == [name for name in reader.fields if not name.startswith("GGUF.")]
    assert header.value("general.name") == "Tiny Title"
    assert header.value("llama.embedding_length") == 32
    assert header.value("tokenizer.ggml.tokens") is None
    encoded = encode_header(header.version, header.entries, header.tensors, header.alignment)
    assert encoded == whole.read_bytes()[: header.data_start]


BROKEN = {
    "cut in the magic number": b"GGU",
    "cut after it": b"GGUF",
    "another version": file([], [], version=1),
    "big-endian": file([], [], version=3 << 24),
    "endless tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0) + bytes(999),
    "endless entries": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(999),
    "a long key": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + bytes(99),
    "a key that is no text": file([entry(b"\xff\xfe", 4, bytes(4))], []),
    "a value of no type": file([entry(b"a", 99, bytes(4))], []),
    "the same key twice": file([entry(b"a", 4, bytes(4))] * 2, []),
    "a list of lists": file([entry(b"a", 9, struct.pack("<IQ", 9, 1))], []),
    "an endless list of numbers": file([entry(b"a", 9, struct.pack("<IQ", 0, 2**62))], []),
    "a list of too many texts": file([entry(b"a", 9, struct.pack("<IQ", 8, 2**23))], [], data=2**23),
    "too many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**20, 0) + bytes(2**20),
    "an endless list of texts": file([entry(b"a", 9, struct.pack("<IQ", 8, 2**62))], []),
    "an alignment of 3": file([entry(b"general.alignment", 4, struct.pack("<I", 3))], []),
    "an alignment of 0": file([entry(b"general.alignment", 4, bytes(4))], []),
    "an alignment of another type": file([entry(b"general.alignment", 10, struct.pack("<Q", 32))], []),
    "a tensor of no type": file([], [tensor(kind=99)]),
    "a tensor of a removed type": file([], [tensor(kind=4)]),
    "a tensor of many dimensions": file([], [tensor(sizes=(1,) * 5)]),
    "a tensor of many values": file([], [tensor(sizes=(2**40, 2**40))]),
    "a tensor of overflowing values": file([], [tensor(sizes=(2**63, 2**63, 4))]),
    "a row that no block fits": file([], [tensor(sizes=(40,), kind=8)]),
    "two tensors of one name": file([], [tensor(), tensor(offset=32)]),
    "tensors at one place": file([], [tensor(b"a"), tensor(b"b")]),
    "a tensor elsewhere": file([], [tensor(offset=32)]),
    "a tensor far away": file([], [tensor(offset=2**64 - 32)]),
    "a tensor beyond the end": file([], [tensor(sizes=(4096,))]),
    "a name over two lines": file([], [tensor(b"a\nb")]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(BROKEN[name])
    with pytest.raises(InputError, match=r"m\.gguf: (its GGUF header is broken|it is not a GGUF file)") as caught:
        read_gguf_header(path)
    assert str(caught.value).endswith("ownload it again.")


def test_every_cut_is_refused(whole: Path, tmp_path: Path) -> None:
    contents, header = whole.read_bytes(), read_gguf_header(whole)
    last = header.tensors[-1]
    path = tmp_path / "m.gguf"
    for length in (*range(0, header.data_start, 17), header.data_start, last.start, last.start + last.nbytes - 1):
        path.write_bytes(contents[:length])
        with pytest.raises(InputError):
            read_gguf_header(path)


@pytest.mark.parametrize("kind", [0, 8])
def test_a_large_list_in_a_sparse_file_costs_neither_time_nor_memory(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file([entry(b"a", 9, struct.pack("<IQ", kind, 2**32))], [], data=0))
    with open(path, "r+b") as stream:
        stream.truncate(40 * 10**9)
    start = time.process_time()
    with pytest.raises(InputError, match="header is broken"):
        read_gguf_header(path)
    assert time.process_time() - start < 1
