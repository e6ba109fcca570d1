"""YAML files with the options of a command: one `name: value` a line, or `name: [value, value]`."""

from __future__ import annotations

from pathlib import Path

import yaml

from sea_export.errors import InputError, first_line
from sea_export.files.reading import open_file

__all__ = ["option_file_text", "read_option_file"]

_MAXIMUM_BYTES = 1_000_000


def read_option_file(path: Path) -> dict[str, str | list[str]]:
    """The options of a file, by name. Every value is the text that the command line would have.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, is not YAML, or holds something else.
    """
    with open_file(path) as stream:
        content = stream.read(_MAXIMUM_BYTES + 1)
    if len(content) > _MAXIMUM_BYTES:
        raise InputError(f"{path}: it has more than {_MAXIMUM_BYTES:,} bytes. Give a file of options.")
    try:
        # Nodes keep what a reader of values would lose: how a value is written, and names that occur twice.
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: it is not UTF-8 text. Write it in UTF-8.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: it is not YAML: {first_line(error)}{_place(error)}. Mend it there.") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}: it is not a list of options. Write one `name: value` a line.")
    values: dict[str, str | list[str]] = {}
    for key, value in root.value:
        name, line = str(key.value), key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path}, line {line}: it does not begin with the name of an option. Write `name: value`.")
        if name in values:
            raise InputError(f"{path}, line {line}: {name} occurs twice. Leave one of them out.")
        values[name] = _value(value, path, line, name)
    return values


def option_file_text(values: dict[str, object]) -> str:
    """The text of a file that `read_option_file` reads back.

    Args:
        values: name -> a text, a number, a truth value, or a list of them.
    """
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000)


def _value(node: yaml.Node, path: Path, line: int, name: str) -> str | list[str]:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(one, yaml.ScalarNode) for one in node.value):
        return [str(one.value) for one in node.value]
    raise InputError(f"{path}, line {line}: {name} is neither a value nor a list of values. Write `name: value`.")


def _place(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" (line {mark.line + 1})"
