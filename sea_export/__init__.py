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

import functools
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sea_export.capture.offloaded import open_layerwise
    from sea_export.demonstrations.demonstration import Demonstration
    from sea_export.demonstrations.load import load_demonstrations
    from sea_export.edit.layer_edit import LayerEdit
    from sea_export.edit.spectral_edit import SpectralEdit, compose, load_edit
    from sea_export.errors import InputError, SeaExportError
    from sea_export.extraction.extract import Extraction, extract
    from sea_export.fitting.fit import fit
    from sea_export.hub.push import Pushed, push
    from sea_export.importing.import_edit import import_edit
    from sea_export.model.targets import Target
    from sea_export.patches.apply_patch import apply_patch
    from sea_export.patches.make_patch import MadePatch, make_patch
    from sea_export.saving import SaveResult, save
    from sea_export.verification.verification import Verification
    from sea_export.verification.verify import verify

__all__ = [
    "Demonstration",
    "Extraction",
    "InputError",
    "LayerEdit",
    "MadePatch",
    "Pushed",
    "SaveResult",
    "SeaExportError",
    "SpectralEdit",
    "Target",
    "Verification",
    "apply_patch",
    "compose",
    "extract",
    "fit",
    "import_edit",
    "load_demonstrations",
    "load_edit",
    "make_patch",
    "open_layerwise",
    "push",
    "save",
    "verify",
]

_MODULES = {
    "capture.offloaded": ("open_layerwise",),
    "demonstrations.demonstration": ("Demonstration",),
    "demonstrations.load": ("load_demonstrations",),
    "edit.layer_edit": ("LayerEdit",),
    "edit.spectral_edit": ("SpectralEdit", "compose", "load_edit"),
    "errors": ("InputError", "SeaExportError"),
    "extraction.extract": ("Extraction", "extract"),
    "fitting.fit": ("fit",),
    "hub.push": ("Pushed", "push"),
    "importing.import_edit": ("import_edit",),
    "model.targets": ("Target",),
    "patches.apply_patch": ("apply_patch",),
    "patches.make_patch": ("MadePatch", "make_patch"),
    "saving": ("SaveResult", "save"),
    "verification.verification": ("Verification",),
    "verification.verify": ("verify",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _found(name)


@functools.cache
def _found(name: str) -> Any:
    """What has a name of the interface. Functions tell their errors in the words of Python."""
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if isinstance(found, type):
        return found
    from sea_export.edit.python_words import speaks_python

    return speaks_python(found)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
