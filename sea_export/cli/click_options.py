"""Click options made from the option classes: a command is handed the objects, and never a dictionary of values."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["cache_option", "layerwise_option", "options", "visibility_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]


def options(**classes: type) -> _Decorator:
    """Adds one Click option for each field of option classes, and hands a command the objects made of them.

    Args:
        classes: parameter of the command -> option class. A class whose fields are option classes themselves gives
            their options too.

    Raises:
        InputError: a value is wrong, as the class says. It is raised when the command is called, before its body.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def build_and_call(*arguments: Any, **values: Any) -> Any:
            built = {parameter: _build(kind, values) for parameter, kind in classes.items()}
            own = {name for kind in classes.values() for name, _, _ in _declared(kind)}
            rest = {name: value for name, value in values.items() if name not in own}
            return command(*arguments, **rest, **built)

        decorated: Any = build_and_call
        for kind in reversed(classes.values()):
            for _, item, annotation in reversed(list(_declared(kind))):
                decorated = _click_option(item, annotation)(decorated)
        return typing.cast(_Command, decorated)

    return decorate


def _declared(kind: type) -> Iterator[tuple[str, Field[Any], Any]]:
    """Name, field and type of every option of a class, those of its nested classes last."""
    annotations, nested = typing.get_type_hints(kind), []
    for item in fields(kind):
        if is_dataclass(item.default_factory):
            nested.append(item.default_factory)
        elif "help" in item.metadata:
            yield item.name, item, annotations[item.name]
    for one in nested:
        yield from _declared(typing.cast(type, one))


def _build(kind: Any, values: Any) -> Any:
    made = {}
    for item in fields(kind):
        if is_dataclass(item.default_factory):
            made[item.name] = _build(item.default_factory, values)
        elif "help" in item.metadata:
            made[item.name] = values[item.name]
    return kind(**made)


def _click_option(item: Field[Any], annotation: Any) -> _Decorator:
    name = item.name.replace("_", "-")
    optional = isinstance(annotation, types.UnionType)
    if optional:
        annotation = next(member for member in typing.get_args(annotation) if member is not type(None))
    if annotation is bool:
        both = item.default or optional
        return click.option(
            f"--{name}/--no-{name}" if both else f"--{name}",
            item.name,
            is_flag=True,
            default=item.default,
            show_default=bool(item.default),
            help=item.metadata["help"],
        )
    choices = item.metadata["choices"]
    return click.option(
        f"--{name}",
        item.name,
        type=click.Choice(choices) if choices else annotation,
        default=item.default,
        show_default=item.default is not None,
        help=item.metadata["help"],
    )


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
