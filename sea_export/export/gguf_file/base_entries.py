"""What a GGUF file says about where it comes from: the keys `general.base_model.*` of the format's documentation
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType

from sea_export.export.gguf_file.encoding import FLOATS
from sea_export.model.gguf_header import GgufEntry, GgufHeader, number_entry, text_entry

__all__ = ["new_entries"]

_COUNT = "general.base_model.count"
_QUANTIZATION = "general.quantization_version"
_TAKEN_OVER = ("author", "version", "organization", "url", "doi", "uuid", "repo_url")


def new_entries(
    base: GgufHeader, name: str, edited: Iterable[str], types: Iterable[GGMLQuantizationType]
) -> Iterator[GgufEntry]:
    """The entries that name the base as one more parent of the model. Those of its own parents stay.

    Args:
        base: the header of the base's first file.
        name: the name of the base.
        edited: what is edited, such as `20.mlp`.
        types: the types of the edited tensors.
    """
    stated = next((entry for entry in base.entries if entry.key == _COUNT), None)
    count = stated.value if stated is not None and type(stated.value) is int else 0
    kind = GGUFValueType.UINT32 if stated is None or type(stated.value) is not int else stated.type
    yield number_entry(_COUNT, count + 1, kind)
    parent = f"general.base_model.{count}"
    title = base.value("general.name")
    yield text_entry(f"{parent}.name", title if isinstance(title, str) and title else name)
    for key in _TAKEN_OVER:
        value = base.value(f"general.{key}")
        if isinstance(value, str):
            yield text_entry(f"{parent}.{key}", value)
    version = importlib.metadata.version("sea-export")
    yield text_entry(
        f"{parent}.description",
        f"{name}, before sea-export {version} folded an edit of the outputs of {', '.join(edited)} into it.",
    )
    # The documentation asks for this wherever a tensor is quantized.
    if base.value(_QUANTIZATION) is None and any(one not in FLOATS for one in types):
        yield number_entry(_QUANTIZATION, GGML_QUANT_VERSION)
