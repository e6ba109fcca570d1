"""Changes of single weights: their fold, their run-time form, their algebra and their files, against dense matrices."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sea_export.edit.changed_weights import ChangedWeights, product_of_weights, sum_of_weights
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.weight_change import WeightChange, WeightFactors, WeightHook, sum_of_weight_changes
from sea_export.edit.weight_fold import fold_changes, folded_roundings
from sea_export.errors import InputError, SeaExportError
from tests.helpers.tiny_edits import weight_edit


def change(outputs: int, inputs: int, seed: int = 0, *, scaled: bool = True, strength: float = 0.7) -> WeightChange:
    generator = torch.Generator().manual_seed(seed)
    return WeightChange(
        left=torch.randn(outputs, 3, generator=generator),
        right=torch.randn(3, inputs, generator=generator),
        scale=0.5 + torch.rand(outputs, generator=generator) if scaled else None,
        strength=strength,
        layer=1,
        relative_change=None,
    )


def dense(weight: Tensor, *changes: WeightChange) -> Tensor:
    """W + s (D W + L R - W) for each change, in float64."""
    weight = weight.double()
    for one in changes:
        scale = torch.ones(len(weight)) if one.scale is None else one.scale
        whole = scale.double()[:, None] * weight + one.left.double() @ one.right.double()
        weight = weight + one.strength * (whole - weight)
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output_dim", [-2, -1])
def test_a_fold_rounds_the_dense_change_once(output_dim: int, dtype: torch.dtype) -> None:
    changes = [change(700, 900), change(700, 900, 1, scaled=False)]  # of more rows than are widened at a time
    weight = torch.randn(700, 900, generator=torch.Generator().manual_seed(5)).to(dtype)
    stored = weight if output_dim == -2 else weight.T.contiguous()
    folded = fold_changes(stored, changes, output_dim)
    lowest, highest = folded_roundings(stored, changes, output_dim)
    expected = dense(weight, *changes)
    expected = (expected if output_dim == -2 else expected.T).to(dtype)
    assert folded.dtype == dtype
    assert bool(((lowest <= folded) & (folded <= highest)).all())
    assert bool(((lowest <= expected) & (expected <= highest)).all())
    assert float((lowest != highest).double().mean()) < 1e-3
    moved = folded.clone()
    moved[3, 4] = torch.nextafter(moved[3, 4].float(), torch.tensor(1e9)).to(dtype) if dtype == torch.float32 else 9
    assert not bool(((lowest <= moved) & (moved <= highest)).all()), "another number is not within them"


@pytest.mark.parametrize("bias", [True, False])
def test_what_a_linear_map_gives_is_changed_as_by_its_weight(bias: bool) -> None:
    linear, changes = nn.Linear(6, 5, bias=bias).double(), [change(5, 6), change(5, 6, 1, scaled=False)]
    rows = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        found = WeightHook(changes)(linear, (rows,), linear(rows))
        expected = rows @ dense(linear.weight, *changes).T + (linear.bias if bias else 0)
        torch.testing.assert_close(found, expected)
        half = linear.bfloat16()
        assert WeightHook(changes)(half, (rows.bfloat16(),), half(rows.bfloat16())).dtype == torch.bfloat16


def test_a_product_and_a_sum_are_those_of_the_matrices() -> None:
    weight = torch.randn(5, 6, dtype=torch.float64)
    a, b = change(5, 6), change(5, 6, 1, strength=-0.3)
    torch.testing.assert_close(WeightFactors.of([a, b]).apply(weight), dense(weight, a, b))
    total = sum_of_weight_changes([[a, b], [b]])
    expected = dense(weight, a, b) + dense(weight, b) - weight
    torch.testing.assert_close(dense(weight, total), expected, rtol=1e-5, atol=1e-5)
    assert total.left.shape[1] <= 5
    none = sum_of_weight_changes([[a], [replace(a, strength=-0.7)]])
    assert none.left.shape[1] == 1
    assert not none.left.any()
    assert none.scale is None


def test_weights_are_sorted_and_combined_by_name() -> None:
    head, plain = replace(change(5, 6), layer=None), change(5, 6)
    weights = ChangedWeights(
        {"lm_head": [head], "model.layers.1.b": [plain], "model.layers.0.c": [replace(plain, layer=0)]}
    )
    assert list(weights) == ["model.layers.0.c", "model.layers.1.b", "lm_head"]
    assert weights.decoder_layers == {0, 1}
    other = ChangedWeights({"lm_head": [head]})
    assert len(product_of_weights([weights, other])["lm_head"]) == 2
    assert len(sum_of_weights([weights, other])["lm_head"]) == 1
    wide = ChangedWeights({"lm_head": [replace(change(5, 7), layer=None)]})
    for combine in (product_of_weights, sum_of_weights):
        with pytest.raises(InputError, match="different shapes"):
            combine([weights, wide])


# Files

FIRST, SECOND = "model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.q_proj"


def described(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def attack(directory: Path) -> None:
        file = directory / "sea_edit.json"
        whole = json.loads(file.read_text())
        edit(whole["weight_changes"])
        file.write_text(json.dumps(whole))

    return attack


def number(name: str, value: object) -> Callable[[Path], None]:
    return described(lambda changes: changes[FIRST][0].update({name: value}))


def tensors(edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def attack(directory: Path) -> None:
        file = directory / "sea_edit.safetensors"
        held = load_file(file)
        edit(held)
        save_file({name: tensor.contiguous() for name, tensor in held.items()}, file)

    return attack


def tensor(name: str, edit: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    key = f"weight.{FIRST}.0.{name}"
    return tensors(lambda held: held.update({key: edit(held.get(key, torch.ones(24)))}))


@pytest.mark.parametrize(
    "attack",
    [
        described(lambda changes: changes.update({"..": changes.pop(FIRST)})),
        described(lambda changes: changes.update({"a\x1b[2J": changes.pop(FIRST)})),
        described(lambda changes: changes.update({FIRST: []})),
        described(lambda changes: changes.update({FIRST: 1})),
        described(lambda changes: changes.update({FIRST: [1]})),
        described(lambda changes: changes[FIRST][0].pop("layer") and None),
        number("more", 1),
        number("strength", "1"),
        number("strength", 10**400),
        number("strength", None),
        number("layer", -1),
        number("layer", True),
        number("layer", 1.5),
        number("relative_change", -1),
        described(lambda changes: changes[SECOND][0].update(layer=2)),
        tensors(lambda held: held.update({f"weight.{SECOND}.1.left": torch.ones(23, 3)})),
        tensor("left", lambda value: value[:, :2]),
        tensor("left", lambda value: value * float("nan")),
        tensor("left", Tensor.half),
        tensor("right", lambda value: value[0]),
        tensor("right", lambda value: torch.ones(3, 0)),
        tensors(
            lambda held: held.update(
                {f"weight.{FIRST}.0.left": torch.ones(2**40, 0), f"weight.{FIRST}.0.right": torch.ones(0, 2**40)}
            )
        ),
        tensor("scale", lambda value: torch.ones(25)),
        tensor("other", lambda value: value),
        tensors(lambda held: held.pop(f"weight.{FIRST}.0.left")),
        tensors(lambda held: held.update({f"weight.{SECOND}.1.right": torch.ones(3, 25)})),
    ],
)
def test_wrong_files_are_refused(attack: Callable[[Path], None], tmp_path: Path) -> None:
    weight_edit().save(tmp_path)
    attack(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        SpectralEdit.load(tmp_path)


def test_what_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    edit = SpectralEdit({}, weight_changes={FIRST: [replace(change(5, 6), relative_change=float("inf"))]})
    with pytest.raises(SeaExportError, match=FIRST):
        edit.save(tmp_path)
