"""Shared computation gives what one pass for each whole sequence gives."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sea_export.capture.batching import (
    PrefixCacheMode,
    PromptedCompletions,
    Segment,
    plan_passes,
    processing_order,
)
from sea_export.capture.forward import hands_on_caches, run_batches
from sea_export.capture.prefix_tree import prefix_nodes
from tests.helpers.tiny_models import family_parameters, random_model, tiny_config, tiny_model

SHARED = list(range(10, 30))


class _Recorder:
    """Keeps every computed token's final hidden state, and counts what was computed."""

    def __init__(self) -> None:
        self.states: dict[tuple[int | None, int | None], Tensor] = {}
        self.passes: list[tuple[int, int]] = []
        self.layout: Sequence[Segment] = ()

    def before_pass(self, segments: Sequence[Segment]) -> None:
        self.layout = segments

    def after_pass(self, segments: Sequence[Segment], output) -> None:
        assert segments is self.layout
        hidden = output.last_hidden_state
        self.passes.append(tuple(hidden.shape[:2]))
        assert [segment.row for segment in segments] == list(range(len(hidden)))
        for segment in segments:
            key = segment.item, segment.completion
            assert key not in self.states, "computed twice"
            self.states[key] = hidden[segment.row, : segment.length].clone()


def random_items(count: int, *, prefix: Sequence[int] = (), seed: int = 0) -> list[PromptedCompletions]:
    """Prompts of 1 to 14 tokens after `prefix`, each with one to three completions of 1 to 9."""
    generator = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return [generator.randrange(3, 320) for _ in range(generator.randint(1, longest))]

    return [
        PromptedCompletions([*prefix, *tokens(14)], [tokens(9) for _ in range(generator.randint(1, 3))])
        for _ in range(count)
    ]


def run(model, items: Sequence[PromptedCompletions], budget: int = 200) -> tuple[_Recorder, list[tuple[int, ...]]]:
    recorder = _Recorder()
    decoder = model.base_model
    return recorder, list(
        run_batches(
            decoder,
            decoder,
            items,
            batch_tokens=budget,
            prefix_cache=PrefixCacheMode.CACHES if hands_on_caches(decoder) else PrefixCacheMode.PASSES,
            observer=recorder,
        )
    )


@torch.inference_mode()
def naive(model, items: Sequence[PromptedCompletions]) -> dict[tuple[int, int | None], Tensor]:
    """A pass of its own, without a cache, for every prompt and every prompt with a completion."""
    states: dict[tuple[int, int | None], Tensor] = {}
    for index, item in enumerate(items):
        for completion, tokens in [(None, []), *enumerate(item.completions)]:
            sequence = torch.tensor([[*item.prompt, *tokens]])
            if sequence.numel():
                hidden = model.base_model(sequence, use_cache=False).last_hidden_state[0]
                states[index, completion] = hidden if completion is None else hidden[len(item.prompt) :]
    return states


def assert_same_states(recorder: _Recorder, expected: dict[tuple[int, int | None], Tensor]) -> None:
    prefix = recorder.states.get((None, None))
    for (index, completion), states in expected.items():
        actual = recorder.states[index, completion]
        if completion is None and prefix is not None:
            actual = torch.cat([prefix, actual])
        torch.testing.assert_close(actual, states, rtol=1e-4, atol=1e-5)
    assert recorder.states.keys() - {(None, None)} == expected.keys()


@pytest.mark.parametrize("prefix", [[], SHARED], ids=["nothing shared", "shared prefix"])
@pytest.mark.parametrize("family", family_parameters())
def test_every_token_has_the_state_of_a_pass_of_its_own(family, prefix):
    model, items = tiny_model(family), random_items(6, prefix=prefix)
    recorder, batches = run(model, items)
    assert ((None, None) in recorder.states) == bool(prefix)
    assert_same_states(recorder, naive(model, items))
    assert sorted(index for batch in batches for index in batch) == list(range(6))


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("budget", [1, 30, 10_000])
@pytest.mark.parametrize("prefix", [[], SHARED], ids=["nothing shared", "shared prefix"])
def test_the_batch_budget_changes_no_state(prefix, budget, family):
    model, items = tiny_model(family), random_items(8, prefix=prefix, seed=1)
    recorder, batches = run(model, items, budget)
    assert_same_states(recorder, naive(model, items))
    assert (len(batches) == len(items)) == (budget == 1)


