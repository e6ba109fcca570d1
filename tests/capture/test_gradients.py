"""Gradients with respect to the outputs of modules are those of finite differences, whatever the batches are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sea_export.capture.gradients import Labels, OutputGradients, ScoredText, own_labels, read_gradients
from sea_export.model.architecture import find_output_projections
from sea_export.model.targets import Target
from tests.helpers.tiny_models import tiny_model

TARGETS = (Target(1, "mlp"), Target(2, "attention"), Target(3, "mlp"))
TEXTS = (
    ScoredText((5, 17, 90, 3, 44), start=2, weight=0.5),
    ScoredText((8, 9), start=1, weight=-1.0),
    ScoredText((101, 12, 13, 200, 7, 7, 31, 55), start=6, weight=0.25),
)


def gradients_of(
    model: PreTrainedModel, texts: tuple[ScoredText, ...] = TEXTS, batch_tokens: int = 64
) -> dict[Target, list[tuple[Tensor, Tensor]]]:
    """For each target and text the outputs and the gradients at its tokens."""
    found: dict[Target, list] = {target: [None] * len(texts) for target in TARGETS}

    def observe(target: Target, read: OutputGradients) -> None:
        for row, text in enumerate(read.texts):
            kept = read.mask[row]
            assert int(kept.sum()) == len(texts[text].tokens)
            assert not read.gradients[row, ~kept].any()
            found[target][text] = (read.outputs[row, kept], read.gradients[row, kept])

    read_gradients(model, texts, find_output_projections(model, TARGETS), observe, batch_tokens=batch_tokens)
    return found


def objective(model: PreTrainedModel, text: ScoredText) -> float:
    with torch.no_grad():
        log_probabilities = model(input_ids=torch.tensor([text.tokens])).logits.double().log_softmax(-1)[0]
    scored = range(text.start, len(text.tokens))
    return text.weight * sum(float(log_probabilities[position - 1, text.tokens[position]]) for position in scored)


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
    found = gradients_of(model)
    generator = torch.Generator().manual_seed(0)
    for projection in find_output_projections(model, TARGETS):
        module = model.get_submodule(projection.module_name)
        for text, (outputs, gradients) in zip(TEXTS, found[projection.target], strict=True):
            bias = torch.randn(24, generator=generator)
            expected = slope(model, module, text, lambda z, bias=bias: bias.expand_as(z))
            assert float(gradients.sum(0) @ bias) == pytest.approx(expected, rel=2e-2, abs=2e-3)
            change = torch.randn(24, 24, generator=generator) / 5
            expected = slope(model, module, text, lambda z, change=change: z @ change.T)
            assert float(((gradients.T @ outputs) * change).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("batch_tokens", [1, 12])
def test_batches_change_no_gradient(batch_tokens: int, llama: PreTrainedModel) -> None:
    together, apart = gradients_of(llama), gradients_of(llama, batch_tokens=batch_tokens)
    for target in TARGETS:
        for (outputs, gradients), (own_outputs, own_gradients) in zip(together[target], apart[target], strict=True):
            torch.testing.assert_close(own_outputs, outputs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own_gradients, gradients, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modules = {name: set(vars(module)) for name, module in model.named_modules()}
    gradients_of(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert {name: set(vars(module)) for name, module in model.named_modules()} == modules
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


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
