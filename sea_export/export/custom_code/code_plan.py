"""The plan of a custom-code export: the tensors of the edit, the config, and the code that applies the edit.

This is the only format for edits that weights cannot hold. The weight files of the base are copied, or linked if that
is asked for, and never changed. The code, `modeling_sea.py`, is made from the template in this folder and subclasses
transformers' classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

import transformers
from torch import Tensor
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.custom_code.run_time import run_time_steps
from sea_export.export.stored_layout import stored_layout
from sea_export.files.reading import open_file, read_json_object
from sea_export.model.architecture import OutputProjection, find_output_projections
from sea_export.model.base import Base
from sea_export.model.checkpoint import INDEX
from sea_export.model.load_model import auto_classes, check_size, skeleton
from sea_export.model.targets import Target
from sea_export.versions import library_versions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "CODE_FILE",
    "EDIT_SHARD",
    "OWN_FILES",
    "CodePlan",
    "EditedModules",
    "find_edited_modules",
    "plan_custom_code",
]

CODE_FILE = "modeling_sea.py"
_CODE_MODULE = CODE_FILE.removesuffix(".py")
EDIT_SHARD = "sea-edit.safetensors"
BASE_PREFIX = "base-"
"""The prefix of the names of the base's weight files. A later save_pretrained into the output then writes to other
files, and never into those that may be linked to the base's."""

OWN_FILES = (CODE_FILE, EDIT_SHARD, INDEX)
"""The files that are written instead of any that a base has under these names."""
_EDITED_CLASSES = ("AutoConfig", "AutoModel")
"""The beginnings of the names of transformers' classes that load a config or a model, edited or not."""

_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model"}


@dataclass(frozen=True)
class EditedModules:
    """The modules of a base that are edited."""

    model: PreTrainedModel
    """The skeleton of the base, whose classes the exported code builds on."""
    projections: tuple[OutputProjection, ...]
    stored_names: Mapping[str, str]
    """Name of a module in the model -> the beginning of the names of its tensors in the checkpoint."""


@dataclass(frozen=True)
class CodePlan:
    """What a custom-code export adds to a base."""

    tensors: Mapping[str, Tensor]
    """The tensors of the edit by stored name."""
    config: Mapping[str, Any]
    """The contents of config.json."""
    source: str
    """The contents of `modeling_sea.py`."""
    link: bool = False
    """Whether the weight files are hard links to the base's, instead of copies."""


def find_edited_modules(targets: Iterable[Target], base: Base) -> EditedModules:
    """Finds the edited modules, without loading the model.

    Args:
        targets: what is to be edited.
        base: the base.

    Raises:
        InputError: exported code cannot import the classes of the base, a module is not found, or its weights are not
            stored.
    """
    taken = {f"{BASE_PREFIX}{file}" for file in base.checkpoint.weight_files} & set(base.checkpoint.side_files())
    if taken:
        raise InputError(
            f"{base.name}: it has a file {min(taken)}, and the export gives this name to its weights. Rename the file, "
            "or choose --format merged."
        )
    if base.is_quantized:  # the modules of the same model without quantization have the same names
        model = skeleton(_unquantized(base.config), trust_remote_code=base.trust_remote_code)
        check_size(model, base.checkpoint)
        projections = tuple(find_output_projections(model, targets))
    else:
        model, projections = base.skeleton, base.output_projections(targets)
    for kind in _classes(model):
        _module_of(kind, base)  # raises for a class that cannot be imported
    if not base.is_quantized:
        layout = stored_layout(model, base.checkpoint)
        for weight in (weight for projection in projections for weight in projection.weights):
            layout.find(weight.name, weight.output_dim)
    stored_names = {one.module_name: _stored_module(one.module_name, model, base) for one in projections}
    return EditedModules(model, projections, stored_names)


