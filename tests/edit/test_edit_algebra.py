"""Edits are a vector space of changes, and have a matrix: against dense linear algebra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sea_export
from sea_export.edit.layer_algebra import kept_of_each
from sea_export.edit.spectral_edit import SpectralEdit, combined
from sea_export.errors import InputError
from sea_export.model.targets import EMBEDDING, Target
from tests.helpers.messages import naming
from tests.helpers.reference import random_activations
from tests.helpers.tiny_edits import MLP_TARGETS, SIZE, constant_edit, some_edit, spectral_edit

MLP = Target(1, "mlp")


def vector(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def plain(seed: int, center: str = "off") -> SpectralEdit:
    return SpectralEdit({MLP: (some_edit(seed, center=center, normalization="none"),)})


def map_of(edit: SpectralEdit, target: Target = MLP) -> tuple[Tensor, Tensor]:
    """M and t of the edit of a target, read off what it does to unit vectors."""

    def apply(rows: Tensor) -> Tensor:
        for one in edit.layers[target]:
            rows = one.apply(rows)
        return rows

    zero = apply(torch.zeros(1, SIZE, dtype=torch.float64))[0]
    return (apply(torch.eye(SIZE, dtype=torch.float64)) - zero).T, zero


@pytest.mark.parametrize("center", ["off", "affine", "linear"])
@pytest.mark.parametrize("normalization", ["none", "calibrated", "average"])
def test_the_matrix_is_what_the_edit_does(center: str, normalization: str) -> None:
    edit = SpectralEdit({MLP: (some_edit(center=center, normalization=normalization), some_edit(1))})
    expected, constant = map_of(edit)
    assert edit.layers[1].matrix().dtype == torch.float64
    torch.testing.assert_close(edit.layers[1].matrix(), expected)
    torch.testing.assert_close(edit.layers[MLP].constant(), constant)


@pytest.mark.parametrize("center", ["off", "affine", "linear"])
def test_a_sum_adds_changes_and_constants(center: str) -> None:
    a, b = plain(0, center), plain(1, center)
    (first, one), (second, other) = map_of(a), map_of(b)
    matrix, constant = map_of(a + b)
    torch.testing.assert_close(matrix, first + second - torch.eye(SIZE), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(constant, one + other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(map_of(b + a), (matrix, constant), atol=1e-5, rtol=1e-5)
    product, _ = map_of(sea_export.compose([a, b]))
    assert (product - matrix).norm() > 0.01 * matrix.norm(), "a product is something else"


def test_a_sum_with_feature_scales_is_exact_too() -> None:
    a, b = SpectralEdit({MLP: (some_edit(0),)}), plain(1)
    expected = map_of(a)[0] + map_of(b)[0] - torch.eye(SIZE)
    torch.testing.assert_close(map_of(a + b)[0], expected, atol=1e-5, rtol=1e-5)


def test_an_edit_without_itself_is_none() -> None:
    a = plain(0, "affine")
    matrix, constant = map_of(a - a)
    assert torch.equal(matrix, torch.eye(SIZE, dtype=torch.float64))
    assert not constant.any()


def test_to_take_a_change_off_is_not_to_invert() -> None:
    a = plain(0)
    matrix, identity = map_of(a)[0], torch.eye(SIZE)
    torch.testing.assert_close(map_of(-a)[0], 2 * identity - matrix, atol=1e-5, rtol=1e-5)
    assert (map_of(sea_export.compose([a, -a]))[0] - identity).norm() > 0.1
    torch.testing.assert_close(map_of(a + -a)[0], identity.double(), atol=1e-6, rtol=0)


def test_sums_scale_as_vectors_do() -> None:
    a, b = plain(0, "affine"), plain(1, "affine")
    for left, right in (((a + b) * 0.5, a * 0.5 + b * 0.5), (a + a, a * 2.0), ((a + b) * 3.0 - b, a * 3.0 + b * 2.0)):
        torch.testing.assert_close(map_of(left), map_of(right), atol=1e-4, rtol=1e-4)


def test_a_sum_is_of_all_targets_and_can_be_saved(tmp_path: Path) -> None:
    a, b = spectral_edit([Target(0, "mlp"), MLP]), spectral_edit([MLP, Target(2, "attention")])
    total = a + b
    assert total.targets == (Target(0, "mlp"), MLP, Target(2, "attention"))
    total.save(tmp_path)
    again = sea_export.load_edit(tmp_path)
    for target in total.targets:
        assert torch.equal(again.layers[target].matrix(), total.layers[target].matrix())
    torch.testing.assert_close(map_of(total, Target(0, "mlp")), map_of(a, Target(0, "mlp")), atol=1e-5, rtol=1e-5)


def test_a_sum_of_what_is_not_linear_is_refused() -> None:
    with pytest.raises(InputError, match=naming("normalization", "token")):
        plain(0) + SpectralEdit({MLP: (some_edit(normalization="token"),)})


def test_a_sum_of_edits_of_other_models_is_refused() -> None:
    with pytest.raises(InputError, match=naming(8, SIZE)):
        plain(0) + spectral_edit([MLP], size=8)


def test_only_some_layers() -> None:
    edit = spectral_edit([Target(0, "mlp"), Target(1, "attention"), Target(1, "mlp"), Target(3, "mlp")])
    assert edit.only([1, 2]).targets == (Target(1, "attention"), Target(1, "mlp"))
    assert edit.without([1]).targets == (Target(0, "mlp"), Target(3, "mlp"))
    with pytest.raises(InputError, match=naming("3.mlp")):
        edit.only([2])
    with pytest.raises(InputError, match=naming("3.mlp")):
        edit.without(range(4))


def test_the_embedding_is_no_layer() -> None:
    edit = SpectralEdit({EMBEDDING: (some_edit(),), Target(0, "mlp"): (some_edit(1),)})
    assert edit.only([0]).targets == (Target(0, "mlp"),)
    assert edit.without([0]).targets == (EMBEDDING,)
    assert edit.layers[0] is edit.layers[Target(0, "mlp")]


def test_a_number_stands_for_a_layer_with_one_target() -> None:
    edit = spectral_edit([Target(1, "attention"), Target(1, "mlp"), Target(3, "mlp")])
    assert edit.layers[3] is edit.layers[Target(3, "mlp")]
    with pytest.raises(InputError, match=naming("layer 1", "attention", "mlp")):
        edit.layers[1]
    assert 2 not in edit.layers


@pytest.mark.parametrize("kind", ["add", "ablate", "project", "keep"])
def test_vectors_mean_what_the_table_says(kind: str) -> None:
    rows = random_activations(5, SIZE).neutral.double()
    v, c = vector().double(), 0.7
    edit = SpectralEdit.from_vectors({1: v}, kind, coefficient=c, target="both")
    assert edit.targets == (Target(1, "attention"), Target(1, "mlp"))
    along = torch.outer(rows @ v, v) / (v @ v)
    expected = {"add": rows + c * v, "keep": (1 - c) * rows + c * along}.get(kind, rows - c * along)
    (layer,) = edit.layers[MLP]
    torch.testing.assert_close(layer.apply(rows), expected, atol=1e-5, rtol=1e-5)
    half = edit.with_strength(c / 2).layers[MLP][0]
    torch.testing.assert_close(half.apply(rows), (rows + expected) / 2, atol=1e-5, rtol=1e-5)


def test_directions_that_depend_on_each_other_span_less() -> None:
    v, w = vector(0), vector(1)
    edit = SpectralEdit.from_vectors({0: torch.stack([v, w, 3 * v - w])}, "project")
    assert edit.layers[0][0].negative.shape == (SIZE, 2)
    assert (edit.layers[0].matrix() @ (2 * v - w).double()).norm() < 1e-5


@pytest.mark.parametrize(
    ("vectors", "options", "fact"),
    [
        (torch.zeros(SIZE), {}, "zero"),
        (torch.full((SIZE,), torch.nan), {}, "finite"),
        (torch.ones(2, SIZE), {}, "add"),
        (torch.ones(SIZE), {"kind": "sub"}, "sub"),
        (torch.ones(SIZE), {"coefficient": 0}, "coefficient"),
        (torch.full((SIZE,), 1e30), {"coefficient": 1e30}, "float32"),
        (torch.ones(SIZE), {"target": "embedding"}, "embedding"),
    ],
)
def test_vectors_that_make_no_edit_are_refused(vectors: Tensor, options: dict[str, object], fact: str) -> None:
    with pytest.raises(InputError, match=naming(fact)):
        SpectralEdit.from_vectors({0: vectors}, **options)


# What a product keeps


def test_of_a_product_it_is_told_what_each_edit_leaves() -> None:
    v, w = torch.eye(SIZE)[:2]
    added = SpectralEdit.from_vectors({1: v + w}).layers[1]
    erased = SpectralEdit.from_vectors({1: v}, "project").layers[1]
    other = SpectralEdit.from_vectors({1: w}, "project").layers[1]
    assert kept_of_each([*added, *erased]) == pytest.approx((0.5, 1.0)), "half of the square of v + w is along v"
    assert kept_of_each([*erased, *added]) == pytest.approx((1.0, 1.0))
    assert kept_of_each([*erased, *other]) == pytest.approx((1.0, 1.0))
    assert kept_of_each([*added, *added]) == pytest.approx((2.0, 2.0))
    opposite = SpectralEdit.from_vectors({1: v + w}, coefficient=-1.0).layers[1]
    assert kept_of_each([*added, *opposite]) == pytest.approx((0.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("normalization", ["none", "calibrated"])
def test_what_is_kept_is_the_projection_of_the_dense_change(normalization: str) -> None:
    edits = [some_edit(seed, center="affine", normalization=normalization) for seed in range(3)]

    def change(some: list) -> Tensor:
        matrix, constant = map_of(SpectralEdit({MLP: tuple(some)}))
        return torch.cat([matrix - torch.eye(SIZE), constant[:, None]], dim=1)

    product = change(edits)
    expected = [float((product * change([edit])).sum() / change([edit]).square().sum()) for edit in edits]
    assert kept_of_each(edits) == pytest.approx(expected, rel=1e-4)


# Records


def test_a_combined_edit_is_made_again_from_its_members() -> None:
    def member(name: str, seed: int) -> SpectralEdit:
        record = {"options": {"edit": {"strength": 1.0}}, "name": name, "effect": {"measured": True}}
        layers = {target: (some_edit(seed, normalization="none"),) for target in MLP_TARGETS}
        return SpectralEdit(layers, record)

    a, b, c = (member(name, seed) for seed, name in enumerate("abc"))
    whole = sea_export.compose([(a + b * 0.5) * 2.0, c]).only([1])

    def leaves(record: dict) -> list[dict]:
        return [leaf for one in record["composed"] for leaf in leaves(one)] if "composed" in record else [record]

    found = leaves(whole.provenance)
    assert [(leaf["name"], leaf["options"]["edit"]["strength"]) for leaf in found] == [("a", 1), ("b", 0.5), ("c", 1)]
    assert "effect" not in found[1], "what was measured at another strength does not hold"
    again = combined(whole.provenance, iter([a, b * 0.5, c]))
    assert again.targets == whole.targets == (MLP,)
    torch.testing.assert_close(map_of(again), map_of(whole), atol=1e-6, rtol=1e-6)


def test_constants_alone_have_one_product_and_sum() -> None:
    a = constant_edit([MLP])
    b = SpectralEdit.from_vectors({1: vector(3)})
    torch.testing.assert_close(map_of(a + b), map_of(sea_export.compose([a, b])), atol=1e-6, rtol=1e-6)
