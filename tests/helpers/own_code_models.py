"""Checkpoints that only code which comes with them can load."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.helpers.hostile_checkpoints import change_json

_CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
"""

_SUBCLASS = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""

_WHOLE = """
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_own import OwnConfig


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
"""

KINDS = {"a subclass": _SUBCLASS, "a whole model": _WHOLE}


def write_own_code(directory: Path, kind: str, *, model_type: str = "own") -> None:
    """Makes a checkpoint of Llama need code of its own, which it gets.

    Args:
        directory: the checkpoint.
        kind: one of `KINDS`.
        model_type: the type of its config; `llama` is one that transformers knows too.
    """
    (directory / "configuration_own.py").write_text(_CONFIG.replace('"own"', f'"{model_type}"'), encoding="utf-8")
    (directory / "modeling_own.py").write_text(KINDS[kind], encoding="utf-8")
    named = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    own = {"model_type": model_type, "architectures": ["OwnForCausalLM"], "auto_map": named}
    change_json(directory / "config.json", lambda whole: whole | own)


def own_code_copy(checkpoint: Path, directory: Path, kind: str, *, model_type: str = "own") -> Path:
    """A copy of a checkpoint of Llama that needs code of its own. See `write_own_code`."""
    shutil.copytree(checkpoint, directory)
    write_own_code(directory, kind, model_type=model_type)
    return directory
