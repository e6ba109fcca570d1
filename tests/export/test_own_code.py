"""A base that needs code of its own is exported in every format, and its export is a base again."""

from __future__ import annotations

from pathlib import Path

import pytest

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.targets import Target
from tests.helpers.custom_code_models import load, logits, relative_error
from tests.helpers.own_code_models import KINDS, own_code_copy
from tests.helpers.tiny_edits import spectral_edit

pytestmark = pytest.mark.slow

FORMATS = ("merged", "adapter", "custom-code")
FIRST, SECOND = (spectral_edit([Target(layer, "mlp")]) for layer in (2, 3))


def saved(edit: SpectralEdit, base: Path, output: Path, form: str) -> Path:
    verification = sea_export.save(edit, base, output, format=form, trust_remote_code=True).verification
    assert verification is not None
    assert verification.passed
    return output


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_holds_the_edit(kind: str, form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = own_code_copy(tiny_checkpoint, tmp_path / "base", kind)
    output = saved(FIRST, base, tmp_path / "out", form)
    if kind == "a subclass":
        assert sea_export.verify(output, base, trust_remote_code=True).passed
    with pytest.raises(sea_export.InputError, match="trust_remote_code=True"):
        sea_export.verify(output, base)
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code=True" in card


def test_code_of_a_type_that_transformers_knows_is_built_upon_where_it_is_trusted(tiny_checkpoint, tmp_path) -> None:
    base = own_code_copy(tiny_checkpoint, tmp_path / "base", "a whole model", model_type="llama")
    output = saved(FIRST, base, tmp_path / "out", "custom-code")
    assert "from .modeling_own import OwnForCausalLM, OwnModel" in (output / "modeling_sea.py").read_text("utf-8")


@pytest.mark.parametrize("form", ["merged", "custom-code"])
@pytest.mark.parametrize("again", FORMATS)
def test_its_export_is_a_base_again(form: str, again: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = own_code_copy(tiny_checkpoint, tmp_path / "base", "a whole model")
    output = saved(FIRST, base, tmp_path / "out", form)
    twice = saved(SECOND, output, tmp_path / "twice", again)
    if again != "adapter":
        model = load(base)
        with sea_export.compose([FIRST, SECOND]).apply(model):
            expected = logits(model)
        assert relative_error(logits(load(twice)), expected) < 1e-5


def test_edits_of_one_module_follow_one_another(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The export of a plain base, edited again in the same place."""
    output = saved(FIRST, tiny_checkpoint, tmp_path / "out", "custom-code")
    twice = saved(FIRST, output, tmp_path / "twice", "custom-code")
    model = load(tiny_checkpoint)
    with sea_export.compose([FIRST, FIRST]).apply(model):
        expected = logits(model)
    assert relative_error(logits(load(twice)), expected) < 1e-5
    with pytest.raises(sea_export.SeaExportError, match='format="custom-code"'):
        sea_export.save(FIRST, output, tmp_path / "merged", trust_remote_code=True)
