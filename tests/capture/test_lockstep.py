"""Forward passes that are suspended between layers compute what they compute undisturbed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sea_export.capture.lockstep import END, HiddenStates, SuspendedPass, advance_together, stops_installed
from sea_export.errors import SeaExportError
from tests.helpers.tiny_models import blocks_of, family_parameters, hook_count, layers_of, tiny_model

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33, 34]]
IN_MEMORY = HiddenStates(device=None, directory=None)


def calls_of(model: PreTrainedModel) -> tuple[list[SuspendedPass], dict[int, Tensor]]:
    """One pass for every sequence, and where each puts its logits."""
    logits: dict[int, Tensor] = {}

    def call(index: int):
        def run() -> None:
            logits[index] = model(torch.tensor([SEQUENCES[index]]), use_cache=False).logits

        return run

    return [SuspendedPass(call(index)) for index in range(len(SEQUENCES))], logits


@pytest.fixture(params=["memory", "files"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> HiddenStates:
    return IN_MEMORY if request.param == "memory" else HiddenStates(device=None, directory=tmp_path)


@pytest.mark.parametrize("family", family_parameters())
@torch.no_grad()
def test_suspended_passes_give_the_same_logits(family, states, tmp_path):
    model = tiny_model(family)
    expected = [model(torch.tensor([sequence]), use_cache=False).logits for sequence in SEQUENCES]
    passes, logits = calls_of(model)
    with stops_installed(model, states):
        assert [advance_together(passes) for _ in range(5)] == [0, 1, 2, 3, END]
    for index, one in enumerate(expected):
        assert torch.equal(logits[index], one)
    assert hook_count(model) == 0
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_layer_runs_for_all_passes_before_the_next(llama):
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(layers_of(llama))
    ]
    passes, _ = calls_of(llama)
    with stops_installed(llama, IN_MEMORY):
        while advance_together(passes) != END:
            pass
    for handle in handles:
        handle.remove()
    assert ran == [layer for layer in range(4) for _ in passes]


@torch.no_grad()
def test_weights_may_come_when_their_layer_is_reached():
    model = copy.deepcopy(tiny_model("llama"))
    expected = [model(torch.tensor([sequence]), use_cache=False).logits for sequence in SEQUENCES]
    weights = [parameter.clone() for parameter in layers_of(model)[2].parameters()]
    for parameter in layers_of(model)[2].parameters():
        parameter.fill_(float("nan"))
    passes, logits = calls_of(model)
    with stops_installed(model, IN_MEMORY):
        while (stop := advance_together(passes)) != END:
            if stop == 2:
                for parameter, weight in zip(layers_of(model)[2].parameters(), weights, strict=True):
                    parameter.copy_(weight)
    for index, one in enumerate(expected):
        assert torch.equal(logits[index], one)


@torch.no_grad()
def test_an_output_can_be_changed_by_what_all_passes_computed(llama):
    """The pass goes on with what the hook returns once it is advanced."""
    seen: list[Tensor] = []
    block = blocks_of(llama, "mlp")[1]
    reading = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    stops = {"mlp": (block, lambda module, inputs, output: output * float(len(seen)))}
    passes, logits = calls_of(llama)
    with stops_installed(llama, IN_MEMORY, stops):
        assert [advance_together(passes) for _ in range(6)] == [0, 1, "mlp", 2, 3, END]
    reading.remove()
    assert len(seen) == 3
    scaling = block.register_forward_hook(lambda module, inputs, output: output * 3.0)
    for index, sequence in enumerate(SEQUENCES):
        assert torch.equal(logits[index], llama(torch.tensor([sequence]), use_cache=False).logits)
    scaling.remove()


@torch.no_grad()
def test_a_pass_that_is_given_up_leaves_nothing(llama):
    passes, logits = calls_of(llama)
    with stops_installed(llama, IN_MEMORY):
        advance_together(passes)
        for one in passes:
            one.close()
            one.close()
    assert hook_count(llama) == 0
    assert logits == {}


@torch.no_grad()
def test_an_error_of_a_pass_reaches_who_advanced_it(llama):
    with stops_installed(llama, IN_MEMORY), pytest.raises(IndexError):
        SuspendedPass(lambda: llama(torch.tensor([[100_000]]))).advance()


@torch.no_grad()
def test_passes_at_different_places_are_an_error(llama):
    passes, _ = calls_of(llama)
    with stops_installed(llama, IN_MEMORY):
        passes[0].advance()
        with pytest.raises(SeaExportError, match="layer"):
            advance_together(passes)
        for one in passes:
            one.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_files_are_the_states(dtype, tmp_path):
    states = HiddenStates(device=None, directory=tmp_path)
    hidden = torch.randn(3, 5, 7).to(dtype)
    kept, weights, nothing = states.kept((hidden, hidden.transpose(0, 1), None))
    assert torch.equal(kept, hidden)
    assert torch.equal(weights, hidden.transpose(0, 1))
    assert nothing is None
    kept += 1  # what a model does in place it may go on doing
    assert torch.equal(kept, hidden + 1)
    assert list(tmp_path.iterdir()) == []
