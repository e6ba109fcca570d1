"""Sequences share what they may, and every activation comes out as in a pass of its own sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sea_export.capture.batching import PrefixCacheMode
from sea_export.capture.in_memory import capture, prompted_items
from sea_export.capture.prefix_cache import prefix_cache_mode
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.model.architecture import find_output_projections
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions
from tests.helpers.families import tiny_family_config
from tests.helpers.random_demonstrations import random_demonstrations
from tests.helpers.tiny_models import random_model, tiny_model

EXPECTED = {
    "llama": PrefixCacheMode.CACHES,
    "gemma2": PrefixCacheMode.CACHES,
    # Windows by cache position, which its config has another name for.
    "gpt_neo": PrefixCacheMode.PASSES,
    # Recurrent states in the cache.
    "jamba": PrefixCacheMode.PASSES,
    # Attends to later tokens.
    "bert-generation": PrefixCacheMode.NOTHING,
    # Chooses the tokens that it attends to by an index over all columns, padding among them.
    "deepseek_v32": PrefixCacheMode.NOTHING,
}


def within_vocabulary(one: TokenizedDemonstration, size: int) -> TokenizedDemonstration:
    parts = {name: [token % size for token in getattr(one, name)] for name in ("prompt", "positive", "negative")}
    return replace(one, **parts)


@pytest.fixture(params=EXPECTED)
def family_model(request: pytest.FixtureRequest):
    name = request.param
    return name, tiny_model(name) if name in ("llama", "gemma2") else random_model(tiny_family_config(name))


def test_what_may_be_shared_is_found_out_and_then_right(family_model) -> None:
    name, model = family_model
    demonstrations = [within_vocabulary(one, 60) for one in random_demonstrations(5, shared=20)]
    options = CaptureOptions()
    items = prompted_items(model, demonstrations, options)
    assert prefix_cache_mode(model.base_model, items, batch_tokens=options.batch_tokens) is EXPECTED[name]
    target = Target(1, "mlp")
    captured = capture(model, demonstrations, [target], options)[target]
    states: list[torch.Tensor] = []
    (projection,) = find_output_projections(model, [target])
    handle = model.get_submodule(projection.module_name).register_forward_hook(
        lambda module, inputs, output: states.append(
            (output[0] if isinstance(output, tuple) else output).flatten(0, -2)[-1]
        )
    )
    with torch.inference_mode():
        for row, one in enumerate(demonstrations):
            for kind, sequence in (
                ("neutral", one.prompt),
                ("positive", [*one.prompt, *one.positive]),
                ("negative", [*one.prompt, *one.negative]),
            ):
                model(input_ids=torch.tensor([list(sequence)]), use_cache=False)
                expected, actual = states.pop(), getattr(captured, kind)[row]
                assert (actual - expected).norm() < 1e-4 * expected.norm(), kind
    handle.remove()
