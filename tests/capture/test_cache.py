"""A cache gives back what was captured, for exactly the same question, whatever interrupts or accompanies it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sea_export
import sea_export.fitting.collect
from sea_export.capture.activations import Activations
from sea_export.capture.cache import ActivationCache
from sea_export.capture.cache_folder import cached_bytes
from sea_export.capture.progress_callback import ProgressCallback
from sea_export.errors import InputError
from sea_export.model.targets import Target
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but
from tests.helpers.random_demonstrations import assert_same_edit
from tests.helpers.tiny_models import layers_of, tiny_model

OPTIONS = {"positive_rank": 2, "negative_rank": 2, "batch_tokens": 50}


class Passes:
    """Counts the times that the decoder runs."""

    def __init__(self, model) -> None:
        self.count = 0
        self._handle = model.base_model.register_forward_pre_hook(self._note)

    def _note(self, *_: object) -> None:
        self.count += 1

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.fixture
def fit(llama, tokenizer, demonstrations, tmp_path):
    def run(model=llama, demonstrations=demonstrations, cache=tmp_path / "cache", **options):
        options = {"layers": "1-3", **OPTIONS, **options}
        with Passes(model) as passes:
            edit = sea_export.fit(model, tokenizer, demonstrations, cache=cache, **options)
        return edit, passes.count

    return run


@pytest.mark.parametrize("center", ["off", "affine", "linear"])
def test_a_cached_fit_is_the_fit(fit, center):
    plain, plain_passes = fit(cache=None, center=center)
    first, first_passes = fit(center=center)
    again, again_passes = fit(center=center)
    assert first_passes == plain_passes > 0
    assert again_passes == 0
    assert_same_edit(first, plain)
    assert_same_edit(again, plain)


@pytest.mark.parametrize(
    "changed",
    [
        {"positive_rank": 4},
        {"strength": 0.5},
        {"normalization": "calibrated"},
        {"center": "affine"},
        {"projections": "negative"},
        {"layers": "2"},
        {"layers": "1,3"},
        {"batch_tokens": 1000},
        {"seed": 5},
    ],
    ids=str,
)
def test_other_settings_on_the_same_activations_run_no_pass(fit, changed):
    fit()
    edit, passes = fit(**changed)
    assert passes == 0
    assert_same_edit(edit, fit(cache=None, **changed)[0])


@pytest.mark.parametrize(
    "changed",
    slow_but(
        [{"layers": "0-3"}],
        [
            {"layers": "0-3"},
            {"target": "both"},
            {"site": "residual"},
            {"position": "mean"},
            {"position": "random"},
            {"template": "none"},
            {"neutral": "generated", "neutral_tokens": 3},
        ],
    ),
    ids=str,
)
def test_other_activations_are_captured(fit, changed):
    fit()
    edit, passes = fit(**changed)
    assert passes > 0
    assert_same_edit(edit, fit(cache=None, **changed)[0])
    assert fit(**changed)[1] == 0


def test_another_model_and_other_demonstrations_are_not_taken_for_the_same(fit, demonstrations):
    fit()
    other = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        layers_of(other)[3].mlp.gate_proj.weight[0, 0] += 1e-3
    assert fit(model=other)[1] > 0
    assert fit(model=copy.deepcopy(tiny_model("llama")).bfloat16())[1] > 0
    assert fit(demonstrations=demonstrations[1:])[1] > 0
    assert fit(demonstrations=demonstrations[::-1])[1] > 0
    assert fit(model=copy.deepcopy(tiny_model("llama")))[1] == 0


def test_only_what_is_missing_is_captured(fit):
    """Of another layer all demonstrations, but not the layers that are there."""
    fit(layers="3")
    before = {file.name for file in Path.rglob(cache_of(fit), "*.safetensors")}
    fit(layers="1,3")
    cache = cache_of(fit)
    new = [file for file in cache.rglob("*.safetensors") if file.name not in before]
    assert new
    from safetensors import safe_open

    for file in new:
        with safe_open(file, framework="pt") as part:
            assert set(part.keys()) == {"demonstrations", "1.mlp"}


def cache_of(fit) -> Path:
    return fit.__defaults__[2]


def test_an_interrupted_capture_goes_on_where_it_stopped(fit, monkeypatch):
    plain, all_passes = fit(cache=None)
    add = ActivationCache.add
    added: list[int] = []

    def interrupted(self, indices, activations) -> None:
        if added:
            raise KeyboardInterrupt
        added.extend(indices)
        add(self, indices, activations)

    monkeypatch.setattr(ActivationCache, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit()
    monkeypatch.undo()
    edit, passes = fit()
    assert 0 < passes < all_passes
    assert_same_edit(edit, plain)


def test_a_fit_layer_by_layer_can_use_a_cache(tiny_checkpoint_of, llama, tokenizer, demonstrations, tmp_path):
    options = {"layers": "1-3", **OPTIONS}
    with sea_export.open_layerwise(tiny_checkpoint_of("llama")) as source:
        first = sea_export.fit(source, tokenizer, demonstrations, cache=tmp_path, **options)
        with Passes(source.model) as passes:
            again = sea_export.fit(source, tokenizer, demonstrations, cache=tmp_path, **options)
    assert passes.count == 0
    plain = sea_export.fit(llama, tokenizer, demonstrations, **options)
    assert_same_edit(first, plain)
    assert_same_edit(again, plain)


def collected(told: list[tuple[str, int, int]]) -> ProgressCallback:
    return lambda *step: told.append(step)


def test_progress_is_complete_whatever_is_cached(llama, tokenizer, demonstrations, tmp_path):
    for _ in range(2):
        told: list[tuple[str, int, int]] = []
        sea_export.fit(
            llama,
            tokenizer,
            demonstrations,
            layers="1",
            cache=tmp_path,
            batch_tokens=50,
            progress=collected(told),
        )
        assert told[-1][1:] == (len(demonstrations), len(demonstrations))


def test_a_sequential_fit_does_not_read_a_cache(fit):
    with pytest.raises(InputError, match=naming("cache: ")):
        fit(sequential=True)


# The files


def some_activations(count: int, seed: int) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    return Activations(*torch.randn(3, count, 4, generator=generator))


def test_two_runs_may_share_a_cache(tmp_path):
    key, target = {"model": "a"}, Target(0, "mlp")
    one, other = ActivationCache(tmp_path, key, 4), ActivationCache(tmp_path, key, 4)
    activations = some_activations(4, seed=0)
    first, second = (Activations(*(kind[rows] for kind in kinds_of(activations))) for rows in ([2, 0], [1, 3]))
    one.add([2, 0], {target: first})
    other.add([2, 0], {target: first})
    other.add([1, 3], {target: second})
    fresh = ActivationCache(tmp_path, key, 4)
    assert one.missing([target], range(4)) == ([target], [1, 3])
    assert fresh.missing([target], range(4)) == ([], [])
    for mine, theirs in zip(kinds_of(fresh.read(target, [3, 0, 1])), kinds_of(activations), strict=True):
        assert torch.equal(mine, theirs[[3, 0, 1]])
    assert json.loads((fresh.folder / "key.json").read_text()) == key
    assert cached_bytes(tmp_path) > 3 * 4 * 4 * 4
    assert not [file for file in fresh.folder.iterdir() if file.name.startswith(".")]


def kinds_of(activations: Activations) -> tuple[torch.Tensor, ...]:
    return activations.neutral, activations.positive, activations.negative


def test_another_key_is_another_folder(tmp_path):
    assert ActivationCache(tmp_path, {"a": 1}, 4).folder != ActivationCache(tmp_path, {"a": 2}, 4).folder


def test_a_damaged_part_is_named(tmp_path):
    cache = ActivationCache(tmp_path, {}, 4)
    cache.add([0], {Target(0, "mlp"): some_activations(1, seed=0)})
    (part,) = cache.folder.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:20])
    with pytest.raises(InputError, match=naming(part.name)):
        ActivationCache(tmp_path, {}, 4)


WRONG_PARTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "two dimensions": lambda part: part.update({"0.mlp": torch.ones(3, 4)}),
    "whole numbers": lambda part: part.update({"0.mlp": torch.zeros(3, 1, 4, dtype=torch.int64)}),
    "half precision": lambda part: part.update({"0.mlp": torch.zeros(3, 1, 4, dtype=torch.float16)}),
    "other features": lambda part: part.update({"0.mlp": torch.ones(3, 1, 5)}),
    "other rows": lambda part: part.update({"0.mlp": torch.ones(3, 2, 4)}),
    "two kinds": lambda part: part.update({"0.mlp": torch.ones(2, 1, 4)}),
    "no place": lambda part: part.update({"above.mlp": torch.ones(3, 1, 4)}),
    "no activations": lambda part: part.pop("0.mlp"),
    "no rows": lambda part: part.pop("demonstrations"),
    "one row number": lambda part: part.update(demonstrations=torch.tensor(0)),
    "a negative row number": lambda part: part.update(demonstrations=torch.tensor([-1])),
    "a broken row number": lambda part: part.update(demonstrations=torch.tensor([0.5])),
}


@pytest.mark.parametrize("change", WRONG_PARTS.values(), ids=WRONG_PARTS.keys())
def test_a_part_of_other_tensors_is_named(change: Callable[[dict[str, torch.Tensor]], object], tmp_path) -> None:
    cache = ActivationCache(tmp_path, {}, 4)
    cache.add([0], {Target(0, "mlp"): some_activations(1, seed=0)})
    (part,) = cache.folder.glob("*.safetensors")
    tensors = dict(load_file(part))
    change(tensors)
    save_file(tensors, part)
    with pytest.raises(InputError, match=naming(part.name)):
        ActivationCache(tmp_path, {}, 4)


def test_a_pipe_in_a_cache_is_named(tmp_path) -> None:
    cache = ActivationCache(tmp_path, {}, 4)
    os.mkfifo(cache.folder / "part.safetensors")
    with pytest.raises(InputError, match=naming("part.safetensors")):
        ActivationCache(tmp_path, {}, 4)


def test_a_cache_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=naming("--cache", tmp_path / "file")):
        ActivationCache(tmp_path / "file", {}, 4)
