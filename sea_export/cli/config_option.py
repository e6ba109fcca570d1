"""`--config` and `--print-config`, which every command has: its options from a file, and as the text of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sea_export.errors import InputError
from sea_export.files.nearest_name import meant, missing
from sea_export.files.option_file import option_file_text, read_option_file

__all__ = ["config_options", "print_config_if_asked"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_COMMAND = "command"
_ASKED = "sea_export.print_config"


def config_options(command: _Command) -> _Command:
    """Adds both options to a command, which has to call `print_config_if_asked` before it does anything."""
    for option in (_config_option, _print_config_option):
        command = option(command)
    return command


def print_config_if_asked(context: click.Context) -> None:
    """Prints the present command as a file for `--config`, and ends it, if `--print-config` was given.

    Args:
        context: that of the command. Its parameters are known.
    """
    if not context.meta.get(_ASKED):
        return
    values: dict[str, object] = {_COMMAND: _name(context)}
    for name, parameter in _by_name(context.command).items():
        value = context.params.get(str(parameter.name))
        if value is not None and value != ():
            values[name] = _plain(value)
    click.echo(option_file_text(values), nl=False)
    context.exit()


def _plain(value: Any) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float)) else str(value)


def _by_name(command: click.Command) -> dict[str, click.Parameter]:
    """The parameters of a command by their names in a file: options without their hyphens, and arguments."""
    return {one.opts[0].lstrip("-"): one for one in command.params if one.name not in ("config", "print_config")}


def _apply(context: click.Context, option: click.Parameter, file: Path | None) -> None:
    """Gives the command the values of a file as defaults, so that the command line comes before them."""
    if file is None:
        return
    if not file.exists():
        raise missing(file, "Check the path; sea-export recipes shows files to begin with.")
    values = _recorded(file, context) if _is_manifest(file) else _stated(file, context)
    context.default_map = {**(context.default_map or {}), **values}


def _is_manifest(file: Path) -> bool:
    return file.is_dir() or file.suffix == ".json"


def _recorded(file: Path, context: click.Context) -> dict[str, object]:
    """The values of a manifest that the command has."""
    from sea_export.export.manifest import read_manifest
    from sea_export.verification.recorded_options import recorded_options
    from sea_export.verification.recorded_run import RecordedRun

    own = {str(one.name) for one in context.command.params}
    recorded = recorded_options(RecordedRun.of(read_manifest(file)))
    values = {name: value for name, value in recorded.items() if name in own}
    if not values:
        raise InputError(f"{file}: none of its options is one of {_name(context)}. Give it to fit-and-save.")
    return values


def _stated(file: Path, context: click.Context) -> dict[str, object]:
    """The values of a YAML file, by the names that click knows."""
    stated = read_option_file(file)
    command = stated.pop(_COMMAND, _name(context))
    if command != _name(context):
        raise InputError(f"{file}: it is for sea-export {command}, not for {_name(context)}. Give it to that command.")
    known = _by_name(context.command)
    values: dict[str, object] = {}
    for name, value in stated.items():
        if name not in known:
            raise InputError(
                f"{file}: {name} is no option of {_name(context)}{meant(name, known)}. sea-export "
                f"{_name(context)} --help names them."
            )
        values[str(known[name].name)] = _fitting(value, known[name], file, name)
    return values


def _fitting(value: str | list[str], parameter: click.Parameter, file: Path, name: str) -> str | list[str]:
    """A list for a parameter that may be given several times, and a single value for any other."""
    if getattr(parameter, "multiple", False) or parameter.nargs != 1:
        return [value] if isinstance(value, str) else value
    if isinstance(value, list):
        raise InputError(f"{file}: {name} has {len(value)} values, and takes one. Give one of them.")
    return value


_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_apply,
    metavar="FILE",
    help="Take options from a YAML file (see sea-export recipes), or from the sea_export.json of an earlier run. The "
    "command line comes first.",
)
_print_config_option = click.option(
    "--print-config",
    is_flag=True,
    expose_value=False,
    callback=lambda context, option, value: context.meta.update({_ASKED: value}),
    help="Print this command as a file for --config, and do nothing else.",
)


def _name(context: click.Context) -> str:
    """The command as the user writes it after `sea-export`: two words for one of a group."""
    parents = [] if context.parent is None or context.parent.parent is None else [str(context.parent.info_name)]
    return " ".join((*parents, str(context.info_name)))
