"""What a tokenizer's files say never reaches the terminal as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sea_export.errors import InputError
from sea_export.model.base import open_base

_CODE = "\x1b[31mred"


def _in_the_config(stated: dict[str, Any], name: str) -> None:
    stated["eos_token"] = {"__type": "AddedToken", "content": "<|end|>", name: True}


def _in_the_decoder(stated: dict[str, Any], name: str) -> None:
    stated["added_tokens_decoder"] = {"0": {"content": "<|end|>", name: True}}


def _in_the_tokenizer(stated: dict[str, Any], name: str) -> None:
    token = {"id": 0, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "special": True}
    stated["added_tokens"] = [{**token, "normalized": False, name: True}]


DOORS = {
    "config": ("tokenizer_config.json", _in_the_config),
    "decoder": ("tokenizer_config.json", _in_the_decoder),
    "map": ("special_tokens_map.json", _in_the_config),
    "tokenizer": ("tokenizer.json", _in_the_tokenizer),
}


@pytest.mark.parametrize("name", [_CODE, "\x9b31m", "\u202e"], ids=["escape", "C1", "direction"])
@pytest.mark.parametrize(("file", "change"), DOORS.values(), ids=DOORS)
def test_names_of_properties_that_are_no_text_are_refused(
    file: str, change: Callable[[dict[str, Any], str], None], name: str, tiny_checkpoint: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    stated = json.loads((model / file).read_text(encoding="utf-8")) if (model / file).exists() else {}
    change(stated, name)
    (model / file).write_text(json.dumps(stated), encoding="utf-8")
    with open_base(str(model)) as base, pytest.raises(InputError, match=f"{file}: it has a property named") as caught:
        _ = base.tokenizer
    assert str(caught.value).isprintable()
    printed = capfd.readouterr()
    assert name not in printed.out + printed.err