def test_passes_keep_to_the_budget():
    recorder, _ = run(tiny_model("llama"), random_items(30), budget=60)
    assert all(rows == 1 or rows * width <= 60 for rows, width in recorder.passes)
    assert len(recorder.passes) < 60  # and they are batches


def test_prompts_of_equal_length_share_a_batch_where_windows_slide():
    """Padding between a prompt and its completions would move the window."""
    items = random_items(12)
    batches = run(tiny_model("mistral"), items)[1]
    for batch in batches:
        assert len({len(items[index].prompt) for index in batch}) == 1
    mixed = run(tiny_model("llama"), items)[1]
    assert any(len({len(items[index].prompt) for index in batch}) > 1 for batch in mixed)


def test_a_sliding_window_is_shorter_than_the_sequences():
    """Else the tests above would say nothing about windows."""
    model = tiny_model("mistral")
    sequence = torch.tensor([list(range(3, 40))])
    changed = sequence.clone()
    changed[0, 0] = 300
    layers = model.config.num_hidden_layers
    with torch.inference_mode():
        states = [model.base_model(ids, use_cache=False).last_hidden_state for ids in (sequence, changed)]
    reach = layers * (model.config.sliding_window - 1) + 1
    assert reach < sequence.shape[1]
    torch.testing.assert_close(states[0][0, reach:], states[1][0, reach:])
    assert not torch.allclose(states[0][0, 1], states[1][0, 1])


def test_padding_is_never_put_at_a_position_that_the_model_does_not_have():
    """A long prompt with a short completion stands beside a short prompt with a long completion."""
    config = tiny_config("gpt2")
    config.n_positions = 32
    model = random_model(config)
    items = [
        PromptedCompletions(list(range(3, 33)), [[5, 6]]),
        PromptedCompletions([7, 8, 9], [list(range(40, 69))]),
    ]
    recorder, batches = run(model, items, budget=20_000)  # of so many tokens, padding divides no pass here
    assert len(batches) == 1
    assert len(recorder.passes) == 2
    assert_same_states(recorder, naive(model, items))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_prompt_may_be_empty(family):
    model = tiny_model(family)
    items = [*random_items(3), PromptedCompletions([], [[5, 6, 7], [8]]), PromptedCompletions([], [[9, 10]])]
    recorder, _ = run(model, items)
    assert_same_states(recorder, naive(model, items))


def test_completions_are_computed_by_the_model_for_them():
    """The prompts' model needs no head; the completions' may have one."""
    model, items = tiny_model("llama"), random_items(3)
    outputs: list[tuple[int | None, bool]] = []

    class Observer:
        def before_pass(self, segments):
            pass

        def after_pass(self, segments, output):
            outputs.append((segments[0].completion, hasattr(output, "logits")))

    list(
        run_batches(
            model.base_model, model, items, batch_tokens=100, prefix_cache=PrefixCacheMode.CACHES, observer=Observer()
        )
    )
    assert {has_logits for completion, has_logits in outputs if completion is None} == {False}
    assert {has_logits for completion, has_logits in outputs if completion is not None} == {True}


def test_no_graph_is_kept():
    recorder, _ = run(tiny_model("llama"), random_items(2))
    assert not any(states.requires_grad for states in recorder.states.values())


# What prompts share


def nested_items() -> list[PromptedCompletions]:
    """Two system prompts, one of them with two passages, after a template; and a prompt that begins otherwise."""
    generator = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(3, 320) for _ in range(count)]

    template, systems, passages = tokens(18), [tokens(70), tokens(50)], [tokens(60), tokens(90)]
    beginnings = [[*template, *systems[0], *passage] for passage in passages] + [[*template, *systems[1]]]
    prompts = [[*beginning, *tokens(generator.randint(1, 9))] for beginning in beginnings * 7]
    prompts += [tokens(12), [*template, *tokens(5)]]
    return [PromptedCompletions(prompt, [tokens(4), tokens(generator.randint(1, 6))]) for prompt in prompts]


class _Tree:
    """Puts together the states of every prompt from those of the prefixes that it shares."""

    def __init__(self) -> None:
        self.prompts: dict[int, dict[int, Tensor]] = {}
        self.completions: dict[tuple[int, int], Tensor] = {}
        self.computed = 0

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output) -> None:
        hidden = output.last_hidden_state
        self.computed += hidden.shape[0] * hidden.shape[1]
        for segment in segments:
            states = hidden[segment.row, : segment.length].clone()
            if segment.completion is not None:
                assert segment.item is not None
                self.completions[segment.item, segment.completion] = states
                continue
            for item in segment.shared_by if segment.item is None else (segment.item,):
                self.prompts.setdefault(item, {})[segment.start] = states


