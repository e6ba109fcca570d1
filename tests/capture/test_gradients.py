"""Gradients with respect to the outputs of modules are those of finite differences, whatever the batches are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, Lfm2Config, PretrainedConfig, PreTrainedModel

from sea_export.capture import gradients as gradients_module
from sea_export.capture.gradients import Labels, OutputGradients, own_labels, read_gradients
from sea_export.capture.scored_texts import ScoredText
from sea_export.model.architecture import find_output_projections
from sea_export.model.targets import Target
from tests.helpers.tiny_models import FAMILIES, VOCABULARY, random_model, tiny_model

TARGETS = (Target(1, "mlp"), Target(2, "attention"), Target(3, "mlp"))
TEXTS = (
    ScoredText((5, 17), [(90, 3, 44)], [0.5]),
    ScoredText((8,), [(9,)], [-1.0]),
    ScoredText((101, 12, 13, 200, 7, 7), [(31, 55)], [0.25]),
)
PAIRS = (
    ScoredText((5, 17), [(90, 3, 44), (21, 6)], [0.5, -0.75]),
    ScoredText((8,), [(9,), (10, 11, 12)], [-1.0, 1.0]),
    ScoredText((101, 12, 13, 200, 7, 7), [(31, 55), (32,), (33, 34, 35)], [0.25, 0.5, -0.25]),
)
"""Texts with several completions."""


def gradients_of(
    model: PreTrainedModel, texts: tuple[ScoredText, ...] = PAIRS, batch_tokens: int = 64
) -> dict[Target, tuple[Tensor, Tensor]]:
    """For each target (texts, d), the gradient of a bias, and (texts, d, d), that of a linear map of the output."""
    found = {target: (torch.zeros(len(texts), 24), torch.zeros(len(texts), 24, 24)) for target in TARGETS}
    tokens = {target: [0] * len(texts) for target in TARGETS}

    def observe(target: Target, read: OutputGradients) -> None:
        biases, maps = found[target]
        for row, text in enumerate(read.texts):
            tokens[target][text] += int(read.mask[row].sum())
            biases[text] += read.gradients[row].sum(0)
            maps[text] += read.gradients[row].T @ read.outputs[row]

    read_gradients(model, texts, find_output_projections(model, TARGETS), observe, batch_tokens=batch_tokens)
    assert all(own == [len(text.prompt) + text.scored_tokens for text in texts] for own in tokens.values())
    return found


def objective(model: PreTrainedModel, text: ScoredText) -> float:
    total = 0.0
    for completion, weight in zip(text.completions, text.weights, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*text.prompt, *completion]])).logits
        log_probabilities = logits[0, len(text.prompt) - 1 : -1].double().log_softmax(-1)
        total += weight * float(log_probabilities.gather(1, torch.tensor(completion)[:, None]).sum())
    return total


def slope(model: PreTrainedModel, module: nn.Module, text: ScoredText, change: Callable[[Tensor], Tensor]) -> float:
    """How fast the objective grows as the output of a module moves from z towards z + change(z)."""
    values = []
    for step in (1e-3, -1e-3):

        def move(module: nn.Module, inputs: object, output: Tensor, step: float = step) -> Tensor:
            moved = output[0] if isinstance(output, tuple) else output
            moved = moved + step * change(moved)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        with module.register_forward_hook(move):
            values.append(objective(model, text))
    return (values[0] - values[1]) / 2e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_gradients_are_those_of_finite_differences(family: str) -> None:
    model = tiny_model(family)
    texts = (*TEXTS, *PAIRS)
    found = gradients_of(model, texts)
    generator = torch.Generator().manual_seed(0)
    for projection in find_output_projections(model, TARGETS):
        module = model.get_submodule(projection.module_name)
        for text, of_bias, of_map in zip(texts, *found[projection.target], strict=True):
            bias = torch.randn(24, generator=generator)
            expected = slope(model, module, text, lambda z, bias=bias: bias.expand_as(z))
            assert float(of_bias @ bias) == pytest.approx(expected, rel=2e-2, abs=2e-3)
            change = torch.randn(24, 24, generator=generator) / 5
            expected = slope(model, module, text, lambda z, change=change: z @ change.T)
            assert float((of_map * change).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-3)


def assert_same(found: dict[Target, tuple[Tensor, Tensor]], others: dict[Target, tuple[Tensor, Tensor]]) -> None:
    for target in TARGETS:
        for one, other in zip(found[target], others[target], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 12])
def test_batches_change_no_gradient(batch_tokens: int, llama: PreTrainedModel) -> None:
    assert_same(gradients_of(llama, batch_tokens=batch_tokens), gradients_of(llama))


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_share_a_row_and_no_gradient_changes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    assert gradients_module._packs(model, PAIRS)
    together = gradients_of(model)
    monkeypatch.setattr(gradients_module, "_packs", lambda model, texts: False)
    assert_same(together, gradients_of(model))


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(hidden_size=24, n_layer=4, n_head=4, vocab_size=VOCABULARY),
        Lfm2Config(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            layer_types=["conv", "full_attention", "full_attention", "conv"],
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_completions_have_rows_of_their_own_where_sharing_one_changes_them(config: PretrainedConfig) -> None:
    model = random_model(config)
    assert not gradients_module._packs(model, PAIRS)
    text = PAIRS[0]
    pairs = zip(text.completions, text.weights, strict=True)
    apart = [replace(text, completions=[one], weights=[weight]) for one, weight in pairs]
    (together, _), (alone, _) = (gradients_of(model, texts)[TARGETS[0]] for texts in ((text,), tuple(apart)))
    torch.testing.assert_close(together[0], alone.sum(0), rtol=1e-4, atol=1e-5)


def test_a_prompt_beyond_the_window_shares_no_row() -> None:
    model = tiny_model("gemma2")
    window = model.config.sliding_window
    long = ScoredText(tuple(range(5, 5 + window)), [(7, 8), (9, 10)], [0.5, -0.5])
    assert not gradients_module._packs(model, [long, *PAIRS])


def test_layers_that_are_computed_again_change_no_gradient(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = gradients_of(llama)
    calls = []
    layer = type(llama.model.layers[-1])
    monkeypatch.setattr(gradients_module, "_graph_bytes", lambda model, layers, tokens: 1 << 60)
    forward = layer.forward
    monkeypatch.setattr(
        layer, "forward", lambda self, *args, **kwargs: (calls.append(1), forward(self, *args, **kwargs))[1]
    )
    assert_same(gradients_of(llama), kept)
    layers = len(llama.model.layers)
    passes = 2 + 2 + 1  # the trial of shared rows, by itself and together, and the gradients
    assert len(calls) > passes * layers


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modules = {name: set(vars(module)) for name, module in model.named_modules()}
    gradients_of(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert {name: set(vars(module)) for name, module in model.named_modules()} == modules
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_labels_are_drawn_from_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    draw = own_labels(torch.Generator().manual_seed(0))
    drawn = draw(probabilities.log().expand(20_000, -1))
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    assert not shares[probabilities == 0].any()
    torch.testing.assert_close(shares, probabilities, atol=0.015, rtol=0)


def test_gradients_can_be_of_drawn_labels(llama: PreTrainedModel) -> None:
    drawn: list[Tensor] = []
    own = own_labels(torch.Generator().manual_seed(0))

    def draw(log_probabilities: Tensor) -> Tensor:
        assert torch.allclose(log_probabilities.exp().sum(-1), torch.ones(len(log_probabilities)), atol=1e-5)
        drawn.append(own(log_probabilities))
        return drawn[-1]

    def read(labels: Labels | None) -> Tensor:
        seen: list[Tensor] = []
        read_gradients(
            llama,
            TEXTS,
            find_output_projections(llama, TARGETS[:1]),
            lambda target, read: seen.append(read.gradients.sum(1)),
            batch_tokens=64,
            labels=labels,
        )
        return seen[0]

    first, second = read(draw), read(draw)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first, read(lambda log_probabilities: drawn[0]))
    assert not torch.allclose(first, read(None))
