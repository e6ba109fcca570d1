"""A fit layer by layer is the fit in memory, and a sequential fit sees the edits of what came before."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3NextConfig

import sea_export
from sea_export.capture import offloaded
from sea_export.capture.activations import Activations
from sea_export.capture.batching import PromptedCompletions, processing_order
from sea_export.capture.forward import hands_on_caches
from sea_export.capture.in_memory import capture
from sea_export.capture.layerwise import LayerSource, ModelInMemory, capture_by_layer
from sea_export.capture.lockstep import HiddenStates
from sea_export.capture.offloaded import StoredModel
from sea_export.demonstrations.tokenize import TokenizedDemonstration, tokenize
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.architecture import find_output_projections
from sea_export.model.base import open_base
from sea_export.model.targets import Target
from sea_export.options import POSITIONS, SITES, CaptureOptions, EditOptions
from tests.helpers.families import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but
from tests.helpers.random_demonstrations import (
    TARGETS,
    assert_same_edit,
    nested_demonstrations,
    random_demonstrations,
    relative_error,
)
from tests.helpers.tiny_models import family_parameters, hook_count, layers_of, random_model, tiny_model


def captured_by_layer(
    source: LayerSource, demonstrations, options: CaptureOptions, targets=TARGETS, *, sequential: bool = False
) -> dict[Target, Activations]:
    """All activations, in the demonstrations' order."""
    kept: dict[Target, Activations] = {}
    items = [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in demonstrations]
    order = torch.tensor(processing_order(items)).argsort()

    def settle(target: Target, batches) -> LayerEdit | None:
        rows = [torch.stack([batch.neutral, batch.positive, batch.negative]) for _, batch in batches]
        kept[target] = Activations(*torch.cat(rows, dim=1)[:, order])
        return None

    capture_by_layer(
        source, demonstrations, find_output_projections(source.model, targets), options, settle, sequential=sequential
    )
    return kept


def assert_same_activations(one: dict[Target, Activations], other: dict[Target, Activations]) -> None:
    assert one.keys() == other.keys()
    for target, activations in one.items():
        for kind in ("neutral", "positive", "negative"):
            assert relative_error(getattr(activations, kind), getattr(other[target], kind)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 20], ids=["nothing shared", "shared prefix"])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("family", family_parameters())
def test_activations_are_those_of_the_model_in_memory(family, sequential, shared):
    """Without edits a sequential capture is the same; stops within layers disturb nothing."""
    model, demonstrations = tiny_model(family), random_demonstrations(9, shared=shared)
    options = CaptureOptions(batch_tokens=60)
    by_layer = captured_by_layer(ModelInMemory(model), demonstrations, options, sequential=sequential)
    assert_same_activations(by_layer, capture(model, demonstrations, TARGETS, options))
    assert hook_count(model) == 0
    assert len(layers_of(model)) == 4


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_site_and_position_is_read(llama, site, position):
    demonstrations = random_demonstrations(6, shared=20)
    options = CaptureOptions(site=site, position=position, batch_tokens=60)
    by_layer = captured_by_layer(ModelInMemory(llama), demonstrations, options)
    assert_same_activations(by_layer, capture(llama, demonstrations, TARGETS, options))


@pytest.mark.parametrize("position", POSITIONS)
def test_prefixes_within_prefixes_are_continued(llama, position):
    demonstrations, options = nested_demonstrations(), CaptureOptions(position=position, batch_tokens=200)
    captured = captured_by_layer(ModelInMemory(llama), demonstrations, options)
    assert_same_activations(captured, capture(llama, demonstrations, TARGETS, options))


def test_models_with_recurrent_states_are_computed_without_caches():
    """Linear attention beside full attention: a completion does not go on from its prompt's state."""
    assert hands_on_caches(tiny_model("llama"))
    model, target = hybrid_model(), Target(3, "mlp")
    assert not hands_on_caches(model)
    demonstrations = random_demonstrations(6, shared=20)
    captured = capture(model, demonstrations, [target], CaptureOptions(batch_tokens=100))[target]
    by_layer = captured_by_layer(ModelInMemory(model), demonstrations, CaptureOptions(batch_tokens=100), [target])
    assert_same_activations({target: captured}, by_layer)
    for row, one in enumerate(demonstrations):
        for kind, tokens in (("neutral", ()), ("positive", one.positive), ("negative", one.negative)):
            expected = mlp_output(model, 3, one.prompt + tokens)
            assert relative_error(getattr(captured, kind)[row], expected) < 1e-5


