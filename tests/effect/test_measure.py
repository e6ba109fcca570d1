"""What a run measures of its edit: damage within the budget, and the effect on held-out demonstrations."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.capture.opened_model import OpenedModel
from sea_export.cards.effect_text import effect_sentences
from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.hold_out import hold_out
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.effect_options import EffectOptions
from sea_export.effect.measure import measured_edit
from sea_export.errors import InputError
from sea_export.evaluation.damage import measure_damage, predict_texts
from sea_export.evaluation.divergence import DIVERGENCE, RepeatedDivergence, joined
from sea_export.evaluation.unrelated_text import UnrelatedText, unrelated_text
from sea_export.fitting.fit_base import fit_base
from sea_export.model.base import open_base
from sea_export.options import EditOptions, FitOptions
from tests.helpers.messages import naming

PROSE = [
    "A ship came into the harbour at dawn with a hold full of salt.",
    "The baker counted the loaves twice and then a third time.",
    "Nobody on the hill had seen the river so high in spring.",
]
SUBJECTS = ("sea", "bird", "poet", "play", "king", "fish")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def demonstrations(count: int) -> list[Demonstration]:
    draw = random.Random(0)
    return [
        Demonstration(
            f"Is the {draw.choice(SUBJECTS)} of number {index} wet?",
            f"Yes, the {draw.choice(SUBJECTS)} is.",
            f"No, the {draw.choice(SUBJECTS)} is not.",
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def prose_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prose") / "prose.txt"
    file.write_text("\n\n".join(PROSE), encoding="utf-8")
    return file


def measured(
    checkpoint: Path,
    scratch: Path,
    fit: FitOptions,
    effect: EffectOptions,
    *,
    layerwise: bool = False,
    count: int = 60,
) -> SpectralEdit:
    split = hold_out(demonstrations(count), effect.held_out_share, 0)
    with open_base(str(checkpoint)) as base:
        opened = OpenedModel(base, torch.float32, "cpu", None, layerwise, scratch=scratch)
        return measured_edit(fit_base(opened, split.fitted, fit), opened, split, effect)


def metric(edit: SpectralEdit, name: str) -> Any:
    return next(one for one in edit.provenance["effect"]["damage"]["figures"] if one["name"] == name)["value"][0]


FITS = {
    "spectral": FitOptions(layers="last:2"),
    "calibrated": FitOptions(layers="last:2", edit=EditOptions(normalization="calibrated")),
    "natural gradient": FitOptions(layers="last:2", method="natural-gradient"),
    "tanh": FitOptions(layers="last:2", feature_function="tanh"),
}


@pytest.mark.parametrize("name", FITS)
def test_the_strength_is_the_largest_within_the_budget(
    name: str,
    tiny_checkpoint: Path,
    prose_file: Path,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    effect = EffectOptions(max_kl=0.02, neutral_text=str(prose_file))
    edit = measured(tiny_checkpoint, tmp_path, FITS[name], effect)
    assert 0.017 <= metric(edit, DIVERGENCE) <= 0.02
    reference = predict_texts(llama, tokenizer, PROSE)
    with edit.apply(llama):
        found = measure_damage(llama, tokenizer, PROSE, reference)
    assert found.metric("KL on prose").value == pytest.approx(metric(edit, "KL on prose"), rel=1e-3)
    strength = edit.provenance["options"]["edit"]["strength"]
    assert all(layer.strength == strength for layers in edit.layers.values() for layer in layers)
    assert edit.provenance["effect"]["curve"][-1]["strength"] == strength


@pytest.mark.parametrize("name", ["spectral", "calibrated"])
def test_layer_by_layer_the_same_is_measured(
    name: str, tiny_checkpoint: Path, prose_file: Path, tmp_path: Path
) -> None:
    given = EffectOptions(strength=0.7, neutral_text=str(prose_file))
    whole, by_layer = (
        measured(tiny_checkpoint, tmp_path, FITS[name], given, layerwise=layerwise) for layerwise in (False, True)
    )
    assert metric(by_layer, "KL on prose") == pytest.approx(metric(whole, "KL on prose"), rel=1e-3)
    one, two = (edit.provenance["effect"]["held_out"]["figures"] for edit in (whole, by_layer))
    for figure, other in zip(one, two, strict=True):
        assert other["difference"] == pytest.approx(figure["difference"], abs=1e-4)
    searched = measured(
        tiny_checkpoint, tmp_path, FITS[name], EffectOptions(max_kl=0.02, neutral_text=str(prose_file)), layerwise=True
    )
    assert 0.017 <= metric(searched, DIVERGENCE) <= 0.02


def test_a_base_in_half_precision_is_measured_in_float32_and_left_as_it_was(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prose_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sea_export.model.compute_dtype.float32_is_faster", lambda dtype: False)
    base = tmp_path / "base"
    copy.deepcopy(llama).to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    seen: list[torch.dtype] = []
    split = hold_out(demonstrations(60), 0.2, 0)
    with open_base(str(base)) as opened_base:
        opened = OpenedModel(opened_base, None, "cpu", None, False, scratch=tmp_path)
        before = {name: tensor.clone() for name, tensor in opened.whole_model.state_dict().items()}
        fitted = fit_base(opened, split.fitted, FITS["spectral"])
        layer = opened.whole_model.get_submodule("model.layers.3")
        with layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].dtype)):
            measured_edit(fitted, opened, split, EffectOptions(strength=1, neutral_text=str(prose_file)))
        after = opened.whole_model.state_dict()
    assert set(seen) == {torch.float32}
    assert opened.whole_model.dtype == torch.bfloat16
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_given_strength_is_kept_and_measured(
    tiny_checkpoint: Path, prose_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    effect = EffectOptions(strength=0.5, max_kl=1e-9, neutral_text=str(prose_file))
    edit = measured(tiny_checkpoint, tmp_path, FITS["spectral"], effect)
    assert edit.provenance["options"]["edit"]["strength"] == 0.5
    assert metric(edit, DIVERGENCE) > 0
    assert edit.provenance["effect"]["neutral_text"] == "prose.txt", "no path is published"
    assert "above --max-kl 1e-09" in caplog.text
    assert "given, not searched" in effect_sentences(edit.provenance["effect"], 0.5)[1]


def test_too_few_demonstrations_are_said_to_be_too_few(tiny_checkpoint: Path, prose_file: Path, tmp_path: Path) -> None:
    effect = EffectOptions(strength=1, neutral_text=str(prose_file))
    edit = measured(tiny_checkpoint, tmp_path, FITS["spectral"], effect, count=20)
    assert edit.provenance["demonstrations"]["count"] == 20
    assert "not measured" in effect_sentences(edit.provenance["effect"], 1)[0]


def report(low: float, high: float) -> dict[str, Any]:
    shares = {"unit": "%", "base": [0.5, 0.4, 0.6], "difference": [0.1, 0.0, 0.2]}
    margin = {"name": "mean margin per token", "difference": [(low + high) / 2, low, high]}
    damage = [{"name": name, "value": [0.1, 0.05, 0.15]} for name in ("KL on prose", "top-1 agreement")]
    return {
        "held_out": {"rows": 40, "figures": [{"name": "positive preferred per token", **shares}, margin]},
        "kinds": ["number"],
        "damage": {"figures": damage},
        "max_kl": 0.1,
        "searched": True,
    }


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "Effect: "),
        (0.01, 0.03, "Small effect: "),
        (-0.1, 0.3, "No measurable effect: "),
        (-0.3, -0.1, "Harm: "),
    ],
)
def test_the_sentence_follows_the_interval(low: float, high: float, said: str) -> None:
    effect, damage = effect_sentences(report(low, high), 2.0)
    assert effect.startswith(said)
    assert "number" in effect
    assert "0.100 [0.050, 0.150] on prose" in damage


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_kl": 0.0}, "--max-kl"),
        ({"max_kl": float("nan")}, "--max-kl"),
        ({"strength": float("inf")}, "--strength"),
        ({"held_out": 1.0}, "--held-out"),
        ({"measure": False}, "--no-measure"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=naming(said)):
        EffectOptions(**values)


def test_a_sequential_fit_needs_its_strength() -> None:
    EffectOptions(strength=1).check(FitOptions(sequential=True))
    with pytest.raises(InputError, match="--sequential"):
        EffectOptions().check(FitOptions(sequential=True))


def test_a_run_says_what_its_edit_does_and_costs(tiny_checkpoint: Path, prose_file: Path, tmp_path: Path) -> None:
    output, demonstrations_file = tmp_path / "out", tmp_path / "rows.jsonl"
    rows = [json.dumps(asdict(one)) for one in demonstrations(40)]
    demonstrations_file.write_text("\n".join(rows), encoding="utf-8")
    given = ("--demonstrations", demonstrations_file, "--neutral-text", prose_file, "--layers", "last:2")
    result = run("fit-and-save", tiny_checkpoint, output, *given, "--held-out", "0.5", "--max-kl", "0.01")
    assert result.exit_code == 0, result.output
    card = (output / "README.md").read_text(encoding="utf-8")
    for text in (result.output, card):
        assert "held-out demonstrations" in text
        assert "the largest within a budget of 0.01" in text
    where = ("--base", tiny_checkpoint, "--demonstrations", demonstrations_file)
    again = run("reproduce", output, tmp_path / "again", *where)
    assert again.exit_code == 0, again.output
    assert "byte-identical" in again.output
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8").count("held-out") == card.count("held-out")


@pytest.mark.parametrize("prose_tokens", [8, 20, 10_000], ids=["little prose", "some prose", "all in the part"])
def test_a_search_measures_no_text_twice(
    prose_tokens: int, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, fit_tiny: Any
) -> None:
    """What a part gives and what the rest gives is together what all of it gives."""
    whole = unrelated_text(llama, tokenizer, PROSE, ["Who?", "Is the moon made of cheese?", "Why?"])
    part = UnrelatedText(whole.part(prose_tokens).prose, whole.answers[:2])
    rest = whole.without(part)
    assert sorted(map(repr, (*part.items, *rest.items))) == sorted(map(repr, whole.items))
    edit = fit_tiny(llama)
    first = min(target.layer for target in edit.targets)
    found = joined([RepeatedDivergence(llama, text, {first}).of(edit) for text in (part, rest)])
    expected = RepeatedDivergence(llama, whole, {first}).of(edit)
    assert found.largest.value == pytest.approx(expected.largest.value, rel=1e-4)
    assert found.agreement.value == pytest.approx(expected.agreement.value)
    for one, other in zip(found.metrics, expected.metrics, strict=True):
        assert (one.name, len(one.rows)) == (other.name, len(other.rows))
        assert one.value == pytest.approx(other.value, rel=1e-4)
