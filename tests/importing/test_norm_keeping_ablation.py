"""Directions removed from weights whose rows keep their norms, against the equations of heretic's row normalization."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.cards.description import check_describable
from sea_export.errors import InputError
from sea_export.export.manifest import read_manifest
from sea_export.importing.import_edit import import_edit
from sea_export.importing.import_options import ImportOptions
from sea_export.verification.recorded_run import RecordedRun
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but
from tests.helpers.tiny_models import blocks_of, random_model, tiny_model

SIZE = 24
WRITERS = {"mlp": ("down_proj", "c_proj"), "attention": ("o_proj", "c_proj")}


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    vector = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    (tmp_path / "refusal.json").write_text(json.dumps(vector.tolist()))
    return tmp_path / "refusal.json"


def ablated(weight: Tensor, vector: Tensor, share: float) -> Tensor:
    """W (out, in) without a direction, with the norms of its rows."""
    units = functional.normalize(weight, dim=1)
    unit = functional.normalize(vector, dim=0)
    return weight.norm(dim=1, keepdim=True) * functional.normalize(
        units - share * torch.outer(unit, unit @ units), dim=1
    )


def writer(block: nn.Module, component: str) -> nn.Module:
    return next(module for name, module in block.named_modules() if name in WRITERS[component])


def changed_model(family: str, vector: Tensor, share: float, components: tuple[str, ...]) -> PreTrainedModel:
    model = copy.deepcopy(tiny_model(family))
    for component in components:
        for block in blocks_of(model, component):
            module = writer(block, component)
            rows = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T
            changed = ablated(rows, vector, share)
            module.weight.data = changed if isinstance(module, nn.Linear) else changed.T.contiguous()
    return model


@pytest.mark.parametrize("share", [1.0, 1.4])
@pytest.mark.parametrize("family", slow_but(("llama", "gpt2"), ("llama", "gpt2", "llama-tied", "llama-bias")))
def test_rows_keep_their_norms(
    family: str, share: float, direction: Path, tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base, vector = tiny_checkpoint_of(family), torch.tensor(json.loads(direction.read_text()))
    edit = import_edit(direction, base, as_="ablate", keep_norm="rows", coefficient=share)
    assert not edit.layers
    sea_export.save(edit, base, tmp_path / "out", verify=False)
    expected = changed_model(family, vector, share, ("mlp", "attention")).state_dict()
    before, found = (load_file(one / "model.safetensors") for one in (base, tmp_path / "out"))
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected.get(name, expected.get(f"transformer.{name}")), rtol=1e-5, atol=1e-6
        )
    changed = [name for name in found if not torch.equal(found[name], before[name])]
    assert len(changed) == 8, "no bias and no embedding"


def test_it_is_verified_and_told(direction: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    edit = import_edit(direction, tiny_checkpoint, as_="ablate", keep_norm="rows", site="attention", layers="1-2")
    assert edit.decoder_layers == (1, 2)
    half = edit * 0.5
    assert half.provenance["imported"]["coefficient"] == 1
    assert half.provenance["imported"]["strength"] == 0.5
    for format in ("merged", "adapter"):
        result = sea_export.save(half, tiny_checkpoint, tmp_path / format, format=format, verify=format == "adapter")
        card = (tmp_path / format / "README.md").read_text()
        assert "attention blocks, whose rows keep their norms (that change times 0.5)" in card
    assert result.verification is not None
    assert result.verification.passed
    manifest = read_manifest(tmp_path / "merged")
    check_describable(manifest, "sea_export.json", "")
    with pytest.raises(InputError, match=naming("--keep-norm", "refusal.json")):
        RecordedRun.of(manifest)


def test_rows_without_a_norm_stay_without(direction: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A row of zeros, and in another weight all rows along the direction but for one."""
    model, vector = copy.deepcopy(tiny_model("llama")), torch.tensor(json.loads(direction.read_text()))
    model.model.layers[0].mlp.down_proj.weight.data[3] = 0
    model.model.layers[1].mlp.down_proj.weight.data = torch.zeros(SIZE, 40).index_fill(0, torch.tensor([5]), 2.0)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    edit = import_edit(direction, tmp_path / "base", as_="ablate", keep_norm="rows", site="mlp")
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", verify=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for layer in (0, 1):
        before = model.model.layers[layer].mlp.down_proj.weight.data
        after = found[f"model.layers.{layer}.mlp.down_proj.weight"]
        torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
        torch.testing.assert_close(after, ablated(before, vector, 1.0), rtol=1e-5, atol=1e-6)


def test_experts_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, direction = random_model(tiny_family_config("mixtral")), tmp_path / "v.json"
    model.save_pretrained(tmp_path / "base")
    direction.write_text(json.dumps([1.0] * model.config.hidden_size))
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=naming("experts", "--site")):
        import_edit(direction, tmp_path / "base", as_="ablate", keep_norm="rows")
    edit = import_edit(direction, tmp_path / "base", as_="ablate", keep_norm="rows", site="attention")
    assert edit.weight_changes


def test_it_is_of_removed_directions() -> None:
    with pytest.raises(InputError, match=naming("--keep-norm", "--as")):
        ImportOptions(as_="add", keep_norm="rows")
    with pytest.raises(InputError, match=naming("--keep-norm")):
        ImportOptions(as_="ablate", keep_norm="columns")
