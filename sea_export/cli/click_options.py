"""Click options made from the option classes, and what several commands share."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from sea_export.options import CaptureOptions, EditOptions, FitOptions, SaveOptions

__all__ = [
    "build_fit_options",
    "build_save_options",
    "cache_option",
    "demonstration_options",
    "fit_options",
    "layerwise_option",
    "model_options",
    "save_options",
    "visibility_option",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]


def _options_of(*classes: type) -> _Decorator:
    """One Click option a field, with the field's default, choices and help."""
    declared = [item for options in classes for item in fields(options) if "help" in item.metadata]
    types_by_name = {name: kind for options in classes for name, kind in typing.get_type_hints(options).items()}

    def decorate(command: _Command) -> _Command:
        for item in reversed(declared):
            command = _click_option(item, types_by_name[item.name])(command)
        return command

    return decorate


def _click_option(item: Field[Any], kind: Any) -> _Decorator:
    name = item.name.replace("_", "-")
    if kind is bool:
        flag = f"--{name}/--no-{name}" if item.default else f"--{name}"
        return click.option(
            flag, item.name, is_flag=True, default=item.default, show_default=item.default, help=item.metadata["help"]
        )
    if isinstance(kind, types.UnionType):
        kind = next(member for member in typing.get_args(kind) if member is not type(None))
    choices = item.metadata["choices"]
    return click.option(
        f"--{name}",
        item.name,
        type=click.Choice(choices) if choices else kind,
        default=item.default,
        show_default=item.default is not None,
        help=item.metadata["help"],
    )


def _build(options: Any, values: dict[str, Any]) -> Any:
    factories: dict[str, Any] = {item.name: item.default_factory for item in fields(options)}
    nested = {name: factory for name, factory in factories.items() if is_dataclass(factory)}
    own = {item.name: values[item.name] for item in fields(options) if item.name not in nested}
    return options(**own, **{name: _build(kind, values) for name, kind in nested.items()})


def fit_options(command: _Command) -> _Command:
    """Adds every option of a fit."""
    return _options_of(FitOptions, EditOptions, CaptureOptions)(command)


def build_fit_options(values: dict[str, Any]) -> FitOptions:
    """The options that `fit_options` added, as one object. Raises InputError on a wrong value."""
    built: FitOptions = _build(FitOptions, values)
    return built


def save_options(command: _Command) -> _Command:
    """Adds every option of a save."""
    return _options_of(SaveOptions)(command)


def build_save_options(values: dict[str, Any]) -> SaveOptions:
    """The options that `save_options` added, as one object. Raises InputError on a wrong value."""
    built: SaveOptions = _build(SaveOptions, values)
    return built


def demonstration_options(command: _Command) -> _Command:
    """Adds where demonstrations come from."""
    for option in (
        click.option("--limit", type=click.IntRange(min=2), help="Use a seeded sample of that many demonstrations."),
        click.option("--negative-field", help="Column of the bad completion."),
        click.option("--positive-field", help="Column of the good completion."),
        click.option("--prompt-field", help="Column of the prompt."),
        click.option(
            "--demonstrations",
            default="builtin:truthfulness",
            show_default=True,
            help="JSONL, JSON, CSV or Parquet file, Hub dataset id, builtin:truthfulness or builtin:fairness.",
        ),
    ):
        command = option(command)
    return command


layerwise_option = click.option(
    "--layerwise/--no-layerwise",
    default=None,
    help="Have one decoder layer at a time in memory, or all of them; by default all if they fit.",
)


visibility_option = click.option(
    "--public/--private",
    default=False,
    show_default=True,
    help="Who may see a repository on the Hub that is made; to push to one that is public, --public is needed.",
)


cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that keeps captured activations: other settings on the same ones need no forward pass.",
)


def model_options(command: _Command) -> _Command:
    """Adds how a model is loaded."""
    for option in (
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto: a GPU if any."),
        click.option(
            "--dtype",
            type=click.Choice(("auto", "float32", "bfloat16", "float16")),
            default="auto",
            show_default=True,
            help="What to compute in; auto: as stored. A .gguf or dequantized model is written out in it (auto: "
            "bfloat16).",
        ),
        click.option("--dequantize", is_flag=True, help="Make plain weights of a quantized model's."),
        click.option(
            "--device-map",
            type=click.Choice(("auto",)),
            help="Spread the model over all GPUs, and over what else there is (accelerate).",
        ),
        layerwise_option,
        click.option("--revision", help="Revision of the model on the Hub."),
    ):
        command = option(command)
    return command
