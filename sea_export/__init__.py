"""Fit a spectral edit of a language model's activations and bake it into a checkpoint that loads anywhere.

    import sea_export

    with sea_export.load("org/model") as base:
        edit = sea_export.fit(base.model, base.tokenizer, "pairs.jsonl", layers="last:60%")
        print(sea_export.evaluate(base, "damage", edit=edit).to_frame())
        sea_export.save(edit, base, "out")

Everything that a command does is a function of its name here, and its arguments have the names of the options:
`fit_and_save`, `save`, `verify`, `inspect`, `diff`, `evaluate`, `tune`, `compare`, `push`, `reproduce`, `extract`,
`check` and `recipes`; `import_edit`, `make_patch` and `apply_patch`; `diagnose` for `doctor`; and `fit_and_measure` for
`fit`, because `fit` here is the fit alone, of a model of transformers, at the strength that is given. Edits can be
calculated with: `edit * 0.5`, `edit.only([28, 29])`, `edit.without([0])`, `compose([edit, other])`. `load` opens a base
once, for several calls. Results are frozen. Their `to_dict()` is what `--json` writes, many have `to_frame()` for
pandas, and where a command draws a picture they have `plot(file)`. Functions that take long take `progress`: a function
that is told a stage, how much of it is done, and how much there is to do.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import functools
import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sea_export.capture.offloaded import open_layerwise
    from sea_export.capture.progress_callback import ProgressCallback
    from sea_export.demonstrations.demonstration import Demonstration
    from sea_export.demonstrations.demonstration_options import DemonstrationOptions
    from sea_export.demonstrations.load import load_demonstrations
    from sea_export.doctor.demonstration_check import DemonstrationCheck
    from sea_export.doctor.diagnose import Diagnosis
    from sea_export.edit.layer_edit import LayerEdit
    from sea_export.edit.spectral_edit import SpectralEdit, compose, load_edit
    from sea_export.effect.effect_options import EffectOptions
    from sea_export.errors import InputError, SeaExportError
    from sea_export.evaluation.evaluate import Evaluation
    from sea_export.evaluation.inspection import Inspection
    from sea_export.evaluation.side_by_side import ModelComparison
    from sea_export.extraction.extract import Extraction, extract
    from sea_export.files.recipes import Recipes, recipes
    from sea_export.fitting.fit import fit
    from sea_export.hub.push import Pushed, SavedAndPushed, push
    from sea_export.importing.import_edit import import_edit
    from sea_export.interface.examining import check, diagnose
    from sea_export.interface.fitting_and_saving import fit_and_save
    from sea_export.interface.inspecting import inspect
    from sea_export.interface.loaded_base import LoadedBase, load
    from sea_export.interface.measured_fit import fit_and_measure
    from sea_export.interface.measuring import compare, evaluate
    from sea_export.interface.repeating import reproduce
    from sea_export.interface.searching import TunedModel, tune
    from sea_export.model.diff import CheckpointDifference
    from sea_export.model.diff_models import diff
    from sea_export.model.gguf_diff import GgufDifference
    from sea_export.model.run_options import RunOptions
    from sea_export.model.targets import Target
    from sea_export.options import CaptureOptions, EditOptions, ExportOptions, FitOptions
    from sea_export.patches.apply_patch import AppliedPatch, apply_patch
    from sea_export.patches.make_patch import MadePatch, make_patch
    from sea_export.saving import SaveResult, save
    from sea_export.verification.reproduce import Reproduction
    from sea_export.verification.verification import Verification
    from sea_export.verification.verify import verify

    __version__: str

__all__ = [
    "AppliedPatch",
    "CaptureOptions",
    "CheckpointDifference",
    "Demonstration",
    "DemonstrationCheck",
    "DemonstrationOptions",
    "Diagnosis",
    "EditOptions",
    "EffectOptions",
    "Evaluation",
    "ExportOptions",
    "Extraction",
    "FitOptions",
    "GgufDifference",
    "InputError",
    "Inspection",
    "LayerEdit",
    "LoadedBase",
    "MadePatch",
    "ModelComparison",
    "ProgressCallback",
    "Pushed",
    "Recipes",
    "Reproduction",
    "RunOptions",
    "SaveResult",
    "SavedAndPushed",
    "SeaExportError",
    "SpectralEdit",
    "Target",
    "TunedModel",
    "Verification",
    "__version__",
    "apply_patch",
    "check",
    "compare",
    "compose",
    "diagnose",
    "diff",
    "evaluate",
    "extract",
    "fit",
    "fit_and_measure",
    "fit_and_save",
    "import_edit",
    "inspect",
    "load",
    "load_demonstrations",
    "load_edit",
    "make_patch",
    "open_layerwise",
    "push",
    "recipes",
    "reproduce",
    "save",
    "tune",
    "verify",
]

_MODULES = {
    "capture.offloaded": ("open_layerwise",),
    "capture.progress_callback": ("ProgressCallback",),
    "demonstrations.demonstration": ("Demonstration",),
    "demonstrations.demonstration_options": ("DemonstrationOptions",),
    "demonstrations.load": ("load_demonstrations",),
    "doctor.demonstration_check": ("DemonstrationCheck",),
    "doctor.diagnose": ("Diagnosis",),
    "edit.layer_edit": ("LayerEdit",),
    "edit.spectral_edit": (
        "SpectralEdit",
        "compose",
        "load_edit",
    ),
    "effect.effect_options": ("EffectOptions",),
    "errors": (
        "InputError",
        "SeaExportError",
    ),
    "evaluation.evaluate": ("Evaluation",),
    "evaluation.inspection": ("Inspection",),
    "evaluation.side_by_side": ("ModelComparison",),
    "extraction.extract": (
        "Extraction",
        "extract",
    ),
    "files.recipes": (
        "Recipes",
        "recipes",
    ),
    "fitting.fit": ("fit",),
    "hub.push": (
        "Pushed",
        "SavedAndPushed",
        "push",
    ),
    "importing.import_edit": ("import_edit",),
    "interface.examining": (
        "check",
        "diagnose",
    ),
    "interface.fitting_and_saving": ("fit_and_save",),
    "interface.inspecting": ("inspect",),
    "interface.loaded_base": (
        "LoadedBase",
        "load",
    ),
    "interface.measured_fit": ("fit_and_measure",),
    "interface.measuring": (
        "compare",
        "evaluate",
    ),
    "interface.repeating": ("reproduce",),
    "interface.searching": (
        "TunedModel",
        "tune",
    ),
    "model.diff": ("CheckpointDifference",),
    "model.diff_models": ("diff",),
    "model.gguf_diff": ("GgufDifference",),
    "model.run_options": ("RunOptions",),
    "model.targets": ("Target",),
    "options": (
        "CaptureOptions",
        "EditOptions",
        "ExportOptions",
        "FitOptions",
    ),
    "patches.apply_patch": ("AppliedPatch", "apply_patch"),
    "patches.make_patch": (
        "MadePatch",
        "make_patch",
    ),
    "saving": (
        "SaveResult",
        "save",
    ),
    "verification.reproduce": ("Reproduction",),
    "verification.verification": ("Verification",),
    "verification.verify": ("verify",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sea-export")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _found(name)


@functools.cache
def _found(name: str) -> Any:
    """What has a name of the interface. Functions tell their errors in the words of Python."""
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not isinstance(found, types.FunctionType):
        return found
    from sea_export.edit.python_words import speaks_python

    return speaks_python(found)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
