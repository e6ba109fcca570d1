"""Valid files, changed at random where it matters: as bytes, or as what they say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests.helpers.checkpoint_files import join_file, split_file

# Values

_NUMBERS = (
    st.sampled_from(
        [0, -1, 1, 7, 8, 24, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64 - 1, 2**64, 10**300, 10**400, 0.5, 1e308]
    )
    | st.floats()
)
_TEXTS = (
    st.sampled_from(
        [
            "",
            "F32",
            "F64",
            "BF16",
            "U8",
            "F4",
            "__metadata__",
            "positive",
            "1.mlp",
            "../x",
            "/etc/passwd",
            "a/b",
            "\0",
            ".",
        ]
    )
    | st.text(max_size=20)
    | st.text(alphabet="\x1b\n\r\u202e\ud800", min_size=1, max_size=3)
)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.integers() | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=3), max_leaves=8
)


# Changes


@st.composite
def changed_json(draw: st.DrawFn, valid: Any) -> Any:
    """A parsed JSON text with one to three changes anywhere in it."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(_VALUES)
        container, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "nudge", "remove", "rename", "exchange", "wrap"]))
        if change == "nudge" and type(container[key]) is int:
            container[key] += draw(st.sampled_from([-8, -4, -1, 1, 4, 8]))
        elif change == "remove":
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[draw(_TEXTS)] = container.pop(key)
        elif change == "exchange":
            other, other_key = draw(st.sampled_from(places))
            one, two = copy.deepcopy((container[key], other[other_key]))
            container[key], other[other_key] = two, one
        elif change == "wrap":
            container[key] = [container[key]]
        else:
            container[key] = draw(_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes with some of them replaced, removed, repeated or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        # Near the beginning more often than not: that is where files say what they are.
        start = draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        count = draw(st.integers(0, 16) | st.integers(0, len(data)))
        change = draw(st.sampled_from(["replace", "remove", "repeat", "insert", "cut"]))
        if change == "replace":
            new = draw(st.binary(min_size=1, max_size=8))
            data[start : start + len(new)] = new
        elif change == "remove":
            del data[start : start + count]
        elif change == "repeat":
            data[start:start] = data[start : start + min(count, 4096)]
        elif change == "insert":
            data[start:start] = draw(st.binary(max_size=16))
        else:
            del data[start:]
    return bytes(data)


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def changed_text(valid: Any) -> st.SearchStrategy[bytes]:
    """A JSON text that is changed as what it says, or as bytes."""
    return changed_json(valid).map(text_of) | changed_bytes(text_of(valid))


def changed_safetensors(valid: Callable[[], bytes]) -> st.SearchStrategy[bytes]:
    """A safetensors file with a changed header, or changed anywhere."""

    def strategy() -> st.SearchStrategy[bytes]:
        contents = valid()
        header, data = split_file(contents)
        return changed_json(header).map(lambda changed: join_file(changed, data)) | changed_bytes(contents)

    return st.deferred(strategy)
