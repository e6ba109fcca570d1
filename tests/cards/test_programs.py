"""The programs that the card names load such an output, and its commands are plain words of a shell."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import pytest

from sea_export.cards.programs import programs

CHECKPOINT = {"format": "merged", "base": {}}
ADAPTER = {"format": "adapter", "base": {}, "adapter": {"kind": "LoRA", "modules": [{"rank": 8}, {"rank": 20}]}}
GGUF = {"format": "gguf", "base": {}, "gguf": {"file": "model-Q8_0.gguf"}}
GGUF_ADAPTER = {
    "format": "gguf-adapter",
    "base": {},
    "gguf_adapter": {"base_file": "base.gguf", "files": ["sea-lora.gguf", "sea-control-vector.gguf"]},
}


def names(manifest: dict[str, Any]) -> set[str]:
    return {one.name.partition(",")[0] for one in programs(manifest, None)}


def text(manifest: dict[str, Any], hub_base: str | None = None) -> str:
    return "\n".join(one.commands for one in programs(manifest, hub_base))


def test_four_programs_beside_transformers() -> None:
    assert names(CHECKPOINT) == {"vLLM", "lm-evaluation-harness", "llama.cpp", "CTranslate2"}
    assert len(names(ADAPTER)) == 3  # and PEFT on a model in memory
    assert names(GGUF) == {"llama.cpp", "llama-cpp-python"}  # and Ollama by the Modelfile
    assert (
        text(GGUF_ADAPTER) == "llama-server -m base.gguf --lora sea-lora.gguf --control-vector sea-control-vector.gguf"
    )
    assert "trust" not in text(CHECKPOINT)


def test_code_is_trusted_where_there_is_some() -> None:
    own = {"format": "custom-code", "base": {}}
    assert names(own) == {"vLLM", "lm-evaluation-harness"}, "others have no code of the edit"
    for manifest in (own, {"format": "merged", "base": {"own_code": True}}):
        commands = text(manifest).splitlines()
        assert any("vllm" in line and "--trust-remote-code" in line for line in commands)
        assert any("lm_eval" in line and "trust_remote_code=True" in line for line in commands)


def test_adapters() -> None:
    assert "vllm serve org/base --enable-lora --max-lora-rank 32 --lora-modules edited=." in text(ADAPTER, "org/base")
    assert "pretrained=BASE,peft=." in text(ADAPTER)
    large = copy.deepcopy(ADAPTER)
    large["adapter"]["modules"][0]["rank"] = 600
    assert "vLLM" not in names(large), "it takes no such rank"
    scaled = copy.deepcopy(ADAPTER)
    scaled["adapter"]["kind"] = "DoRA"
    assert names(scaled) == {"lm-evaluation-harness"}


@pytest.mark.parametrize("name", ["a b", "x; rm -rf y", "a\n```\n", "$(x)", "-x", "`x`"])
def test_names_that_a_shell_would_not_take_are_left_out(name: str) -> None:
    for manifest in (
        {**CHECKPOINT, "repository": name},
        {**ADAPTER, "repository": name},
        {**GGUF, "gguf": {"file": name}},
    ):
        commands = text(manifest, name)
        assert name not in commands
        assert all(shlex.split(line) for line in commands.splitlines())
