"""Captured activations are those of a pass of its own for every sequence, and nothing needless is computed."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sea_export.capture import in_memory
from sea_export.capture.activations import Activations
from sea_export.capture.batching import PrefixCacheMode
from sea_export.capture.in_memory import capture, capture_batches
from sea_export.capture.prefix_tree import prefix_nodes
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.errors import InputError
from sea_export.model.architecture import OutputProjection, decoder_layers, find_output_projections
from sea_export.model.targets import Target
from sea_export.options import NEUTRALS, POSITIONS, SITES, CaptureOptions
from tests.helpers.messages import naming
from tests.helpers.random_demonstrations import TARGETS, nested_demonstrations, random_demonstrations, relative_error
from tests.helpers.tiny_models import END, PAD, blocks_of, hook_count, layers_of, tiny_model

PREFIXES = {"nothing shared": 0, "shared prefix": 20}
NEUTRAL_TOKENS = 4
# Mistral's and Gemma 2's windows of 8 tokens are shorter than all prompts here.
CAPTURED_FAMILIES = ("llama", "gpt2", "mistral", "gemma2", "neox")


# The naive reference


def module_of(model: PreTrainedModel, target: Target, site: str) -> torch.nn.Module:
    return layers_of(model)[target.layer] if site == "residual" else blocks_of(model, target.component)[target.layer]


@torch.inference_mode()
def states_of(model: PreTrainedModel, sequence: tuple[int, ...]) -> dict[tuple[Target, str], Tensor]:
    """(tokens, d) outputs of every read module over one sequence, from one pass without a cache."""
    states: dict[tuple[Target, str], Tensor] = {}

    def keep(key):
        def hook(module, inputs, output):
            states[key] = (output[0] if isinstance(output, tuple) else output)[0].clone()

        return hook

    handles = [
        module_of(model, target, site).register_forward_hook(keep((target, site)))
        for target in TARGETS
        for site in SITES
    ]
    model.base_model(torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    return states


@torch.inference_mode()
def greedy_continuation(
    model: PreTrainedModel, prompt: tuple[int, ...], length: int, ends: tuple[int, ...] = (END,)
) -> tuple[int, ...]:
    """The likeliest next token, again and again, until the sequence ends; at least one token."""
    continuation: tuple[int, ...] = ()
    while len(continuation) < length:
        token = int(model(torch.tensor([prompt + continuation]), use_cache=False).logits[0, -1].argmax())
        if token in ends and continuation:
            break
        continuation += (token,)
        if token in ends:
            break
    return continuation


@dataclass(frozen=True)
class NaiveSpans:
    """For each kind of activation, the (tokens, d) outputs over the span that it is read from."""

    neutral: Tensor
    generated: Tensor
    positive: Tensor
    negative: Tensor

    def kind(self, name: str, neutral: str) -> Tensor:
        return getattr(self, "generated" if (name, neutral) == ("neutral", "generated") else name)


@functools.cache
def naive_spans(family: str, shared: int) -> list[dict[tuple[Target, str], NaiveSpans]]:
    model, spans = tiny_model(family), []
    for demonstration in random_demonstrations(6, shared=shared):
        prompt = demonstration.prompt
        continuation = greedy_continuation(model, prompt, NEUTRAL_TOKENS)
        alone = states_of(model, prompt)
        followed = [
            states_of(model, prompt + completion)
            for completion in (continuation, demonstration.positive, demonstration.negative)
        ]
        spans.append({key: NaiveSpans(alone[key], *(one[key][len(prompt) :] for one in followed)) for key in alone})
    return spans


def kinds_of(activations: Activations) -> dict[str, Tensor]:
    return {kind: getattr(activations, kind) for kind in ("neutral", "positive", "negative")}


@pytest.mark.slow
@pytest.mark.parametrize("shared", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("neutral", NEUTRALS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", CAPTURED_FAMILIES)
def test_activations_are_those_of_separate_passes(family, site, position, neutral, shared):
    options = CaptureOptions(
        site=site, position=position, neutral=neutral, neutral_tokens=NEUTRAL_TOKENS, batch_tokens=100, seed=3
    )
    captured = capture(tiny_model(family), random_demonstrations(6, shared=shared), TARGETS, options)
    assert captured.keys() == set(TARGETS)
    for target, activations in captured.items():
        for kind, rows in kinds_of(activations).items():
            assert rows.shape == (6, 24)
            for row, spans in zip(rows, naive_spans(family, shared), strict=True):
                span = spans[target, site].kind(kind, neutral)
                if position == "mean":
                    expected = span.mean(0)
                elif position == "last":
                    expected = span[-1]
                else:  # whichever token was drawn
                    expected = span[(span - row).norm(dim=1).argmin()]
                assert relative_error(row, expected) < 1e-5


def test_sites_positions_and_neutrals_differ():
    """Negative control: none of them is another one in disguise."""
    demonstrations = random_demonstrations(6)
    base = CaptureOptions()
    for changed in (
        CaptureOptions(site="residual"),
        CaptureOptions(position="mean"),
        CaptureOptions(position="random"),
        CaptureOptions(neutral="generated"),
    ):
        captured = [capture(tiny_model("llama"), demonstrations, TARGETS[:1], options) for options in (base, changed)]
        one, other = (activations[TARGETS[0]].neutral for activations in captured)
        assert not torch.allclose(one, other, rtol=0.01)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shared", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_batch_budget_changes_no_activation(family, shared, position):
    model, demonstrations = tiny_model(family), random_demonstrations(6, shared=shared)
    one, *others = (
        capture(model, demonstrations, TARGETS, CaptureOptions(position=position, batch_tokens=budget))
        for budget in (2048, 60, 1)
    )
    for other in others:
        for target in TARGETS:
            for kind, rows in kinds_of(one[target]).items():
                assert relative_error(getattr(other[target], kind), rows) < 1e-5


@pytest.mark.parametrize("position", POSITIONS)
def test_prefixes_within_prefixes_change_no_activation(position: str) -> None:
    """Neutral activations of tokens that several levels of prompts share, and of those that nothing shares."""
    model, nested = tiny_model("llama"), nested_demonstrations()
    options = CaptureOptions(position=position, batch_tokens=200, seed=4)
    assert len(prefix_nodes([one.prompt for one in nested])) == 3
    together = capture(model, nested, TARGETS, options)
    for row, one in enumerate(nested):
        alone = capture(model, [one], TARGETS, options)
        for target in TARGETS:
            for kind, expected in kinds_of(alone[target]).items():
                torch.testing.assert_close(kinds_of(together[target])[kind][row], expected[0], rtol=1e-4, atol=1e-5)


def test_rows_are_in_the_order_of_the_demonstrations():
    """Although batches go by length."""
    model, demonstrations = tiny_model("llama"), random_demonstrations(6)
    forward = capture(model, demonstrations, TARGETS[:1])[TARGETS[0]]
    backward = capture(model, demonstrations[::-1], TARGETS[:1])[TARGETS[0]]
    for kind, rows in kinds_of(forward).items():
        assert relative_error(getattr(backward, kind).flip(0), rows) < 1e-5


def test_activations_are_float32_whatever_the_model():
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    captured = capture(model, random_demonstrations(3), TARGETS[:1])[TARGETS[0]]
    expected = capture(tiny_model("llama"), random_demonstrations(3), TARGETS[:1])[TARGETS[0]]
    for kind, rows in kinds_of(captured).items():
        assert rows.dtype == torch.float32
        assert relative_error(rows, getattr(expected, kind)) < 0.1


# Random positions


def test_the_random_position_is_decided_by_the_seed_alone():
    model, demonstrations = tiny_model("llama"), random_demonstrations(6, shared=20)

    def neutral(seed: int, budget: int = 2048) -> Tensor:
        options = CaptureOptions(position="random", seed=seed, batch_tokens=budget)
        return capture(model, demonstrations, TARGETS[:1], options)[TARGETS[0]].neutral

    assert torch.equal(neutral(1), neutral(1))
    assert relative_error(neutral(1, budget=40), neutral(1)) < 1e-5
    assert relative_error(neutral(2), neutral(1)) > 0.1


def test_random_positions_are_spread_over_the_whole_span():
    """The neutral span begins inside what all prompts share."""
    model, demonstrations = tiny_model("llama"), random_demonstrations(6, shared=20)
    drawn = set()
    for seed in range(12):
        options = CaptureOptions(position="random", seed=seed)
        rows = capture(model, demonstrations, TARGETS[:1], options)[TARGETS[0]].neutral
        for row, spans in zip(rows, naive_spans("llama", 20), strict=True):
            drawn.add(int((spans[TARGETS[0], "target"].neutral - row).norm(dim=1).argmin()))
    assert min(drawn) < 5
    assert max(drawn) > 25
    assert len(drawn) > 15


# Generated continuations


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 5.0}, {"do_sample": True, "temperature": 3.0}, {"num_beams": 3}, {"min_new_tokens": 4}],
    ids=str,
)
def test_generated_continuations_heed_no_setting_of_the_model(settings):
    """Its own generation settings may sample or penalise repetition: the continuation is greedy all the same."""
    model, demonstrations = copy.deepcopy(tiny_model("llama")), random_demonstrations(6)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    own = copy.deepcopy(model.generation_config)
    options = CaptureOptions(neutral="generated", neutral_tokens=NEUTRAL_TOKENS)
    captured = capture(model, demonstrations, TARGETS[:1], options)[TARGETS[0]].neutral
    expected = [spans[TARGETS[0], "target"].generated[-1] for spans in naive_spans("llama", 0)]
    assert relative_error(captured, torch.stack(expected)) < 1e-5
    assert model.generation_config == own


@pytest.mark.parametrize("several", [False, True], ids=["one end token", "several end tokens"])
@pytest.mark.parametrize("ends_at", [0, 2])
def test_a_continuation_ends_before_the_end_of_the_sequence(ends_at, several):
    """The end token is no part of it, unless there is nothing else. A shorter one does not disturb its batch."""
    model, demonstrations = copy.deepcopy(tiny_model("llama")), random_demonstrations(6)
    said = [greedy_continuation(model, one.prompt, 6) for one in demonstrations]
    end = next(tokens[ends_at] for tokens in said if tokens[ends_at] not in tokens[:ends_at])
    model.generation_config.eos_token_id = [PAD, end] if several else end
    expected = [greedy_continuation(model, one.prompt, 6, (PAD, end) if several else (end,)) for one in demonstrations]
    assert max(ends_at, 1) in {len(tokens) for tokens in expected}
    assert max(len(tokens) for tokens in expected) == 6
    options = CaptureOptions(neutral="generated", neutral_tokens=6)
    captured = capture(model, demonstrations, TARGETS[:1], options)[TARGETS[0]].neutral
    for row, one, tokens in zip(captured, demonstrations, expected, strict=True):
        assert relative_error(row, states_of(model, one.prompt + tokens)[TARGETS[0], "target"][-1]) < 1e-5


# Nothing needless


class _Watch:
    """Notes which modules run, and how many tokens are embedded."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.ran: set[str] = set()
        self.tokens = 0
        self.handles = [module.register_forward_pre_hook(self._note(name)) for name, module in model.named_modules()]
        self.handles.append(model.get_input_embeddings().register_forward_pre_hook(self._count))

    def _note(self, name):
        def hook(module, inputs):
            self.ran.add(name)

        return hook

    def _count(self, module, inputs):
        self.tokens += inputs[0].numel()

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_neither_the_head_nor_later_layers_run(family):
    model, (list_name, _) = tiny_model(family), decoder_layers(tiny_model(family))
    with _Watch(model) as watch:
        capture(model, random_demonstrations(4, shared=20), [Target(0, "mlp"), Target(2, "mlp")])
    ran = {name.removeprefix(f"{list_name}.").split(".")[0] for name in watch.ran if name.startswith(f"{list_name}.")}
    assert ran == {"0", "1", "2"}
    assert model.get_output_embeddings() not in {model.get_submodule(name) for name in watch.ran}