@pytest.mark.parametrize("budget", [40, 10_000])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_prefixes_within_prefixes_are_computed_once(family: str, budget: int) -> None:
    model, items, tree = tiny_model(family), nested_items(), _Tree()
    decoder = model.base_model
    batches = run_batches(
        decoder, decoder, items, batch_tokens=budget, prefix_cache=PrefixCacheMode.CACHES, observer=tree
    )
    order = [index for batch in batches for index in batch]
    assert order == processing_order(items)
    for (index, completion), expected in naive(model, items).items():
        if completion is None:
            states = torch.cat([part for _, part in sorted(tree.prompts[index].items())])
        else:
            states = tree.completions[index, completion]
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    # A tree without limits would compute every beginning of a prompt once.
    beginnings = {tuple(item.prompt[:end]) for item in items for end in range(1, len(item.prompt) + 1)}
    assert tree.computed < 1.3 * (len(beginnings) + sum(len(one) for item in items for one in item.completions))


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[*SHARED, 1, 2], [*SHARED, 3]], 20),
        ([[*SHARED, 1, 2], [*SHARED, 3], [*SHARED[:17], 9, 9, 9, 9]], 17),
        ([SHARED, [*SHARED, 3]], 19),
        ([SHARED, SHARED], 19),
        ([[*SHARED[:16], 1], [*SHARED[:16], 2]], 16),
        ([[*SHARED[:15], 1], [*SHARED[:15], 2]], 0),
        ([[*SHARED, 1]], 0),
        ([[], SHARED], 0),
        ([[1, *SHARED], [2, *SHARED]], 0),
    ],
    ids=[
        "different ends",
        "shortest of three",
        "one is the prefix",
        "equal prompts",
        "just long enough",
        "too short to pay",
        "one prompt",
        "an empty prompt",
        "different beginnings",
    ],
)
def test_shared_prefix_leaves_every_prompt_a_token_of_its_own(prompts, length):
    for some in (prompts, [tuple(prompt) for prompt in reversed(prompts)]):
        (node,) = prefix_nodes(some)
        assert (node.start, node.end, node.parent) == (0, length, None)
        assert node.members == node.below == tuple(range(len(prompts)))


def test_the_tree_of_prefixes() -> None:
    """Groups pay only if they save enough; one that is another's prefix, with a token of its own, is above it."""
    one, other = list(range(100, 220)), list(range(300, 420))
    prompts = [[*SHARED, *middle, index] for index in range(4) for middle in (one, other, [index + 1] * 30)]
    root, first, second = prefix_nodes(prompts)
    assert (root.start, root.end, root.members) == (0, 20, (2, 5, 8, 11))
    assert (first.start, first.end, first.parent, first.members) == (20, 140, 0, (0, 3, 6, 9))
    assert (second.start, second.end, second.parent, second.members) == (20, 140, 0, (1, 4, 7, 10))
    assert root.below == tuple(range(12))
    few = [prompts[0], prompts[3], prompts[1], prompts[4]]
    assert len(prefix_nodes(few)) == 1, "two prompts of a kind save too little for batches of their own"


def test_a_long_chain_of_prefixes_ends() -> None:
    """Every prompt continues the one before, as turns of one conversation do."""
    tokens = list(range(10, 5000))
    prompts = [tokens[: 18 * turns] for turns in range(1, 270)]
    nodes = prefix_nodes(prompts)
    assert sorted(index for node in nodes for index in node.members) == list(range(269))
    for node in nodes:
        for index in node.members:
            assert len(prompts[index]) > node.end


@pytest.mark.parametrize("longest", [6, 40])
def test_there_is_little_padding(longest: int) -> None:
    """Of prompts and completions of very different lengths."""
    generator = random.Random(longest)

    def tokens(longest: int) -> list[int]:
        return [generator.randrange(3, 320) for _ in range(generator.randint(1, longest))]

    items = [PromptedCompletions([*SHARED, *tokens(40)], [tokens(4), tokens(longest)]) for _ in range(400)]
    plan = plan_passes(tiny_model("llama"), items, batch_tokens=2048, prefix_cache=PrefixCacheMode.CACHES)
    passes = [*plan.shared, *(one for batch in plan.batches for one in batch.passes)]
    computed = sum(len(one.sequences) * one.width for one in passes)
    padding = computed - sum(len(tokens) for one in passes for tokens in one.sequences)
    assert padding < 0.07 * computed
    assert computed / len(passes) > 60, "and passes are not small because of that"
