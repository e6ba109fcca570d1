"""A fit is capture, spectra and truncation, and says what is wrong before or where it goes wrong."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import fields, replace

import pandas
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from sea_export.capture.activations import Activations
from sea_export.capture.in_memory import capture
from sea_export.demonstrations.demonstration import Demonstration, demonstrations_digest
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.summary import no_op_warning
from sea_export.errors import InputError
from sea_export.fitting.collect import collect_statistics
from sea_export.fitting.fit import edit_from_statistics, fit, fit_any_strength
from sea_export.fitting.layer_choice import choose_targets, left_out_note
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.architecture import find_output_projections
from sea_export.model.layer_list import LayerChoice, kept_by_signature
from sea_export.model.load_model import skeleton
from sea_export.model.targets import Target
from sea_export.options import CENTERS, TARGETS, CaptureOptions, EditOptions, FitOptions
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.reference import random_activations
from tests.helpers.tiny_models import hook_count, layers_of, tiny_model

OPTIONS = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.99))
# What `fit` takes besides options: what is fitted, on what, where activations are kept, and a callback.
INPUTS = ("model", "tokenizer", "demonstrations", "cache", "progress")


def assert_same_tensors(one: SpectralEdit, other: SpectralEdit) -> None:
    assert one.targets == other.targets
    for target in one.targets:
        for mine, theirs in zip(one.layers[target], other.layers[target], strict=True):
            assert mine.tensors().keys() == theirs.tensors().keys()
            for name, tensor in mine.tensors().items():
                assert torch.equal(tensor, theirs.tensors()[name]), name
            assert mine.numbers() == theirs.numbers()


# Layers


@pytest.mark.parametrize(
    ("text", "candidates", "keep"),
    [
        ("all", range(30), None),
        ("last:12", range(18, 30), None),
        ("last:30", range(30), None),
        ("last:60%", range(12, 30), None),
        ("first:1%", [0], None),
        ("signature:100%", range(30), 30),
        ("first:1", [0], None),
        ("first:3", [0, 1, 2], None),
        ("signature:5", range(30), 5),
        ("7", [7], None),
        ("0", [0], None),
        ("10-12", [10, 11, 12], None),
        ("10-12,25", [10, 11, 12, 25], None),
        ("25,10-12", [10, 11, 12, 25], None),
        ("3-5,4-6,5", [3, 4, 5, 6], None),
        ("29-29", [29], None),
        (" 1 , 3 - 4", None, None),
        (" 1, 3-4 ", [1, 3, 4], None),
        ("last:2,5", [5, 28, 29], None),
        ("first:1,last:10%, 4-5", [0, 4, 5, 27, 28, 29], None),
    ],
)
def test_layers_are_read(text, candidates, keep):
    if candidates is None:
        with pytest.raises(InputError, match=naming("--layers", text)):
            LayerChoice.parse(text, 30)
    else:
        assert LayerChoice.parse(text, 30).candidates == tuple(candidates)
        assert kept_by_signature(text, 30) == keep


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("last:0", ["last:0", 30]),
        ("first:31", ["first:31", 30]),
        ("signature:31", ["signature:31", 30]),
        ("30", ["layer 30", 0, 29]),
        ("28-31", ["layer 31", 29]),
        ("5-3", ["'5-3'"]),
        ("1,,2", ["''"]),
        ("", ["''"]),
        ("1,two", ["'two'"]),
        ("-1", ["'-1'"]),
        ("1-", ["'1-'"]),
        ("last", ["'last'"]),
        ("last:-2", ["'last:-2'"]),
        ("last:2.5", ["'last:2.5'"]),
        ("middle:4", ["'middle:4'"]),
        ("all,3", ["'all'"]),
        ("last:150%", ["last:150%", 30]),
        ("3,last:31", ["last:31", 30]),
        ("signature:2,5", ["'signature:2'"]),
        ("LAST:2", ["'LAST:2'", "all, last:K, first:K, signature:K", "10-20,25"]),
    ],
)
def test_layers_that_cannot_be_read_are_refused(text, facts):
    with pytest.raises(InputError, match=naming("--layers", *facts)):
        LayerChoice.parse(text, 30)


# The one function of the API and its parts


def test_fit_has_every_option_with_its_default_and_no_other():
    parameters = dict(inspect.signature(fit).parameters)
    options = {
        item.name: item.default
        for kind in (FitOptions, CaptureOptions, EditOptions)
        for item in fields(kind)
        if item.name not in ("capture", "edit")
    }
    assert {name: parameters[name].default for name in parameters if name not in INPUTS} == options
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in options)
    assert set(INPUTS) < parameters.keys()


def test_every_option_of_fit_reaches_the_fit(llama, tokenizer, demonstrations):
    """One setting that is nowhere the default: what is recorded as provenance is what was asked for."""
    changed = {
        "layers": "1,3",
        "target": "both",
        "center": "linear",
        "length_scale": 2.0,
        "template": "chat",
        "sequential": True,
        "explained_variance": 0.8,
        "positive_variance": 0.7,
        "negative_variance": 0.6,
        "positive_rank": 2,
        "negative_rank": 1,
        "projections": "reversed",
        "strength": 0.5,
        "normalization": "calibrated",
        "site": "target",
        "position": "mean",
        "neutral": "generated",
        "neutral_tokens": 3,
        "batch_tokens": 128,
        "seed": 7,
    }
    # A feature function does not go with centring, nor another site with --sequential, nor another method with most
    # of these: they have tests of their own.
    others = {"feature_function", "method", "form", "rank", "damping"}
    assert changed.keys() == inspect.signature(fit).parameters.keys() - {*INPUTS, *others}
    edit = fit(llama, tokenizer, demonstrations, **changed)
    recorded = edit.provenance["options"]
    assert {**recorded, **recorded["capture"], **recorded["edit"]}.items() >= changed.items()
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit).parameters.items()}
    assert {name for name, value in changed.items() if value == defaults[name]} == {"site"}
    options = FitOptions(
        **{item.name: changed[item.name] for item in fields(FitOptions) if item.name in changed},
        capture=CaptureOptions(**{item.name: changed[item.name] for item in fields(CaptureOptions)}),
        edit=EditOptions(**{item.name: changed[item.name] for item in fields(EditOptions)}),
    )
    assert_same_tensors(edit, fit_any_strength(llama, tokenizer, demonstrations, options).edit())


def test_demonstrations_may_be_rows_of_any_kind_and_layers_numbers(llama, tokenizer, demonstrations, tmp_path):
    rows = [{"prompt": one.prompt, "positive": one.positive, "negative": one.negative} for one in demonstrations]
    expected = fit(llama, tokenizer, demonstrations, layers="2,3")
    expected.save(tmp_path / "expected")
    for data in (rows, iter(rows), Dataset.from_list(rows), pandas.DataFrame(rows), _PolarsLike(rows)):
        fit(llama, tokenizer, data, layers=[2, 3]).save(tmp_path / "same")
        for file in ("sea_edit.json", "sea_edit.safetensors"):
            assert (tmp_path / "same" / file).read_bytes() == (tmp_path / "expected" / file).read_bytes()
    builtin = fit(llama, tokenizer, "builtin:truthfulness", layers=[3], batch_tokens=4096)
    assert builtin.provenance["demonstrations"]["origin"]["source"] == "builtin:truthfulness"


class _PolarsLike:
    """Rows behind the method by which a data frame of Polars gives them."""

    def __init__(self, rows):
        self.to_dicts = lambda: rows


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        ([{"prompt": "a", "positive": "b", "negative": "b"}], ["row 1", "equal"]),
        ([{"prompt": "a", "positive": "b", "negative": "c"}, {"prompt": "a", "positive": "b"}], ["row 2", "negative"]),
        ([{"ask": "a", "good": "b", "bad": "c"}], ["ask, good, bad"]),
        (pandas.DataFrame({"prompt": ["a"], "positive": ["b"], "negative": [float("nan")]}), ["row 1", "negative"]),
        (["a", "b"], ["item 0", "str"]),
        ([], ["--demonstrations", "2"]),
    ],
)
def test_rows_that_are_no_demonstrations_are_refused(llama, tokenizer, rows, facts):
    with pytest.raises(InputError, match=naming(*facts)):
        fit(llama, tokenizer, rows)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_fit_is_spectra_of_the_captured_activations_truncated(llama, tokenizer, demonstrations, target, center):
    options = replace(OPTIONS, target=target, center=center)
    components = ("mlp", "attention") if target == "both" else (target,)
    targets = [Target(layer, component) for layer in (2, 3) for component in components]
    edit = fit(llama, tokenizer, demonstrations, layers="last:2", target=target, center=center, explained_variance=0.99)
    assert edit.targets == tuple(sorted(targets))
    spectra = collect_statistics(llama, tokenizer, demonstrations, options)
    assert_same_tensors(edit, edit_from_statistics(spectra, options))

    tokenized = tokenize(demonstrations, tokenizer, template="qa", context_length=256)
    # In the order in which a fit meets them: the reader's folds go by it.
    order = sorted(
        range(len(tokenized)),
        key=lambda i: (len(tokenized[i].prompt), max(len(tokenized[i].positive), len(tokenized[i].negative))),
        reverse=True,
    )
    for target, activations in capture(llama, [tokenized[index] for index in order], targets).items():
        expected = build_layer_edit(SpectrumFitter(center).update(activations).finish(), options.edit)
        for name, tensor in expected.tensors().items():
            torch.testing.assert_close(edit.layers[target][0].tensors()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_truncation_is_made_again_from_the_same_spectra(llama, tokenizer, demonstrations):
    """No forward pass: other truncations of the same spectra are those of other fits."""
    spectra = collect_statistics(llama, tokenizer, demonstrations, OPTIONS)
    other = replace(OPTIONS, edit=EditOptions(explained_variance=0.5, normalization="calibrated", strength=0.7))
    fitted = fit_any_strength(llama, tokenizer, demonstrations, other)
    assert_same_tensors(edit_from_statistics(spectra, other), fitted.edit())


def test_signature_keeps_the_layers_that_tell_the_completions_apart_best(llama, tokenizer, demonstrations):
    spectra = collect_statistics(llama, tokenizer, demonstrations, replace(OPTIONS, layers="signature:2"))
    assert {target.layer for target in spectra} == {0, 1, 2, 3}
    by_signature = sorted(spectra, key=lambda target: spectra[target].signature)
    assert len({spectrum.signature for spectrum in spectra.values()}) == 4
    edit = fit(llama, tokenizer, demonstrations, layers="signature:2")
    assert set(edit.targets) == set(by_signature[-2:])
    # The layers must not be the last ones anyway; swapping the spectra swaps the choice.
    swapped = dict(zip(by_signature, [spectra[target] for target in reversed(by_signature)], strict=True))
    assert set(edit_from_statistics(swapped, replace(OPTIONS, layers="signature:2")).targets) == set(by_signature[:2])


def test_signature_of_a_layer_counts_both_of_its_blocks(llama, tokenizer, demonstrations):
    options = replace(OPTIONS, layers="signature:1", target="both")
    spectra = collect_statistics(llama, tokenizer, demonstrations, options)
    sums = [sum(spectra[Target(layer, name)].signature for name in ("mlp", "attention")) for layer in range(4)]
    best = max(range(4), key=lambda layer: sums[layer])
    assert edit_from_statistics(spectra, options).targets == (Target(best, "attention"), Target(best, "mlp"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("center", CENTERS)
def test_the_same_fit_gives_the_same_bytes(tmp_path, family, center, tokenizer, demonstrations):
    for name in ("one", "other"):
        fit(tiny_model(family), tokenizer, demonstrations, layers="all", center=center).save(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_a_fit_leaves_the_model_as_it_was(llama, tokenizer, demonstrations):
    tokens, hooks = torch.tensor([[5, 6, 7]]), hook_count(llama)
    with torch.inference_mode():
        before = llama(tokens).logits
        fit(llama, tokenizer, demonstrations, layers="0")
        assert torch.equal(llama(tokens).logits, before)
    assert len(layers_of(llama)) == 4
    assert hook_count(llama) == hooks


def test_a_fitted_edit_moves_the_model(llama, tokenizer, demonstrations):
    edit = fit(llama, tokenizer, demonstrations, layers="last:2", explained_variance=0.99)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = llama(tokens).logits
        with edit.apply(llama):
            assert (llama(tokens).logits - before).abs().max() > 0.01


def test_progress_counts_every_demonstration(llama, tokenizer, demonstrations):
    told: list[tuple[str, int, int]] = []
    fit(llama, tokenizer, demonstrations, layers="all", batch_tokens=50, progress=lambda *stage: told.append(stage))
    done = [count for _, count, _ in told]
    assert done == sorted(done)
    assert {(stage, total) for stage, _, total in told} == {("Reading demonstrations", len(demonstrations))}
    assert (done[0], done[-1]) == (0, len(demonstrations))
    assert len(told) > 2


def test_a_special_token_at_the_beginning_is_read_like_any_other(llama, beginning_tokenizer, tokenizer, demonstrations):
    one, other = (fit(llama, kind, demonstrations, layers="3") for kind in (tokenizer, beginning_tokenizer))
    assert not torch.allclose(
        one.layers[Target(3, "mlp")][0].positive_values[:1],
        other.layers[Target(3, "mlp")][0].positive_values[:1],
        rtol=1e-3,
    )


# Provenance


def test_provenance_is_plain_data_without_a_local_path(llama, tokenizer, demonstrations, tmp_path):
    model = copy.deepcopy(llama)
    model.config._name_or_path = str(tmp_path / "some" / "tiny-model") + "/"
    provenance = fit(model, tokenizer, demonstrations, layers="all").provenance
    assert provenance["base"]["name"] == "tiny-model"
    assert str(tmp_path) not in json.dumps(provenance)
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["demonstrations"] == {"count": 8, "sha256": demonstrations_digest(demonstrations)}
    assert provenance["versions"]["torch"] == torch.__version__
    model.config._name_or_path = "org/tiny-model"
    assert fit(model, tokenizer, demonstrations, layers="all").provenance["base"]["name"] == "org/tiny-model"


# An edit that does nothing


def activations_with_mean(mean: float) -> Activations:
    generator = torch.Generator().manual_seed(0)
    return Activations(*(torch.randn(3, 40, 24, generator=generator) + mean))


def edit_of(activations: Activations, options: EditOptions, center: str = "off") -> SpectralEdit:
    layer = build_layer_edit(SpectrumFitter(center).update(activations).finish(), options)
    return SpectralEdit({Target(0, "mlp"): (layer,)})


def test_an_edit_that_does_nothing_is_warned_of():
    """Uncentred, one direction explains 99 % of both spectra: it is kept and dropped at once."""
    edit = edit_of(activations_with_mean(100.0), EditOptions(explained_variance=0.9))
    assert edit.relative_change < 0.01
    warning = no_op_warning(edit.summary)
    assert warning is not None
    assert "--explained-variance" in warning
    assert "--center linear" in warning
    share = edit.layers[Target(0, "mlp")][0].positive_values.square()
    assert f"{float(share[0] / share.sum()):.3%}" in warning


@pytest.mark.parametrize(
    ("mean", "options"),
    [
        (0.0, EditOptions(explained_variance=0.9)),
        (100.0, EditOptions(projections="negative")),
        (2.0, EditOptions(explained_variance=0.9999)),
    ],
    ids=["no common mean", "one projection", "more variance"],
)
def test_an_edit_that_does_something_is_not_warned_of(mean, options):
    assert no_op_warning(edit_of(activations_with_mean(mean), options).summary) is None


def test_one_layer_that_does_something_is_enough():
    idle = edit_of(activations_with_mean(100.0), EditOptions())
    busy = edit_of(activations_with_mean(0.0), EditOptions())
    both = SpectralEdit(
        {Target(layer, "mlp"): edit.layers[Target(0, "mlp")] for layer, edit in enumerate((idle, busy))}
    )
    assert no_op_warning(idle.summary) is not None
    assert no_op_warning(both.summary) is None


@pytest.mark.parametrize("options", [EditOptions(), EditOptions(strength=0)], ids=["default", "strength 0"])
def test_edits_without_any_direction_are_warned_of(options):
    """Zero activations have no spectrum to speak of."""
    warning = no_op_warning(edit_of(Activations(*torch.zeros(3, 4, 24)), options).summary)
    assert warning is not None
    assert "--explained-variance" not in warning, "there is nothing that a higher one could explain"


# Errors


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_demonstrations_are_refused(llama, tokenizer, demonstrations, count):
    with pytest.raises(InputError, match=naming(count, 2)):
        fit(llama, tokenizer, demonstrations[:count], layers="all")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"layers": "9"}, ["layer 9", 0, 3]),
        ({"layers": "last:5"}, ["--layers", "last:5", 4]),
        ({"layers": "all", "explained_variance": 1.5}, ["--explained-variance", 1.5]),
        ({"layers": "all", "explained_variance": 0.0}, ["--explained-variance", 0.0]),
        ({"layers": "all", "positive_variance": -1.0}, ["--positive-variance", -1.0]),
        ({"layers": "all", "target": "norm"}, ["--target", "'norm'", "mlp, attention, both"]),
        ({"layers": "all", "center": "on"}, ["--center", "'on'", "auto, off, affine, linear"]),
        ({"layers": "all", "template": "alpaca"}, ["--template", "'alpaca'"]),
        ({"layers": "all", "site": "input"}, ["--site", "'input'"]),
        ({"layers": "all", "batch_tokens": 0}, ["--batch-tokens", 0]),
        ({"layers": "all", "positive_rank": 9}, ["--positive-rank", 9, 7]),
    ],
    ids=lambda value: "" if isinstance(value, list) else ", ".join(f"{name}={one}" for name, one in value.items()),
)
def test_what_cannot_be_fitted_is_refused(llama, tokenizer, demonstrations, options, facts):
    with pytest.raises(InputError, match=naming(*facts)):
        fit(llama, tokenizer, demonstrations, **options)


@pytest.mark.usefixtures("no_capture")
@pytest.mark.parametrize(
    ("options", "directions"),
    [({"positive_rank": 9}, 7), ({"negative_rank": 8}, 7), ({"positive_rank": 9, "center": "off"}, 8)],
    ids=str,
)
def test_ranks_beyond_the_demonstrations_are_refused_before_any_work(
    llama, tokenizer, demonstrations, options, directions
):
    option = f"--{next(iter(options)).replace('_', '-')}"
    with pytest.raises(InputError, match=naming(option, directions)):
        fit(llama, tokenizer, demonstrations, layers="all", **options)


@pytest.fixture
def broken_model(llama) -> PreTrainedModel:
    """A model whose third layer puts out NaN."""
    model = copy.deepcopy(llama)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = float("nan")
    return model


@pytest.mark.parametrize("target", ["mlp", "both"])
def test_activations_that_are_not_finite_name_their_layer(broken_model, tokenizer, demonstrations, target):
    with pytest.raises(InputError, match=naming("layer 2, mlp")):
        fit(broken_model, tokenizer, demonstrations, layers="all", target=target)
    fit(broken_model, tokenizer, demonstrations, layers="first:2", target=target)


def test_the_model_is_whole_again_when_a_fit_fails(broken_model, tokenizer, demonstrations):
    hooks = hook_count(broken_model)
    with pytest.raises(InputError) as failure:
        fit(broken_model, tokenizer, demonstrations, layers="first:3")
    assert failure.value is not None  # held, with the frames in its traceback, while the model is looked at
    assert len(layers_of(broken_model)) == 4
    assert hook_count(broken_model) == hooks


def test_a_prompt_that_fills_the_context_is_refused(llama, tokenizer, demonstrations):
    long = Demonstration("word " * 300, "yes", "no", source="file.jsonl, row 9")
    with pytest.raises(InputError, match=naming("file.jsonl, row 9", 256)):
        fit(llama, tokenizer, [*demonstrations, long], layers="all")


def test_a_prompt_without_room_for_a_generated_continuation_is_refused(llama, tokenizer, demonstrations):
    """Also where its completions, which are shorter, would fit."""
    long = Demonstration("I " * 116, "yes", "no", source="file.jsonl, row 9")
    fit(llama, tokenizer, [*demonstrations, long], layers="0")
    with pytest.raises(InputError, match=naming("file.jsonl, row 9", 20, 256)):
        fit(llama, tokenizer, [*demonstrations, long], layers="0", neutral="generated")


# Hybrid models, in which not every layer has attention


@pytest.mark.parametrize(
    ("layers", "target", "found"),
    [
        ("all", "attention", ["1.attention", "3.attention"]),
        ("last:3", "attention", ["1.attention", "3.attention"]),
        ("first:2", "both", ["0.mlp", "1.mlp", "1.attention"]),
        ("all", "mlp", ["0.mlp", "1.mlp", "2.mlp", "3.mlp"]),
        ("1,3", "attention", ["1.attention", "3.attention"]),
    ],
)
def test_layers_without_the_block_are_left_out_of_a_range(layers, target, found):
    model = skeleton(tiny_family_config("jamba"))
    options = FitOptions(layers=layers, target=target)
    assert [str(target) for target in choose_targets(model, options)] == found
    note = left_out_note(model, options, choose_targets(model, options))
    assert (note is None) == (target == "mlp" or layers == "1,3")
    if layers == "all" and target == "attention":
        assert "0.attention, 2.attention" in note


def test_a_listed_layer_without_the_block_is_not_left_out():
    model = skeleton(tiny_family_config("jamba"))
    with pytest.raises(InputError, match=naming("attention", "model.layers.2")):
        find_output_projections(model, choose_targets(model, FitOptions(layers="1-2", target="attention")))


def test_a_range_without_any_such_block_is_refused():
    model = skeleton(tiny_family_config("jamba"))
    with pytest.raises(InputError, match=naming("first:1", "--target attention")):
        choose_targets(model, FitOptions(layers="first:1", target="attention"))


def test_a_signature_is_taken_over_the_layers_that_have_the_block():
    """More layers may be asked for than have it, and the last of them need not be the model's last."""
    targets = (Target(0, "attention"), Target(2, "attention"))
    spectra = {
        target: SpectrumFitter("off").update(random_activations(20, 8, seed=target.layer)).finish()
        for target in targets
    }
    for count, kept in ((4, 2), (2, 2), (1, 1)):
        options = FitOptions(layers=f"signature:{count}", target="attention")
        assert len(edit_from_statistics(spectra, options).targets) == kept