@pytest.mark.parametrize("shared", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_token_is_computed_once(family, shared, monkeypatch):
    """What all prompts begin with once, every prompt once, every completion once: with rows alone, no padding.

    The trial of what sequences may share comes before, and is not counted.
    """
    monkeypatch.setattr(in_memory, "prefix_cache_mode", lambda *_, **__: PrefixCacheMode.CACHES)
    model, demonstrations = tiny_model(family), random_demonstrations(6, shared=shared)
    needed = shared + sum(len(one.prompt) - shared + len(one.positive) + len(one.negative) for one in demonstrations)
    with _Watch(model) as alone:
        capture(model, demonstrations, TARGETS, CaptureOptions(batch_tokens=1))
    assert alone.tokens == needed
    with _Watch(model) as batched:
        capture(model, demonstrations, TARGETS)
    assert needed <= batched.tokens < 2 * needed


# The model is left as it was


def assert_untouched(model: PreTrainedModel, layers: torch.nn.ModuleList, hooks: int) -> None:
    assert decoder_layers(model)[1] is layers
    assert len(layers) == 4
    assert hook_count(model) == hooks


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_the_model_is_whole_again_afterwards(family):
    model = tiny_model(family)
    layers, hooks, tokens = layers_of(model), hook_count(model), torch.tensor([[5, 6, 7]])
    before = model(tokens).logits
    names = list(model.state_dict())
    capture(model, random_demonstrations(3), [Target(0, "mlp")])
    assert_untouched(model, layers, hooks)
    assert list(model.state_dict()) == names
    assert torch.equal(model(tokens).logits, before)


def first_mlp(model: PreTrainedModel) -> list[OutputProjection]:
    return find_output_projections(model, [Target(0, "mlp")])


def test_the_model_is_whole_again_after_an_exception(llama):
    layers, hooks = layers_of(llama), hook_count(llama)

    def fail(count: int) -> None:
        assert len(layers_of(llama)) == 1  # so that there is something to restore
        raise RuntimeError("stop")

    batches = capture_batches(llama, random_demonstrations(3), first_mlp(llama), CaptureOptions(), fail)
    with pytest.raises(RuntimeError, match="stop"):
        list(batches)
    assert_untouched(llama, layers, hooks)


def test_the_model_is_whole_again_after_a_pass_that_fails(llama):
    layers, hooks = layers_of(llama), hook_count(llama)
    demonstrations = [*random_demonstrations(3), TokenizedDemonstration((5, 100_000), (6,), (7,), "row 4")]
    with pytest.raises(IndexError):
        capture(llama, demonstrations, [Target(0, "mlp")])
    assert_untouched(llama, layers, hooks)


def test_the_model_is_whole_again_when_nobody_wants_more_batches(llama):
    layers, hooks = layers_of(llama), hook_count(llama)
    for _ in capture_batches(llama, random_demonstrations(6), first_mlp(llama), CaptureOptions(batch_tokens=1)):
        break
    assert_untouched(llama, layers, hooks)


def test_a_model_in_training_mode_is_read_without_dropout():
    model = copy.deepcopy(tiny_model("gpt2")).train()
    assert model.config.resid_pdrop > 0
    captured = capture(model, random_demonstrations(3), TARGETS[:1])[TARGETS[0]]
    expected = capture(tiny_model("gpt2"), random_demonstrations(3), TARGETS[:1])[TARGETS[0]]
    assert torch.equal(captured.neutral, expected.neutral)


# Batches and options


def test_batches_are_told_as_they_finish(llama):
    told: list[int] = []
    demonstrations = random_demonstrations(6)
    projections = find_output_projections(llama, TARGETS)
    batches = capture_batches(llama, demonstrations, projections, CaptureOptions(batch_tokens=40), told.append)
    seen = []
    for indices, activations in batches:
        seen.extend(indices)
        assert len(told) == len({len(told)}) * len(told)
        for target in TARGETS:
            assert activations[target].neutral.shape == (len(indices), 24)
    assert sorted(seen) == list(range(6))
    assert sum(told) == 6
    assert len(told) > 1


def test_a_place_that_does_not_exist_is_refused(llama):
    with pytest.raises(InputError, match=naming("layer 9")):
        capture(llama, random_demonstrations(2), [Target(9, "mlp")])


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"site": "input"}, ["--site", "'input'", "residual"]),
        ({"position": "first"}, ["--position", "'first'"]),
        ({"neutral": "none"}, ["--neutral", "'none'"]),
        ({"neutral_tokens": 0}, ["--neutral-tokens", 0]),
        ({"batch_tokens": 0}, ["--batch-tokens", 0]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_wrong_options_are_refused(values, facts):
    with pytest.raises(InputError, match=naming(*facts)):
        CaptureOptions(**values)
