"""Fit a spectral edit of a language model's activations and bake it into a checkpoint that loads anywhere.

    import sea_export

    demonstrations = sea_export.load_demonstrations("halueval.jsonl")
    edit = sea_export.fit(model, tokenizer, demonstrations, layers="last:12")
    with edit.apply(model):
        ...
    sea_export.save(edit, base="org/model", output="out", format="merged")

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sea_export.demonstrations import Demonstration, load_demonstrations
    from sea_export.edit import LayerEdit, SpectralEdit, Target, compose
    from sea_export.errors import InputError, SeaExportError
    from sea_export.export import SaveResult, save
    from sea_export.fitting import fit
    from sea_export.hub import Pushed, push
    from sea_export.layer_loading import open_layerwise
    from sea_export.verification import Verification, verify

__all__ = [
    "Demonstration",
    "InputError",
    "LayerEdit",
    "Pushed",
    "SaveResult",
    "SeaExportError",
    "SpectralEdit",
    "Target",
    "Verification",
    "compose",
    "fit",
    "load_demonstrations",
    "open_layerwise",
    "push",
    "save",
    "verify",
]

_MODULES = {
    "demonstrations": ("Demonstration", "load_demonstrations"),
    "edit": ("LayerEdit", "SpectralEdit", "Target", "compose"),
    "errors": ("InputError", "SeaExportError"),
    "export": ("SaveResult", "save"),
    "fitting": ("fit",),
    "hub": ("Pushed", "push"),
    "layer_loading": ("open_layerwise",),
    "verification": ("Verification", "verify"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