@torch.no_grad()
def mlp_output(model: PreTrainedModel, layer: int, tokens: tuple[int, ...]) -> torch.Tensor:
    """(d,) at the last token, from a pass of its own without a cache."""
    outputs: list[torch.Tensor] = []
    handle = layers_of(model)[layer].mlp.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.base_model(torch.tensor([tokens]), use_cache=False)
    handle.remove()
    return outputs[0][0, -1]


def hybrid_model() -> PreTrainedModel:
    config = Qwen3NextConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=6,
        num_experts=0,
        mlp_only_layers=[0, 1, 2, 3],
        vocab_size=320,
        layer_types=["full_attention", "linear_attention"] * 2,
    )
    return random_model(config)


# From a checkpoint


@pytest.mark.parametrize("family", family_parameters())
def test_a_fit_from_a_checkpoint_is_the_fit_in_memory(family, tiny_checkpoint_of, tokenizer, demonstrations):
    options = {"layers": "1,3", "target": "both", "positive_rank": 2, "negative_rank": 2, "batch_tokens": 60}
    with sea_export.open_layerwise(tiny_checkpoint_of(family)) as source:
        by_layer = sea_export.fit(source, tokenizer, demonstrations, **options)
    assert_same_edit(by_layer, sea_export.fit(tiny_model(family), tokenizer, demonstrations, **options))


# Experts that are stored apart, sinks, positions by slopes, chunks, recurrent states, shared keys and values, no cache.
KINDS = ("mixtral", "deepseek_v3", "gpt_oss", "falcon", "bloom", "opt", "llama4_text", "gemma4_text")
KINDS += ("qwen3_next", "deepseek_v32", "openai-gpt")


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_layer_is_loaded_and_passed_through(family, tmp_path):
    model = random_model(tiny_family_config(family))
    model.save_pretrained(tmp_path)
    generator = random.Random(0)
    demonstrations = [
        TokenizedDemonstration(*(tuple(generator.choices(range(5, 60), k=k)) for k in (n + 3, n, 6 - n)), source="row")
        for n in (2, 5, 3, 2)
    ]
    targets = [Target(1, "mlp"), Target(3, "mlp")]
    options = CaptureOptions(batch_tokens=30)
    expected = capture(model, demonstrations, targets, options)
    with sea_export.open_layerwise(tmp_path) as source:
        by_layer = captured_by_layer(source, demonstrations, options, targets)
    assert_same_activations(by_layer, expected)
    for row, one in enumerate(demonstrations):  # and each is what it is alone
        alone = capture(model, [one], targets, options)
        for target in targets:
            assert relative_error(expected[target].positive[row : row + 1], alone[target].positive) < 1e-5


def test_a_layer_that_needs_what_another_one_kept_is_an_error(llama):
    """Its keys and values have no values any more, so that nothing wrong can be computed from them."""

    def look(module, arguments, keywords) -> None:
        cache = keywords.get("cache") or keywords.get("past_key_values")
        if cache is not None:
            float(cache.layers[0].keys.sum())

    handle = layers_of(llama)[2].register_forward_pre_hook(look, with_kwargs=True)
    try:
        capture(llama, random_demonstrations(3), TARGETS, CaptureOptions())
        with pytest.raises(SeaExportError, match=naming("layer 2", "LlamaModel")):
            captured_by_layer(ModelInMemory(llama), random_demonstrations(3), CaptureOptions())
    finally:
        handle.remove()
    assert hook_count(llama) == 0


def test_states_that_do_not_fit_into_memory_are_kept_in_files(
    tiny_sharded_checkpoint, llama, tokenizer, demonstrations, tmp_path, monkeypatch
):
    kept: list[HiddenStates] = []
    states = StoredModel.states
    monkeypatch.setattr(
        StoredModel, "states", lambda self, tokens, copies: kept.append(states(self, tokens, copies)) or kept[-1]
    )
    monkeypatch.setattr(offloaded, "available_memory", lambda device: 1000)
    with sea_export.open_layerwise(tiny_sharded_checkpoint, scratch=tmp_path) as source:
        by_layer = sea_export.fit(source, tokenizer, demonstrations, layers="last:2", sequential=True)
    assert [one.directory for one in kept] == [tmp_path]
    assert_same_edit(by_layer, sea_export.fit(llama, tokenizer, demonstrations, layers="last:2", sequential=True))
    assert list(tmp_path.iterdir()) == []


