"""The run-time edit of one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sea_export.edit.layer_edit import LayerEdit

__all__ = ["EditHook"]


class EditHook:
    """Forward hook that replaces the output of a module, or the first of several outputs, by the edited one."""

    def __init__(self, edits: Sequence[LayerEdit]) -> None:
        self.edits = edits

    def __call__(self, module: nn.Module, inputs: object, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        edited = output[0] if several else output
        for edit in self.edits:
            edited = edit.apply(edited)
        return type(output)((edited, *output[1:])) if several else edited
