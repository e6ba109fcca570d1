"""Spectra equal their dense definition, whatever the number of demonstrations and the way they arrive."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sea_export.capture.activations import Activations
from sea_export.errors import InputError
from sea_export.fitting.spectrum import LayerSpectrum, SpectrumFitter, rank_for_variance, signature
from sea_export.options import CENTERS
from tests.helpers import reference
from tests.helpers.messages import naming
from tests.helpers.reference import cross_covariance, left_singular, random_activations

SIZE = 12
# Demonstrations for a hidden size of 12: the factors are decomposed below 12, moments from there on. Rows are
# added to the moments in several portions at 200.
COUNTS = {"n=2": 2, "n<d": 7, "n=d-1": 11, "n=d": 12, "n>d": 20, "n>>d": 200}


def kinds_of(activations: Activations) -> tuple[Tensor, Tensor, Tensor]:
    return activations.neutral, activations.positive, activations.negative


def batches_of(activations: Activations, size: int) -> list[Activations]:
    splits = [kind.split(size) for kind in kinds_of(activations)]
    return [Activations(*kinds) for kinds in zip(*splits, strict=True)]


def fit(activations: Activations, center: str = "off", batch: int = 7) -> LayerSpectrum:
    fitter = SpectrumFitter(center)
    for part in batches_of(activations, batch):
        fitter.update(part)
    return fitter.finish()


def projection(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_spectrum_is_that_of_the_dense_cross_covariance(count, center):
    activations = random_activations(count, SIZE)
    spectrum = fit(activations, center)
    for kind in ("positive", "negative"):
        vectors, values = getattr(spectrum, f"{kind}_vectors"), getattr(spectrum, f"{kind}_values")
        omega = cross_covariance(activations.neutral, getattr(activations, kind), centered=center != "off")
        expected_vectors, expected_values = left_singular(omega)
        assert values.shape == expected_values.shape
        torch.testing.assert_close(values, expected_values, rtol=1e-8, atol=1e-13)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(values), dtype=torch.float64))
        for rank in {1, 2, len(values) // 2, len(values)}:
            torch.testing.assert_close(
                projection(vectors[:, :rank]), projection(expected_vectors[:, :rank]), rtol=0, atol=1e-8
            )


def test_positive_and_negative_spectra_are_not_mixed_up():
    """Swapping the completions swaps the spectra; the two differ."""
    activations = random_activations(20, SIZE)
    one = fit(activations)
    other = fit(Activations(activations.neutral, activations.negative, activations.positive))
    torch.testing.assert_close(one.positive_values, other.negative_values)
    torch.testing.assert_close(one.negative_vectors, other.positive_vectors)
    assert not torch.allclose(one.positive_values, one.negative_values, rtol=0.01)


def test_singular_vectors_are_left_ones_in_the_space_of_the_neutral_activations():
    """Rotating the completions' space changes nothing; rotating the neutral one rotates the vectors."""
    activations = random_activations(20, SIZE)
    rotation = torch.linalg.qr(random_activations(SIZE, SIZE, seed=5).neutral).Q
    expected = projection(fit(activations).positive_vectors[:, :3])
    right = replace(activations, positive=activations.positive @ rotation)
    left = replace(activations, neutral=activations.neutral @ rotation)
    torch.testing.assert_close(projection(fit(right).positive_vectors[:, :3]), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        projection(fit(left).positive_vectors[:, :3]), rotation.T @ expected @ rotation, rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_streamed_equals_all_at_once(count, batch, center):
    activations = random_activations(count, SIZE)
    whole, streamed = fit(activations, center, batch=count), fit(activations, center, batch=batch)
    assert streamed.count == count
    torch.testing.assert_close(streamed.positive_values, whole.positive_values, rtol=1e-8, atol=1e-13)
    for rank in (1, 4, len(whole.negative_values)):
        torch.testing.assert_close(
            projection(streamed.negative_vectors[:, :rank]),
            projection(whole.negative_vectors[:, :rank]),
            rtol=0,
            atol=1e-8,
        )
    torch.testing.assert_close(streamed.neutral_mean, whole.neutral_mean)
    if center == "linear":
        torch.testing.assert_close(streamed.reader, whole.reader, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("center", ["off", "affine"])
@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_order_of_the_demonstrations_does_not_matter(count, center):
    activations = random_activations(count, SIZE)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    shuffled = fit(Activations(*(kind[order] for kind in kinds_of(activations))), center)
    expected = fit(activations, center)
    torch.testing.assert_close(
        projection(shuffled.positive_vectors), projection(expected.positive_vectors), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_centring_survives_a_mean_far_larger_than_the_spread(count):
    """Float64 moments about zero would leave only some four digits of the covariance here."""
    activations = random_activations(count, SIZE, decay=0.9)
    moved = Activations(*(kind + 1e6 for kind in kinds_of(activations)))
    values, expected = fit(moved, "affine").positive_values[:5], fit(activations, "affine").positive_values[:5]
    torch.testing.assert_close(values, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_uncentred_and_centred_spectra_differ(count):
    """Negative control: the means of the activations are what an uncentred spectrum sees first."""
    activations = random_activations(count, SIZE)
    uncentred, centred = fit(activations, "off"), fit(activations, "affine")
    overlap = projection(uncentred.positive_vectors[:, :1]) @ projection(centred.positive_vectors[:, :1])
    assert overlap.norm() < 0.9


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_neutral_factor_and_mean_describe_the_neutral_activations(count, center):
    activations = random_activations(count, SIZE)
    spectrum = fit(activations, center)
    rows = activations.neutral if center == "off" else activations.neutral - activations.neutral.mean(0)
    assert spectrum.neutral_factor.shape[0] <= max(count, SIZE)
    torch.testing.assert_close(spectrum.neutral_factor.T @ spectrum.neutral_factor, rows.T @ rows)
    torch.testing.assert_close(spectrum.neutral_mean, activations.neutral.mean(0))
    assert (spectrum.count, spectrum.center) == (count, center)


# Cost


class _LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("center", CENTERS)
def test_no_hidden_size_squared_matrix_while_demonstrations_are_few(center):
    activations = random_activations(4, 200)
    with _LargestTensor() as few:
        fit(activations, center)
    assert few.elements < 200 * 200
    with _LargestTensor() as many:  # the measure does see such a matrix
        fit(random_activations(200, 200), center)
    assert many.elements >= 200 * 200


@pytest.mark.parametrize("center", CENTERS)
def test_memory_does_not_grow_with_the_number_of_demonstrations(center):
    activations = random_activations(2000, SIZE, dtype=torch.float32)
    fitter, sizes = SpectrumFitter(center), []
    for part in batches_of(activations, 10):
        fitter.update(part)
        sizes.append(len(pickle.dumps(fitter)))
    assert max(sizes[len(sizes) // 2 :]) <= max(sizes[: len(sizes) // 2])


# Degenerate activations


def repeated(count: int, times: int) -> Activations:
    activations = random_activations(count, SIZE)
    return Activations(*(kind.repeat(times, 1) for kind in kinds_of(activations)))


@pytest.mark.parametrize(("count", "times"), [(3, 2), (3, 50)], ids=["rows kept", "moments"])
@pytest.mark.parametrize("center", ["off", "affine"])
def test_duplicated_demonstrations_have_the_spectrum_of_single_ones(count, times, center):
    single, duplicated = fit(repeated(count, 1), center), fit(repeated(count, times), center)
    assert len(duplicated.positive_values) == len(single.positive_values) == (3 if center == "off" else 2)
    torch.testing.assert_close(duplicated.positive_values, single.positive_values)
    torch.testing.assert_close(
        projection(duplicated.positive_vectors), projection(single.positive_vectors), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("count", [5, 60], ids=["rows kept", "moments"])
def test_equal_rows_have_one_direction_uncentred_and_none_centred(count):
    row = random_activations(1, SIZE, dtype=torch.float32)
    activations = Activations(*(kind.repeat(count, 1) for kind in kinds_of(row)))
    uncentred, centred = fit(activations, "off"), fit(activations, "affine")
    assert uncentred.positive_values.shape == (1,)
    direction = row.neutral[0].double() / row.neutral[0].double().norm()
    torch.testing.assert_close(projection(uncentred.positive_vectors), torch.outer(direction, direction))
    assert centred.positive_values.shape == centred.negative_values.shape == (0,)
    assert centred.positive_vectors.shape == (SIZE, 0)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [5, 60], ids=["rows kept", "moments"])
def test_zero_activations_have_an_empty_spectrum(count, center):
    spectrum = fit(Activations(*torch.zeros(3, count, SIZE)), center)
    assert spectrum.positive_values.numel() == spectrum.negative_values.numel() == 0
    assert spectrum.signature == 0
    for item in fields(spectrum):
        value = getattr(spectrum, item.name)
        assert not isinstance(value, Tensor) or torch.isfinite(value).all()


@pytest.mark.parametrize("center", ["off", "affine"])
@pytest.mark.parametrize("count", [5, 60], ids=["rows kept", "moments"])
def test_a_feature_that_is_always_zero_is_in_no_direction(count, center):
    activations = random_activations(count, SIZE)
    activations.neutral[:, 3] = 0
    spectrum = fit(activations, center)
    assert spectrum.positive_vectors[3].abs().max() < 1e-12
    assert spectrum.neutral_factor[:, 3].norm() < 1e-7 * spectrum.neutral_factor.norm()


# Truncation


@pytest.mark.parametrize("variance", [1e-9, 0.1, 0.5, 0.9, 0.99, 0.999999, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_rank_for_variance_is_the_smallest_that_explains_enough(variance, seed):
    values = random_activations(1, 30, seed=seed).neutral[0].abs().sort(descending=True).values
    assert rank_for_variance(values, variance) == reference.rank_for_variance(values, variance)


def test_rank_for_variance_reaches_shares_that_are_exact():
    """σ² of 4, 1, 1, 2/3 and so on would round either way; these shares are sixths, and met exactly."""
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    shares = {3 / 6: 1, 4 / 6: 1, 4.001 / 6: 2, 5 / 6: 2, 5.001 / 6: 3, 1.0: 3}
    assert {share: rank_for_variance(values, share) for share in shares} == shares


def test_all_variance_is_the_full_rank_however_small_the_last_values():
    values = torch.tensor([1.0, 1e-5, 1e-9, 1e-12], dtype=torch.float64)
    assert rank_for_variance(values, 1.0) == 4
    assert rank_for_variance(torch.tensor([1.0, 1e-9, 0.0]), 1.0) == 2


@pytest.mark.parametrize("values", [[], [0.0, 0.0]], ids=["empty", "zeros"])
def test_an_empty_spectrum_has_rank_zero(values):
    assert rank_for_variance(torch.tensor(values), 0.9) == 0
    assert rank_for_variance(torch.tensor(values), 1.0) == 0


# Signature


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_signature_is_that_of_stacked_activations_and_one_hot_labels(count, center):
    activations = random_activations(count, SIZE)
    stacked = torch.cat([activations.positive, activations.negative])
    labels = torch.eye(2, dtype=torch.float64).repeat_interleave(count, dim=0)
    expected = torch.linalg.svdvals(stacked.T @ labels / count).sum()
    assert fit(activations, center).signature == pytest.approx(float(expected), rel=1e-10)
    means = activations.positive.mean(0), activations.negative.mean(0)
    assert signature(*means) == pytest.approx(float(expected), rel=1e-10)


# The constant reader of `linear` centring

READER_COUNTS = {"3n<d": 3, "n<d<3n": 7, "fewer than folds": 2, "moments": 150}


@pytest.mark.parametrize("count", READER_COUNTS.values(), ids=READER_COUNTS)
def test_reader_is_the_ridge_solution_at_the_cross_validated_penalty(count):
    activations = random_activations(count, SIZE)
    spectrum = fit(activations, "linear")
    expected, error = reference.constant_reader(activations)
    torch.testing.assert_close(spectrum.reader, expected, rtol=1e-5, atol=1e-7)
    assert spectrum.reader_error == pytest.approx(error, rel=1e-5)


def test_reader_reads_a_constant_from_activations_with_a_common_mean():
    activations = random_activations(150, SIZE)
    spectrum = fit(Activations(activations.neutral, activations.neutral, activations.neutral), "linear")
    read = activations.neutral @ spectrum.reader
    assert (read - 1).square().mean().sqrt() < 0.1
    assert spectrum.reader_error < 0.1
    assert (read - 1).square().mean().sqrt() <= spectrum.reader_error  # held out: not easier than what was fitted


def test_reader_error_says_that_activations_around_zero_hold_no_constant():
    activations = random_activations(150, SIZE)
    around_zero = Activations(*(kind - kind.mean(0) for kind in kinds_of(activations)))
    assert fit(around_zero, "linear").reader_error > 0.9


@pytest.mark.parametrize("center", ["off", "affine"])
def test_only_linear_centring_has_a_reader(center):
    spectrum = fit(random_activations(7, SIZE), center)
    assert spectrum.reader is None
    assert spectrum.reader_error is None


@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_affine_and_linear_centring_share_their_spectrum(count):
    activations = random_activations(count, SIZE)
    affine, linear = fit(activations, "affine"), fit(activations, "linear")
    torch.testing.assert_close(affine.positive_vectors, linear.positive_vectors, rtol=0, atol=1e-8)
    torch.testing.assert_close(affine.negative_values, linear.negative_values, rtol=1e-10, atol=1e-14)


# Signs, dtypes, errors


@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_signs_are_canonical(count):
    """The entry of largest magnitude is positive, so that a fit gives the same bytes with any solver."""
    activations = random_activations(count, SIZE)
    vectors = fit(activations).positive_vectors
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()
    negated = fit(replace(activations, neutral=-activations.neutral)).positive_vectors
    torch.testing.assert_close(negated, vectors, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [7, 150], ids=["rows kept", "moments"])
def test_narrow_activations_are_widened_before_any_arithmetic(count, dtype):
    narrow = random_activations(count, SIZE, dtype=dtype)
    wide = Activations(*(kind.double() for kind in kinds_of(narrow)))
    spectrum, expected = fit(narrow, "linear"), fit(wide, "linear")
    for item in fields(spectrum):
        value = getattr(spectrum, item.name)
        if isinstance(value, Tensor):
            assert value.dtype == torch.float64
    torch.testing.assert_close(spectrum.positive_values, expected.positive_values, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(spectrum.neutral_mean, expected.neutral_mean, rtol=1e-12, atol=1e-14)


def test_activations_are_left_as_they_were():
    activations = random_activations(40, SIZE)
    before = [kind.clone() for kind in kinds_of(activations)]
    fit(activations, "linear")
    assert all(torch.equal(kind, copy) for kind, copy in zip(kinds_of(activations), before, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["neutral", "positive", "negative"])
def test_activations_that_are_not_finite_are_refused(kind, value):
    activations = random_activations(4, SIZE)
    getattr(activations, kind)[2, 5] = value
    with pytest.raises(InputError, match="activation"):
        SpectrumFitter().update(activations)


def test_kinds_of_different_shapes_are_refused():
    activations = random_activations(4, SIZE)
    with pytest.raises(InputError, match=naming((4, SIZE), (3, SIZE))):
        SpectrumFitter().update(replace(activations, negative=activations.negative[:3]))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_demonstrations_are_refused(count):
    fitter = SpectrumFitter()
    if count:
        fitter.update(random_activations(count, SIZE))
    with pytest.raises(InputError, match=naming(count, 2)):
        fitter.finish()


def test_an_unknown_centring_is_refused():
    with pytest.raises(InputError, match=naming("'middle'", "off, affine, linear")):
        SpectrumFitter("middle")
