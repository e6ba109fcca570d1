"""Of which model of the Hub a local base is a copy: as the user says it, or as its own files do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

import sea_export
from sea_export.cards.base_card import base_facts
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.manifest import read_manifest
from sea_export.model.base import open_base
from sea_export.options import ExportOptions
from tests.helpers.messages import naming


@pytest.fixture(scope="module")
def edit(llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit]) -> SpectralEdit:
    return fit_tiny(llama)


def copy_of(checkpoint: Path, directory: Path, named: object = None) -> Path:
    """A copy of a model whose config tells of which model it is."""
    shutil.copytree(checkpoint, directory)
    if named is not None:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        (directory / "config.json").write_text(json.dumps({**config, "_name_or_path": named}), encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    ("place", "named", "found"),
    [
        ("tiny-llama", "org/tiny-llama", "org/tiny-llama"),
        ("Tiny-Llama", "org/tiny-llama", "org/tiny-llama"),
        ("my-own", "org/tiny-llama", None),  # fine-tuned from it, as far as the config knows
        ("tiny-llama", "../elsewhere/tiny-llama", None),
        ("tiny-llama", "tiny-llama", None),
        ("tiny-llama", 7, None),
        ("tiny-llama", None, None),
        ("hub/models--org--tiny-llama/snapshots/0123abcd", None, "org/tiny-llama"),
        ("hub/models--org--tiny-llama/snapshots/0123abcd", "other/whale", "org/tiny-llama"),
        ("hub/models--tiny-llama/snapshots/0123abcd", None, None),
    ],
)
def test_what_the_files_of_a_base_tell(
    place: str, named: object, found: str | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with open_base(str(copy_of(tiny_checkpoint, tmp_path / place, named))) as base:
        assert base_facts(base).get("hub_id") == found
        assert base_facts(base, "me/said-so")["hub_id"] == "me/said-so"


def test_name_link_and_license_follow(edit: SpectralEdit, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_checkpoint, tmp_path / "base")
    text = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    (base / "README.md").write_text(text, encoding="utf-8")
    for base_id in ("org/tiny-llama", None):
        output = tmp_path / f"out-{base_id is None}"
        sea_export.save(edit, base, output, verify=False, base_id=base_id)
        card = ModelCard.load(output / "README.md")
        told = base_id is not None
        assert card.data.base_model == base_id
        assert card.data.to_dict().get("base_model_relation") == ("finetune" if told else None)
        assert ("[org/tiny-llama](https://huggingface.co/org/tiny-llama)" in card.text) == told
        assert card.text.strip().startswith("# tiny-llama" if told else "# base")
        link = "https://huggingface.co/org/tiny-llama/blob/main/LICENSE" if told else "LICENSE"
        assert card.data.license_link == link
        assert read_manifest(output)["export"]["base_id"] == base_id


@pytest.mark.parametrize("wrong", ["tiny-llama", "a/b/c", "/tmp/x", "org/ti ny", "org/", "", "../x"])
def test_ids_that_are_none(wrong: str) -> None:
    with pytest.raises(InputError, match=naming("--base-id")):
        ExportOptions(base_id=wrong)


def test_chat_models_are_asked_through_messages(edit: SpectralEdit, tiny_checkpoint: Path, tmp_path: Path) -> None:
    bases = [copy_of(tiny_checkpoint, tmp_path / name) for name in ("config", "file", "damaged", "none")]
    for base in bases:
        (base / "chat_template.jinja").unlink()
    in_config, in_file, damaged, without = bases
    config = json.loads((in_config / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    (in_config / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    (in_file / "chat_template.jinja").write_text(template)
    (damaged / "tokenizer_config.json").write_text("[")
    for base, chats in ((in_config, True), (in_file, True), (without, False), (damaged, False)):
        with open_base(str(base)) as opened:
            assert base_facts(opened)["chat"] == chats
    sea_export.save(edit, in_file, tmp_path / "out", verify=False)
    sea_export.save(edit, without, tmp_path / "plain", verify=False)
    card, plain = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("out", "plain"))
    assert '"role": "user"' in card
    assert "Q: " not in card
    assert '"role": "user"' not in plain
