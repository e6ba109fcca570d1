"""A cache gives back the gradients that were collected, for exactly the same question."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sea_export
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but
from tests.helpers.random_demonstrations import assert_same_edit
from tests.helpers.tiny_models import layers_of, tiny_model

NATURAL = {"method": "natural-gradient", "layers": "1-3"}
GRADIENT = {"method": "gradient", "layers": "1-3"}
MAP = {"form": "low-rank", "rank": 3}


@pytest.fixture
def fit(llama, tokenizer, demonstrations, tmp_path) -> Callable[..., tuple[SpectralEdit, int]]:
    """Fits, and counts the times that the decoder runs."""

    def run(model=llama, demonstrations=demonstrations, cache=tmp_path / "cache", **options):
        passes: list[object] = []
        with model.base_model.register_forward_pre_hook(lambda module, inputs: passes.append(module)):
            edit = sea_export.fit(model, tokenizer, demonstrations, cache=cache, **options)
        return edit, len(passes)

    return run


@pytest.mark.parametrize(
    "options", slow_but([NATURAL, {**GRADIENT, **MAP}], [NATURAL, {**NATURAL, **MAP}, GRADIENT, {**GRADIENT, **MAP}])
)
def test_a_cached_fit_is_the_fit(fit, options) -> None:
    plain, plain_passes = fit(cache=None, **options)
    first, first_passes = fit(**options)
    again, again_passes = fit(**options)
    assert first_passes == plain_passes > 0
    assert again_passes == 0
    assert_same_edit(first, plain)
    assert_same_edit(again, plain)


@pytest.mark.parametrize(
    "changed",
    [
        {**NATURAL, "layers": "2", "damping": 3.0},
        {**NATURAL, "center": "linear", "strength": 0.5},
        {**NATURAL, **MAP, "rank": 5},
        {**NATURAL, "form": "linear", "batch_tokens": 500},
        {**GRADIENT, "form": "linear"},
        {**GRADIENT, "layers": "1,3", "center": "linear"},
    ],
    ids=str,
)
def test_other_settings_on_the_same_gradients_run_no_pass(fit, changed) -> None:
    """Those of the natural gradient's maps are all that gradient methods need."""
    fit(**NATURAL, **MAP)
    edit, passes = fit(**changed)
    assert passes == 0
    assert_same_edit(edit, fit(cache=None, **changed)[0])


@pytest.mark.parametrize(
    "changed",
    slow_but(
        [{**NATURAL, **MAP}, {**NATURAL, "layers": "0-3"}],
        [
            {**NATURAL, **MAP},
            {**NATURAL, "layers": "0-3"},
            {**NATURAL, "target": "both"},
            {**NATURAL, "template": "none"},
            {**NATURAL, "seed": 3},
        ],
    ),
    ids=str,
)
def test_other_gradients_are_collected(fit, changed) -> None:
    fit(**NATURAL)
    edit, passes = fit(**changed)
    assert passes > 0
    assert_same_edit(edit, fit(cache=None, **changed)[0])
    assert fit(**changed)[1] == 0


def test_the_neutral_text_is_all_that_other_demonstrations_share(fit, demonstrations) -> None:
    fit(**NATURAL)
    alone = fit(**GRADIENT, demonstrations=demonstrations[1:])[1]
    assert fit(**NATURAL, demonstrations=demonstrations[2:])[1] == alone > 0


def test_another_model_is_not_taken_for_the_same(fit) -> None:
    fit(**GRADIENT)
    other = copy.deepcopy(tiny_model("llama"))
    assert fit(**GRADIENT, model=other)[1] == 0
    with torch.no_grad():
        layers_of(other)[3].mlp.gate_proj.weight[0, 0] += 1e-3
    assert fit(**GRADIENT, model=other)[1] > 0


def test_progress_is_complete_whatever_is_cached(
    llama, tokenizer, demonstrations: tuple[Demonstration, ...], tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(*stage: Any) -> None:
        told.append(stage)

    for layers in ("1", "1", "1-2"):
        told.clear()
        options = {**GRADIENT, "layers": layers}
        sea_export.fit(llama, tokenizer, demonstrations, cache=tmp_path, progress=tell, **options)
        assert told[-1][1:] == (len(demonstrations), len(demonstrations))


def test_an_interrupted_fit_keeps_what_it_has_finished(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sea_export.fitting.gradient_cache.curvature_items", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(**NATURAL)
    assert fit(**GRADIENT)[1] == 0


# Damaged parts


WRONG_PARTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "another size": lambda part: part.update({"1.mlp gradient": torch.ones(23, dtype=torch.float64)}),
    "half precision": lambda part: part.update({"1.mlp sums": part["1.mlp sums"].half()}),
    "other folds": lambda part: part.update({"2.mlp counts": torch.ones(3, dtype=torch.float64)}),
    "no gradient": lambda part: part.pop("1.mlp gradient"),
    "a map": lambda part: part.update({"1.mlp map_gradient": torch.ones(24, 24, dtype=torch.float64)}),
    "no place": lambda part: part.update({"above.mlp gradient": torch.ones(24, dtype=torch.float64)}),
    "nothing": lambda part: part.clear(),
}


@pytest.fixture
def part(fit, tmp_path: Path) -> Path:
    fit(**GRADIENT)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    return file


@pytest.mark.parametrize("change", WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_a_part_of_other_tensors_is_named(change, fit, part: Path) -> None:
    tensors = dict(load_file(part))
    change(tensors)
    save_file(tensors, part)
    with pytest.raises(InputError, match=naming(part.name, "Remove it")):
        fit(**GRADIENT)


def test_a_part_that_is_cut_off_is_named(fit, part: Path) -> None:
    for length in (0, 20, part.stat().st_size - 8):
        os.truncate(part, length)
        with pytest.raises(InputError, match=naming(part.name, "Remove it")):
            fit(**GRADIENT)


def test_a_pipe_in_a_cache_is_named(fit, part: Path) -> None:
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(InputError, match=naming(part.name, "Remove it")):
        fit(**GRADIENT)


def test_a_cache_that_cannot_be_made_is_refused(fit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=naming("cache: ", tmp_path / "file")):
        fit(**GRADIENT, cache=tmp_path / "file")
