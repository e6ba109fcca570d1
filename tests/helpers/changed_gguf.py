"""GGUF files whose headers say something else: counts, keys, values, names, shapes, types and offsets."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests.helpers.changed_files import changed_bytes, changed_json

__all__ = ["changed_gguf", "join_gguf", "split_gguf"]

_ALIGNMENT = 32
_TEXT, _LIST = 8, 9
# How the numbers of each type of values are stored.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def changed_gguf(valid: Callable[[], bytes]) -> st.SearchStrategy[bytes]:
    """A GGUF file with a changed header, or changed anywhere.

    Args:
        valid: gives the file. It has the usual alignment.
    """

    def strategy() -> st.SearchStrategy[bytes]:
        contents = valid()
        header, data = split_gguf(contents)
        return changed_json(header).map(lambda changed: join_gguf(changed, data)) | changed_bytes(contents)

    return st.deferred(strategy)


def split_gguf(contents: bytes) -> tuple[dict[str, Any], bytes]:
    """What the header of a GGUF file says, as JSON, and the bytes of its tensors.

    Args:
        contents: the file.

    Returns:
        A header whose entries are [key, type of the value, value], the value of a list being [type, values], and whose
        records are [name, sizes in the order of the file, type, offset]; and the bytes.
    """
    place = 4

    def number(format: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{format}", contents, place)
        place += struct.calcsize(format)
        return value

    def text() -> str:
        nonlocal place
        length = number("Q")
        place += length
        return contents[place - length : place].decode()

    def value(kind: int) -> Any:
        if kind == _LIST:
            inner, count = number("I"), number("Q")
            return [inner, [value(inner) for _ in range(count)]]
        return text() if kind == _TEXT else number(_NUMBERS[kind])

    header: dict[str, Any] = {"version": number("I"), "tensor_count": number("Q"), "entry_count": number("Q")}
    header["entries"] = [[text(), kind := number("I"), value(kind)] for _ in range(header["entry_count"])]
    header["records"] = [
        [text(), [number("Q") for _ in range(number("I"))], number("I"), number("Q")]
        for _ in range(header["tensor_count"])
    ]
    return header, contents[place + -place % _ALIGNMENT :]


def join_gguf(header: Any, data: bytes) -> bytes:
    """The GGUF file whose header says something, however senseless: what is no number becomes one.

    Args:
        header: see `split_gguf`.
        data: the bytes of its tensors.
    """
    told = header if isinstance(header, dict) else {}
    parts = [b"GGUF", *(_number(told.get(name), form) for name, form in _COUNTS.items())]
    for entry in _list(told.get("entries")):
        key, kind, value = [*_list(entry), None, None, None][:3]
        parts += [_text(key), _number(kind, "I"), *_value(value, kind)]
    for record in _list(told.get("records")):
        name, sizes, kind, offset = [*_list(record), None, None, None, None][:4]
        parts += [_text(name), _number(len(_list(sizes)), "I"), *(_number(size, "Q") for size in _list(sizes))]
        parts += [_number(kind, "I"), _number(offset, "Q")]
    text = b"".join(parts)
    return text + bytes(-len(text) % _ALIGNMENT) + data


_COUNTS = {"version": "I", "tensor_count": "Q", "entry_count": "Q"}


def _value(value: Any, kind: Any) -> Iterator[bytes]:
    if kind == _LIST:
        inner, values = [*_list(value), None, None][:2]
        yield _number(inner, "I") + _number(len(_list(values)), "Q")
        for one in _list(values):
            yield from _value(one, inner)
    elif type(kind) is int and kind in _NUMBERS:
        yield _number(value, _NUMBERS[kind])
    else:
        yield _text(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> bytes:
    data = str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _number(value: Any, form: str) -> bytes:
    """A number in as many bytes as its form has."""
    value = value if isinstance(value, (int, float)) else 0
    if form in "fd":
        return struct.pack(f"<{form}", math.inf if abs(value) > 1e38 else value)
    size = struct.calcsize(form)
    whole = int(value) if isinstance(value, int) or math.isfinite(value) else 0
    return (whole % 256**size).to_bytes(size, "little")
