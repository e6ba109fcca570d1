"""The `Modelfile` with which Ollama runs an export (https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx).

It has no TEMPLATE: Ollama has templates of another language than the chat template of a GGUF file, and chooses the one
for it by itself. A control vector cannot be named in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.files.reading import read_json_object
from sea_export.files.writing import write_text

if TYPE_CHECKING:
    from sea_export.model.checkpoint import Checkpoint
    from sea_export.model.gguf_header import GgufHeader

__all__ = ["MODELFILE", "has_modelfile", "modelfile", "sampling_of_config", "sampling_of_gguf", "write_modelfile"]

MODELFILE = "Modelfile"

_OF_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}
_OF_CONFIG = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_WHOLE = ("top_k", "repeat_last_n")
_GENERATION_CONFIG = "generation_config.json"


def modelfile(file: str, parameters: Mapping[str, float], *, adapter: str | None = None) -> str | None:
    """The contents of the Modelfile; None if it cannot name the file.

    Args:
        file: the name of a GGUF file in its folder, or the base that is to be put there.
        parameters: what the base says of sampling, by Ollama's names.
        adapter: the name of the LoRA in its folder.
    """
    if not file.isprintable() or '"' in file:
        return None
    lines = [] if adapter is None else ["# The base. Put its file into this folder, or its path here."]
    lines.append(f"FROM ./{file}")
    if adapter is not None:
        lines.append(f"ADAPTER ./{adapter}")
    lines += [
        f"PARAMETER {name} {value}" if isinstance(value, int) else f"PARAMETER {name} {value:.7g}"
        for name, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def sampling_of_gguf(header: GgufHeader) -> dict[str, float]:
    """What a GGUF file says of sampling, by Ollama's names.

    Args:
        header: its header.
    """
    return _numbers(_OF_GGUF, header.value)


def sampling_of_config(checkpoint: Checkpoint) -> dict[str, float]:
    """What the generation config of a checkpoint says of sampling, by Ollama's names; nothing if it says not to.

    Args:
        checkpoint: the checkpoint.

    Raises:
        InputError: the generation config is damaged.
    """
    path = checkpoint.directory / _GENERATION_CONFIG
    config = read_json_object(path) if path.is_file() else {}
    return _numbers(_OF_CONFIG, config.get) if config.get("do_sample") is True else {}


def _numbers(names: Mapping[str, str], value: Callable[[str], object]) -> dict[str, float]:
    """The values that are numbers of the kind that Ollama takes."""
    found = {}
    for key, name in names.items():
        number = value(key)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            continue
        if name not in _WHOLE:
            found[name] = float(number)
        elif number == int(number):
            found[name] = int(number)
    return found


def write_modelfile(directory: Path, contents: str | None) -> list[str]:
    """Writes the Modelfile into a folder.

    Args:
        directory: an existing directory.
        contents: what `modelfile` gave; None for no Modelfile.

    Returns:
        The names of the files written: one or none.

    Raises:
        OSError: it could not be written.
    """
    if contents is None:
        return []
    write_text(directory / MODELFILE, contents)
    return [MODELFILE]


def has_modelfile(directory: Path, contents: str | None) -> bool:
    """Whether a folder has the Modelfile that was planned, or none if none was.

    Args:
        directory: the folder.
        contents: see `write_modelfile`.
    """
    path = directory / MODELFILE
    if contents is None:
        return not path.exists()
    planned = contents.encode()
    return path.is_file() and path.stat().st_size == len(planned) and path.read_bytes() == planned