def test_one_layer_at_a_time_is_in_memory(tiny_checkpoint_of, llama, tokenizer, demonstrations):
    """And every stored tensor is read once."""
    with sea_export.open_layerwise(tiny_checkpoint_of("llama")) as source:
        read: list[str] = []
        checkpoint = source._checkpoint
        present: list[set[int]] = []

        class Watched:
            directory, tensors = checkpoint.directory, checkpoint.tensors

            def read_into(self, name: str, buffer: memoryview) -> None:
                read.append(name)
                checkpoint.read_into(name, buffer)

        def note(*_: object) -> None:
            layers = enumerate(layers_of(source.model))
            present.append({index for index, layer in layers if not next(layer.parameters()).is_meta})

        source._checkpoint = Watched()
        for layer in layers_of(source.model):
            layer.mlp.register_forward_hook(note)
        sea_export.fit(source, tokenizer, demonstrations, layers="all")
        present = [layers for layers in present if layers]  # none while other weights were tried
        assert all(len(layers) == 1 for layers in present)
        assert set.union(*present) == {0, 1, 2, 3}
        wanted = {name for name in checkpoint.tensors if name not in ("lm_head.weight", "model.norm.weight")}
        assert sorted(read) == sorted(wanted)
        assert [name for name, one in source.model.named_parameters() if not one.is_meta] == ["model.norm.weight"]


def test_generated_text_needs_all_layers(tiny_checkpoint, tokenizer, demonstrations):
    with (
        sea_export.open_layerwise(tiny_checkpoint) as source,
        pytest.raises(InputError, match=naming("neutral: ", "generated")),
    ):
        sea_export.fit(source, tokenizer, demonstrations, layers="all", neutral="generated")


# Over several devices


