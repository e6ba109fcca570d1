"""Click options that are made from the option classes. A command gets objects of these classes."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from sea_export.cli.completion import completer
from sea_export.options import option_name

__all__ = ["cache_option", "options", "single_option", "visibility_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]


def options(**classes: type) -> _Decorator:
    """Adds one Click option for each field of option classes, and passes a command objects of these classes.

    Args:
        classes: parameter of the command -> option class. The options of nested option classes are added too.

    Raises:
        InputError: a value is wrong. It is raised when the command is called, before its body.
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
    annotations = typing.get_type_hints(kind)
    nested: list[Any] = []
    for item in fields(kind):
        if is_dataclass(item.default_factory):
            nested.append(item.default_factory)
        elif "help" in item.metadata:
            yield item.name, item, annotations[item.name]
    for one in nested:
        yield from _declared(one)


def _build(kind: Any, values: Any) -> Any:
    made = {}
    for item in fields(kind):
        if is_dataclass(item.default_factory):
            made[item.name] = _build(item.default_factory, values)
        elif "help" in item.metadata:
            made[item.name] = values[item.name]
    return kind(**made)


def _click_option(item: Field[Any], annotation: Any) -> _Decorator:
    details = item.metadata
    name, default = option_name(item), item.default
    optional, several = isinstance(annotation, types.UnionType), typing.get_origin(annotation) is tuple
    if optional or several:
        annotation = next(one for one in typing.get_args(annotation) if one is not type(None))
    if annotation is bool:
        both = default or optional
        return click.option(
            f"{name}/--no-{name[2:]}" if both else name,
            item.name,
            is_flag=True,
            default=default,
            show_default=bool(default),
            help=details["help"],
        )
    return click.option(
        name,
        item.name,
        type=_click_type(item, annotation),
        multiple=several,
        **({"required": True} if default is MISSING else {"default": default}),
        show_default=default not in (None, (), MISSING),
        metavar=details["metavar"],
        help=details["help"],
        shell_complete=completer(name, details["metavar"]) if annotation is str else None,
    )


def _click_type(item: Field[Any], annotation: Any) -> Any:
    choices, path = item.metadata["choices"], item.metadata["path"]
    minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
    if choices is not None:
        return click.Choice(choices)
    if annotation is Path:
        return click.Path(path_type=Path, file_okay=path != "directory", dir_okay=path != "file")
    return annotation if minimum is None else click.IntRange(min=minimum, max=maximum)


def single_option(options: type, name: str) -> _Decorator:
    """One option of a class, for a command that does not have the others."""
    item = next(one for one in fields(typing.cast(Any, options)) if one.name == name)
    return _click_option(item, typing.get_type_hints(options)[name])


visibility_option = click.option(
    "--public/--private",
    default=False,
    show_default=True,
    help="Who may see a repository on the Hub that is made; to push to one that is public, --public is needed.",
)


cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that keeps captured activations, and statistics of gradients: other settings on the same ones need "
    "no pass over the model.",
)
