"""The header of a safetensors file on the Hub, without the values after it.

huggingface_hub's own function multiplies what is in a shape before anything has checked that these are numbers, which a
false header can make take all memory. So here the bytes are fetched alone, and read like those of any other file.
"""

from __future__ import annotations

import re
from pathlib import Path

from sea_export.errors import InputError
from sea_export.files.reading import MAXIMUM_JSON_BYTES
from sea_export.model.safetensors_header import read_header

__all__ = ["download_header"]

_LENGTH_BYTES = 8
# Nearly all headers are shorter, and come with the first request.
_FIRST_BYTES = 100_000
_SECONDS = 30.0


def download_header(model: str, file: str, revision: str, destination: Path) -> None:
    """Writes a sparse file of the size that a file on the Hub has, with its header and zeros for all values.

    Args:
        model: the Hub id.
        file: the name of the file.
        revision: the commit.
        destination: the file that is written.

    Raises:
        InputError: the file is no safetensors file, or its header is not valid.
        Exception: whatever huggingface_hub raises if the file cannot be fetched.
    """
    contents, size = _fetched(model, file, revision, 0, _FIRST_BYTES)
    end = _LENGTH_BYTES + int.from_bytes(contents[:_LENGTH_BYTES], "little")
    if end > min(size, MAXIMUM_JSON_BYTES):
        raise InputError(f"{model}: its {file} is no safetensors file, or only a part of one. Choose another model.")
    if end > len(contents):
        contents += _fetched(model, file, revision, len(contents), end)[0]
    with open(destination, "wb") as stream:
        stream.write(contents[:end])
        stream.truncate(size)
    try:
        read_header(destination)
    except InputError as error:
        problem = str(error).removeprefix(f"{destination}: ")
        raise InputError(f"{model}: its {file} has no valid header: {problem}") from error


def _fetched(model: str, file: str, revision: str, start: int, end: int) -> tuple[bytes, int]:
    """The bytes of a file on the Hub from `start` to before `end`, or more, and the size of the whole file."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(model, file, revision=revision, endpoint=constants.ENDPOINT)
    headers = {**build_hf_headers(), "range": f"bytes={start}-{end - 1}", "accept-encoding": "identity"}
    response = get_session().get(url, headers=headers, timeout=_SECONDS)
    hf_raise_for_status(response)
    told = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("content-range", ""))
    if told is not None:
        return response.content, int(told[1])
    return response.content[start:], len(response.content)  # a server that gives the whole file