def test_a_model_that_accelerate_has_spread_out_is_fitted_like_any_other(
    tiny_checkpoint_of, llama, tokenizer, demonstrations, tmp_path
):
    """Here between memory and disk, for want of a GPU: its weights are on no device that they are computed on."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{index}": "disk" if index in (1, 3) else "cpu" for index in range(4)}
    model = AutoModelForCausalLM.from_pretrained(
        tiny_checkpoint_of("llama"), device_map=places, offload_folder=str(tmp_path)
    )
    options = {"layers": "1-3", "positive_rank": 2, "negative_rank": 2}
    for sequential in (False, True):
        edit = sea_export.fit(model, tokenizer, demonstrations, sequential=sequential, **options)
        assert_same_edit(edit, sea_export.fit(llama, tokenizer, demonstrations, sequential=sequential, **options))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode(), edit.apply(model), edit.apply(llama):
        torch.testing.assert_close(model(tokens).logits, llama(tokens).logits, rtol=1e-4, atol=1e-5)


def test_a_device_map_is_handed_to_transformers(tiny_checkpoint_of, llama, tokenizer, demonstrations, monkeypatch):
    asked: list[object] = []
    load = AutoModelForCausalLM.from_pretrained

    def watched(*arguments, **options):
        asked.append(options["device_map"])
        return load(*arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    with open_base(str(tiny_checkpoint_of("llama"))) as base:
        models = [base.load_model(device_map=device_map) for device_map in (None, "auto")]
    assert asked == [None, "auto"]
    options = {"layers": "1", "positive_rank": 2, "negative_rank": 2}
    for model in models:
        edit = sea_export.fit(model, tokenizer, demonstrations, **options)
        assert_same_edit(edit, sea_export.fit(llama, tokenizer, demonstrations, **options))


# Sequential fits


def sequential_reference(model: PreTrainedModel, tokenizer, demonstrations, targets: list[Target], center: str):
    """The definition: capture with the edits made so far applied, fit, and so on, each time from the beginning."""
    tokenized = tokenize(demonstrations, tokenizer, context_length=256)
    items = [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in tokenized]
    tokenized = [tokenized[index] for index in processing_order(items)]
    edits: dict[Target, tuple[LayerEdit, ...]] = {}
    for target in targets:
        if edits:
            with SpectralEdit(edits).apply(model):
                captured = capture(model, tokenized, [target])
        else:
            captured = capture(model, tokenized, [target])
        spectrum = SpectrumFitter(center).update(captured[target]).finish()
        edits[target] = (build_layer_edit(spectrum, EditOptions(positive_rank=2, negative_rank=2)),)
    return SpectralEdit(edits)


@pytest.mark.parametrize("center", ["off", "affine", "linear"])
@pytest.mark.parametrize("family", slow_but(["llama"], ["llama", "gemma2", "gpt2", "neox"]))
def test_a_sequential_fit_captures_each_layer_with_the_edits_before_it(family, center, tokenizer, demonstrations):
    model = tiny_model(family)
    options = {"layers": "1-3", "center": center, "positive_rank": 2, "negative_rank": 2, "batch_tokens": 60}
    sequential = sea_export.fit(model, tokenizer, demonstrations, sequential=True, **options)
    targets = [Target(layer, "mlp") for layer in (1, 2, 3)]
    assert_same_edit(sequential, sequential_reference(model, tokenizer, demonstrations, targets, center))
    plain = sea_export.fit(model, tokenizer, demonstrations, **options)
    first, *later = targets
    torch.testing.assert_close(
        sequential.layers[first][0].positive, plain.layers[first][0].positive, rtol=1e-3, atol=1e-4
    )
    for target in later:  # negative control: the edits before it matter
        one, other = sequential.layers[target][0], plain.layers[target][0]
        assert not torch.allclose(one.positive_values[:2], other.positive_values[:2], rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_attention_comes_before_the_mlp_of_its_layer(family, tokenizer, demonstrations):
    model = tiny_model(family)
    sequential = sea_export.fit(
        model, tokenizer, demonstrations, layers="1,2", target="both", positive_rank=2, negative_rank=2, sequential=True
    )
    targets = [Target(layer, component) for layer in (1, 2) for component in ("attention", "mlp")]
    assert_same_edit(sequential, sequential_reference(model, tokenizer, demonstrations, targets, "linear"))


def test_a_sequential_fit_leaves_the_model_as_it_was(llama, tokenizer, demonstrations):
    tokens = torch.tensor([[5, 6, 7]])
    before = llama(tokens).logits
    sea_export.fit(llama, tokenizer, demonstrations, layers="0-1", sequential=True)
    assert torch.equal(llama(tokens).logits, before)
    assert hook_count(llama) == 0
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        layers_of(broken)[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=naming("layer 1, mlp")):
        sea_export.fit(broken, tokenizer, demonstrations, layers="all", sequential=True)
    assert hook_count(broken) == 0
    assert len(layers_of(broken)) == 4


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"layers": "signature:2"}, ["sequential: "]),
        ({"layers": "all", "site": "residual"}, ['site="target"']),
        ({"layers": "all", "normalization": "sequence"}, ["normalization", "sequence"]),
    ],
    ids=["signature", "site", "normalization"],
)
def test_what_no_sequential_fit_can_do_is_refused(options, facts, llama, tokenizer, demonstrations):
    with pytest.raises(InputError, match=naming(*facts)):
        sea_export.fit(llama, tokenizer, demonstrations, sequential=True, **options)


def test_progress_counts_every_demonstration_once(llama, tokenizer, demonstrations):
    told: list[tuple[str, int, int]] = []
    sea_export.fit(
        llama,
        tokenizer,
        demonstrations,
        layers="all",
        sequential=True,
        batch_tokens=50,
        progress=lambda *step: told.append(step),
    )
    assert told[-1][1:] == (len(demonstrations), len(demonstrations))
    assert len(told) > 1


# Verification


@pytest.mark.slow
def test_a_checkpoint_is_verified_layer_by_layer(
    fit_tiny: Callable[..., SpectralEdit], tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
):
    figures = {}
    for layerwise in (False, True):
        output = tmp_path / str(layerwise)
        edit = fit_tiny(tiny_model("llama"))
        verification = sea_export.save(
            edit, tiny_checkpoint_of("llama"), output, layerwise=layerwise, trust_remote_code=False
        ).verification
        assert verification.passed
        figures[layerwise] = verification
    assert figures[True].fold_error.max_logit_difference < 1e-4
    assert figures[True].rounding_error.max_logit_difference < 1e-4
    assert figures[True].base_rounding.max_logit_difference == 0.0
    assert figures[True].effect.mean_divergence > 1e-3
    assert figures[True].changed_tensors == figures[False].changed_tensors == 3
