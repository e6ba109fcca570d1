"""The numerical check of changes of single weights: does a linear map with a folded weight give what it should?

It is made on random weights before anything is written, like that of `sea_export.export.fold_check`. The reference is
the run-time edit, which forms no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from sea_export.edit.fold import with_parameters
from sea_export.edit.weight_change import WeightChange, WeightHook
from sea_export.edit.weight_fold import fold_changes
from sea_export.errors import SeaExportError
from sea_export.export.fold_check import run_module
from sea_export.model.architecture import ProjectionWeight
from sea_export.model.linear_modules import linear_module, linear_shape
from sea_export.model.random_weights import with_random_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_weight_folds", "random_change"]

_ROWS = 5
_RANK = 3
_TOLERANCE = 1e-4


@torch.inference_mode()
def check_weight_folds(model: PreTrainedModel, weights: Sequence[ProjectionWeight]) -> None:
    """Checks numerically that a change folded into a weight changes what its linear map gives. Linear maps of one class
    and shape are checked once.

    Args:
        model: the model's `skeleton`, which stays as it is.
        weights: what `find_linear_weights` found in it.

    Raises:
        InputError: a linear map does not run with random weights.
        SeaExportError: it gives something else. The message names it.
    """
    runnable: PreTrainedModel | None = None
    checked = set()
    for weight in weights:
        module = linear_module(model, weight.module)
        structure = (type(module), linear_shape(module), weight.bias is None)
        if structure not in checked:
            runnable = runnable or with_random_weights(model)
            _check(runnable.get_submodule(weight.module), weight)
            checked.add(structure)


def _check(module: nn.Module, weight: ProjectionWeight) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = linear_shape(module)
    rows = torch.randn(_ROWS, inputs, generator=generator)
    change = random_change(outputs, inputs, generator)
    expected = WeightHook([change])(module, (rows,), run_module(module, (rows,), {}))
    folded = fold_changes(module.get_parameter("weight"), [change], weight.output_dim)
    with with_parameters(module, {"weight": folded}):
        actual = run_module(module, (rows,), {})
    error = float((actual - expected).norm() / expected.norm())
    if not error <= _TOLERANCE:
        raise SeaExportError(
            f"{weight.module}: a changed weight does not change what it gives as it should (relative error "
            f"{error:.1e}). It cannot be merged. Leave it out of the edit."
        )


def random_change(outputs: int, inputs: int, generator: torch.Generator) -> WeightChange:
    """A change of a weight for numerical checks: with random factors and row scales.

    Args:
        outputs: the number of outputs of the linear map.
        inputs: the number of its inputs.
        generator: where the random numbers come from.
    """
    return WeightChange(
        left=torch.randn(outputs, _RANK, generator=generator),
        right=torch.randn(_RANK, inputs, generator=generator),
        scale=0.5 + torch.rand(outputs, generator=generator),
        strength=0.5,
        layer=None,
        relative_change=None,
    )