def plan_custom_code(edit: SpectralEdit, base: Base, modules: EditedModules, *, link: bool = False) -> CodePlan:
    """Determines everything that the export adds to the base, before anything is written.

    Args:
        edit: the edit, of any kind.
        base: the base.
        modules: what `find_edited_modules` found for the edit's targets.
        link: whether the weight files are hard links to the base's, instead of copies.

    Raises:
        InputError: the edit has another hidden size than the base.
    """
    edit.check_sizes(modules.projections)
    model = modules.model
    tensors: dict[str, Tensor] = {}
    edits = _edits_of(base)
    for projection in modules.projections:
        name = projection.module_name.removeprefix(f"{model.base_model_prefix}.")
        earlier = edits.get(name, [])
        steps = run_time_steps(edit.layers[projection.target])
        edits[name] = [*earlier, *(step.settings for step in steps)]
        for position, step in enumerate(steps, start=len(earlier)):
            for name, tensor in step.tensors.items():
                tensors[f"{modules.stored_names[projection.module_name]}.sea_edit.{position}.{name}"] = tensor
    return CodePlan(tensors, _config(base, model, edits), _source(edit, base, model), link)


# The base


def _unquantized(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the same model without quantization: its modules have the same names."""
    plain = type(config).from_dict(config.to_dict())
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    return plain


def _classes(model: PreTrainedModel) -> tuple[type, ...]:
    """The classes of the base on which the exported code builds: config, model with its head, model without it."""
    return type(model.config), type(model), type(model.base_model)


def _module_of(kind: type, base: Base) -> str:
    """The module from which the exported code imports a class: transformers, or a file of the base's beside it."""
    if getattr(transformers, kind.__name__, None) is kind:
        return "transformers"
    if kind.__module__.startswith("transformers.models."):
        raise InputError(
            f"{base.name}: transformers does not export its class {kind.__name__}, so exported code cannot build on "
            "it. Choose --format merged."
        )
    package, _, module = kind.__module__.rpartition(".")
    foreign = package.partition(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME
    replaced = module == _CODE_MODULE and not _is_export(base)  # by the exported code itself
    if foreign and not replaced and (base.checkpoint.directory / f"{module}.py").is_file():
        return f".{module}"
    raise InputError(
        f"{base.name}: its class {kind.__name__} is in {kind.__module__}, which is no file beside its weights, so "
        "exported code cannot build on it. Choose --format merged."
    )


def _is_export(base: Base) -> bool:
    """Whether the base is a custom-code export itself. Then its code takes the new edits after its own."""
    return "sea_edit" in base.checkpoint.config and type(base.config).__module__.endswith(f".{_CODE_MODULE}")


def _edits_of(base: Base) -> dict[str, list[dict[str, Any]]]:
    """The edits that the base applies already, by module."""
    return {name: list(steps) for name, steps in base.checkpoint.config["sea_edit"].items()} if _is_export(base) else {}


def _stored_module(name: str, model: PreTrainedModel, base: Base) -> str:
    """The name of a module in the checkpoint, with or without the prefix of the base model. Where transformers renames
    stored tensors it is the name in the model, which transformers accepts too."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if any(stored.startswith(f"{candidate}.") for stored in base.checkpoint.tensors):
            return candidate
    return name


# What is written


def _config(base: Base, model: PreTrainedModel, edits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    config = dict(base.checkpoint.config)
    config.pop("transformers_weights", None)
    if _is_export(base):
        return {**config, "sea_edit": edits}
    own_config, causal, plain = (f"{_CODE_MODULE}.Sea{kind.__name__}" for kind in _classes(model))
    tokenizer_class = _tokenizer_class(base, config)
    if tokenizer_class is not None:
        config["tokenizer_class"] = tokenizer_class
    # Classes of models that the config of the base names are left out, because they would load without the edit.
    kept = {
        name: place for name, place in (config.get("auto_map") or {}).items() if not name.startswith(_EDITED_CLASSES)
    }
    return {
        **config,
        "model_type": _model_type(model),
        "architectures": [causal.rpartition(".")[2]],
        "auto_map": {
            **(kept if base.trust_remote_code else {}),
            "AutoConfig": own_config,
            "AutoModel": plain,
            **{kind.__name__: causal for kind in auto_classes(model.config)},
        },
        "sea_edit": edits,
    }


def _model_type(model: PreTrainedModel) -> str:
    return f"sea_{model.config.model_type}"


def _tokenizer_class(base: Base, config: Mapping[str, Any]) -> str | None:
    """The class of the base's tokenizer, as its files or its config name it; None if there is no tokenizer.

    If they do not name it, transformers chooses it by the type of the model, and the export has another type. Also,
    pipelines of transformers 4 look for the tokenizer of a model of unknown type only if its config names a class.
    """
    side_files = base.checkpoint.side_files()
    named = config.get("tokenizer_class")
    if named is None and "tokenizer_config.json" in side_files:
        named = read_json_object(base.checkpoint.directory / "tokenizer_config.json").get("tokenizer_class")
    if named is not None or not _TOKENIZER_FILES.intersection(side_files):
        return named
    name = type(base.tokenizer).__name__
    # All releases know the old name of the same class.
    return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name


def _source(edit: SpectralEdit, base: Base, model: PreTrainedModel) -> str:
    if _is_export(base):
        with open_file(base.checkpoint.directory / CODE_FILE) as stream:
            return stream.read().decode()
    template = (resources.files("sea_export.export.custom_code") / f"{CODE_FILE}.template").read_text(encoding="utf-8")
    name = _harmless(base.name)
    config, causal, plain = _classes(model)
    return Template(template).substitute(
        title=f"{name.rpartition('/')[2]} with a spectral edit of its activations (SEA).",
        version=library_versions()["sea-export"],
        origin=_origin(edit, base),
        imports=_imports((config, causal, plain), base),
        config_class=config.__name__,
        model_class=plain.__name__,
        causal_class=causal.__name__,
        plain_class="" if plain is causal else _PLAIN_CLASS.format(name=plain.__name__),
        model_type=_model_type(model),
        base_type=model.config.model_type,
        auto_class=auto_classes(model.config)[0].__name__,
    )


_PLAIN_CLASS = '''class Sea{name}(Edited, {name}):
    """The base model without its language-modelling head, edited."""


Sea{name}.register_for_auto_class("AutoModel")


'''


def _imports(classes: Iterable[type], base: Base) -> str:
    """The statements that import the classes of the base."""
    names: dict[str, set[str]] = {}
    for kind in classes:
        names.setdefault(_module_of(kind, base), set()).add(kind.__name__)
    return "\n".join(
        f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names, reverse=True)
    )


def _origin(edit: SpectralEdit, base: Base) -> str:
    revision = f", revision {_harmless(base.revision)}" if base.revision else ""
    lines = [f"Base: {_harmless(base.name)}{revision}."]
    kinds = sorted({_kind(layer) for layers in edit.layers.values() for layer in layers})
    lines.append(f"Edit: {len(edit.targets)} modules; {'; '.join(kinds)}.")
    demonstrations = edit.provenance.get("demonstrations") or {}
    if demonstrations:
        lines.append(
            f"Fitted on {int(demonstrations['count'])} demonstrations, SHA-256 {_harmless(demonstrations['sha256'])}."
        )
    if imported := edit.provenance.get("imported"):
        lines.append(f"Imported from {_harmless(imported['source'])}, SHA-256 {_harmless(imported['sha256'])}.")
    if any("sequence" in kind for kind in kinds):
        lines.append(
            "Its normalization takes norms over all tokens of a forward call: results depend on the batch and on\n"
            "later tokens, and generation with a cache differs from generation without."
        )
    return "\n".join(lines) + "\n"


def _kind(layer: Any) -> str:
    kind = "linear" if layer.feature.is_identity else f"non-linear ({layer.feature_function})"
    return kind if layer.normalization == "none" else f"{kind}, normalized by {layer.normalization}"


def _harmless(text: str) -> str:
    """Text that can be put into a string of Python code without a special meaning."""
    return re.sub(r"[^\w./ +-]", "_", text)[:200]
