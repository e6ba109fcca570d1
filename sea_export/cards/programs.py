"""How programs load an output: for the model card.

`scripts/downstream` tries most of these programs on exports of every format.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sea_export.cards.markdown import Markdown
from sea_export.export.formats import export_format
from sea_export.export.llama_cpp import conversion_commands, llama_cpp_command

__all__ = ["Program", "programs"]

_PLAIN = re.compile(r"[\w.][\w./+@=-]*")
_EXACT_LORA_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM takes."""


@dataclass(frozen=True)
class Program:
    """A program, and the commands that load an output with it."""

    name: str
    commands: Markdown


def programs(manifest: Mapping[str, Any], hub_base: str | None) -> list[Program]:
    """The programs besides transformers that load an output, each with its commands for a shell.

    Args:
        manifest: the contents of its `sea_export.json`.
        hub_base: the Hub id of its base; None for a local one.
    """
    here = _shown(manifest.get("repository") or ".", "OUTPUT")
    if gguf := manifest.get("gguf"):
        return _of_gguf(_shown(gguf["file"], "FILE.gguf"))
    if manifest.get("gguf_adapter"):
        started = str(llama_cpp_command(manifest)).replace("llama-cli", "llama-server", 1)
        return [Program("llama.cpp, as a server", Markdown(started))]
    format = export_format(manifest["format"])
    if format.loads_beside_base:
        return _of_adapter(here, _shown(hub_base or "BASE", "BASE"), manifest["adapter"])
    trust = format.runs_code or manifest["base"].get("own_code", False)
    return _of_checkpoint(here, own_code=format.runs_code, trust=trust)


def _shown(name: str, otherwise: str) -> str:
    """A name in a command; another word for one that a shell, or a block of code, would not take as it is."""
    return shlex.quote(name) if _PLAIN.fullmatch(name) else otherwise


def _of_checkpoint(here: str, *, own_code: bool, trust: bool) -> list[Program]:
    serve, evaluate = (" --trust-remote-code", ",trust_remote_code=True") if trust else ("", "")
    found = [
        Program("vLLM", Markdown(f"vllm serve {here}{serve}")),
        Program(
            "lm-evaluation-harness",
            Markdown(f"lm_eval --model hf --model_args pretrained={here}{evaluate} --tasks arc_easy"),
        ),
    ]
    if own_code:  # programs that have the architecture in code of their own do not know the edit
        return found
    convert = " --trust_remote_code" if trust else ""
    return [
        *found,
        Program(
            "llama.cpp, from a local copy",
            Markdown("\n".join((*conversion_commands("OUTPUT", "model"), "llama-cli -m model-Q4_K_M.gguf"))),
        ),
        Program("CTranslate2", Markdown(f"ct2-transformers-converter --model {here} --output_dir converted{convert}")),
    ]


def _of_adapter(here: str, base: str, adapter: Mapping[str, Any]) -> list[Program]:
    harness = Program(
        "lm-evaluation-harness",
        Markdown(f"lm_eval --model hf --model_args pretrained={base},peft={here} --tasks arc_easy"),
    )
    if adapter["kind"] != "LoRA":
        return [harness]
    largest = max(module["rank"] for module in adapter["modules"])
    rank = next((one for one in _EXACT_LORA_RANKS if one >= largest), None)
    served = (
        []
        if rank is None
        else [
            Program(
                "vLLM",
                Markdown(f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules edited={here}"),
            )
        ]
    )
    converted = Program(
        "llama.cpp, from a local copy",
        Markdown("python convert_lora_to_gguf.py OUTPUT --outfile edit.gguf\nllama-cli -m BASE.gguf --lora edit.gguf"),
    )
    return [harness, *served, converted]


def _of_gguf(file: str) -> list[Program]:
    return [
        Program("llama.cpp, as a server", Markdown(f"llama-server -m {file}")),
        Program("llama-cpp-python", Markdown(f"python -m llama_cpp.server --model {file}")),
    ]
