"""The config of an adapter may not ask PEFT for more than the weights beside it hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sea_export.errors import InputError
from sea_export.model.adapter_files import ADAPTER_CONFIG, check_adapter_files, read_adapter_config
from sea_export.model.pretrained import put_adapter_on
from tests.helpers.adapter_files import write_adapter
from tests.helpers.tiny_models import tiny_model

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a rank that fills the memory": ({"r": 10**9}, "the rank 1000000000"),
    "such a rank of one module": ({"rank_pattern": {"model.layers.1.mlp.down_proj": 10**8}}, "the rank 100000000"),
    "a rank that is no number": ({"r": "2"}, "r is not a whole number"),
    "a rank that is not whole": ({"rank_pattern": {"down_proj": 2.5}}, "rank_pattern.down_proj is not a whole number"),
    "a scale that is no number": ({"lora_alpha": [2]}, "lora_alpha is not a number"),
    "a scale that is not finite": ({"lora_alpha": float("nan")}, "lora_alpha is not a number"),
    "names that are numbers": ({"target_modules": [3]}, "target_modules"),
    "tokens that are none": ({"alora_invocation_tokens": [None]}, "alora_invocation_tokens"),
    "tokens in lists": ({"alora_invocation_tokens": [[], [2]]}, "alora_invocation_tokens"),
    "a billion layers": ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
    "many times all layers": ({"layer_replication": [[0, 4]] * 300 + [[9, 0]]}, "layer_replication"),
    "layers that are no pair": ({"layer_replication": [[0]]}, "layer_replication"),
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def change(adapter: Path, entries: dict[str, Any]) -> None:
    contents = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({**contents, **entries}), encoding="utf-8")


@pytest.mark.parametrize(("entries", "named"), WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("little_memory")
def test_a_config_of_other_types_or_sizes_is_refused(adapter: Path, entries: dict[str, Any], named: str) -> None:
    change(adapter, entries)
    with pytest.raises(InputError, match=f"{ADAPTER_CONFIG}: .*{named}"):
        check_adapter_files(adapter)


def test_a_config_that_peft_refuses_is_refused_in_a_sentence(adapter: Path) -> None:
    change(adapter, {"init_lora_weights": "no such method"})
    with pytest.raises(InputError, match="adapter: PEFT cannot put it on its base"):
        put_adapter_on(copy.deepcopy(tiny_model("llama")), adapter)


def test_entries_that_peft_writes_are_read(adapter: Path) -> None:
    change(adapter, {"layer_replication": [[0, 2], [1, 4]], "lora_alpha": 2.5, "target_modules": "down_proj"})
    assert read_adapter_config(adapter)["r"] == 2
    change(adapter, {"layer_replication": None, "target_modules": ["down_proj"], "rank_pattern": {}, "r": 40})
    assert read_adapter_config(adapter)["r"] == 40


@torch.inference_mode()
def test_an_adapter_as_peft_writes_it_is_put_on_its_base(adapter: Path) -> None:
    adapted = put_adapter_on(copy.deepcopy(tiny_model("llama")), adapter)
    assert adapted(torch.tensor([[7, 60, 31]])).logits.isfinite().all()
