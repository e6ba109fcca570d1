"""How llama.cpp is given an output, in words for the terminal and for the model card."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

__all__ = ["conversion_commands", "llama_cpp_command"]

_OPTIONS = {"sea-lora.gguf": "--lora", "sea-control-vector.gguf": "--control-vector"}


def llama_cpp_command(manifest: Mapping[str, Any], output: PurePath | None = None) -> str | None:
    """The command that starts llama.cpp with an output; None for an output that it does not read.

    Args:
        manifest: that of the output.
        output: the output; None if it is the current folder.
    """
    folder = PurePath() if output is None else output
    if gguf := manifest.get("gguf"):
        return f"llama-cli -m {_quoted(folder, gguf['file'])}"
    if beside := manifest.get("gguf_adapter"):
        files = [f"{_OPTIONS[file]} {_quoted(folder, file)}" for file in beside["files"]]
        return " ".join((f"llama-cli -m {_quoted(PurePath(), beside['base_file'])}", *files))
    return None


def conversion_commands(output: str, name: str) -> tuple[str, str]:
    """The commands of llama.cpp that make a GGUF file of a plain checkpoint and quantize it.

    Args:
        output: the checkpoint.
        name: how to call the files, without their ending.
    """
    whole, quantized = shlex.quote(f"{name}-F16.gguf"), shlex.quote(f"{name}-Q4_K_M.gguf")
    return (
        f"python convert_hf_to_gguf.py {shlex.quote(output)} --outtype f16 --outfile {whole}",
        f"llama-quantize {whole} {quantized} Q4_K_M",
    )


def _quoted(folder: PurePath, file: str) -> str:
    """A path for a shell. A name from a manifest that is more than a plain name is left for the reader to fill in."""
    plain = re.fullmatch(r"[\w.+=@ -]+", file) is not None
    return shlex.quote(str(folder / (file if plain else "FILE.gguf")))
