"""Random demonstrations, and what tests of capture compare."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.targets import Target

TARGETS = [Target(0, "mlp"), Target(1, "attention"), Target(2, "mlp"), Target(2, "attention")]


def random_demonstrations(count: int, *, shared: int = 0, seed: int = 0) -> list[TokenizedDemonstration]:
    """Prompts of 9 to 14 tokens after a common prefix of `shared` tokens, completions of 1 to 7."""
    generator = random.Random(seed)

    def tokens(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(generator.randrange(5, 320) for _ in range(generator.randint(shortest, longest)))

    prefix = tokens(shared, shared)
    return [
        TokenizedDemonstration(prefix + tokens(9, 14), tokens(1, 7), tokens(1, 7), source=f"row {row}")
        for row in range(1, count + 1)
    ]


def nested_demonstrations() -> list[TokenizedDemonstration]:
    """14 whose prompts share a beginning, after which all but one of them share one of two middles."""
    generator = random.Random(0)
    middles = [tuple(generator.randrange(5, 320) for _ in range(60)) for _ in range(2)]
    return [
        replace(one, prompt=(*one.prompt[:20], *(() if row == 3 else middles[row % 2]), *one.prompt[20:]))
        for row, one in enumerate(random_demonstrations(14, shared=20))
    ]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def assert_same_edit(one: SpectralEdit, other: SpectralEdit) -> None:
    """But for rounding: signs of singular vectors are made the same, and degenerate ones do not occur."""
    assert one.targets == other.targets
    for target in one.targets:
        mine, theirs = one.layers[target][0].tensors(), other.layers[target][0].tensors()
        assert mine.keys() == theirs.keys()
        for name in mine:
            compared = [mine[name], theirs[name]]
            if name in ("positive_values", "negative_values"):
                # The last ones are zeros but for rounding, which decides whether they are there.
                longest = max(map(len, compared))
                compared = [torch.nn.functional.pad(values, (0, longest - len(values))) for values in compared]
            torch.testing.assert_close(*compared, rtol=1e-3, atol=1e-4)
