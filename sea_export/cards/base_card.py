"""The metadata of a base's model card that is valid for models made from it, such as the license and the languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sea_export.errors import InputError
from sea_export.files.reading import open_file
from sea_export.model.checkpoint import CARD

if TYPE_CHECKING:
    from sea_export.model.base import Base

__all__ = ["base_metadata", "license_warning"]

_MAXIMUM_CARD_BYTES = 1_000_000
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_METADATA = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", re.DOTALL)
# CC-BY-ND-4.0, CC-BY-NC-ND-3.0 and their like.
_NO_DERIVATIVES = re.compile(r"(^|[^a-z])(nd|no-?derivatives?)([^a-z]|$)")


def base_metadata(base: Base) -> dict[str, Any]:
    """License, languages and task from the base's model card; empty if there is no card, or none that can be read.

    Args:
        base: the base. If it is on the Hub, a license file that its card names gets its full address.
    """
    stated = _stated(base.checkpoint.directory / CARD)
    metadata = {key: stated[key] for key in _INHERITED if _is_text(stated.get(key))}
    link = metadata.get("license_link")
    if base.revision is not None and isinstance(link, str) and "://" not in link:
        metadata["license_link"] = f"https://huggingface.co/{base.name}/blob/{base.revision}/{Path(link).as_posix()}"
    return metadata


def _stated(card: Path) -> dict[str, Any]:
    """The metadata of a card; empty if it has none that can be read.

    Every value is a text, a list or an object, because tags of YAML, which make other values of texts, are not obeyed.
    """
    try:
        with open_file(card) as stream:
            text = stream.read(_MAXIMUM_CARD_BYTES + 1)
        found = _METADATA.match(text.decode("utf-8-sig").replace("\r\n", "\n"))
        if len(text) > _MAXIMUM_CARD_BYTES or found is None:
            return {}
        stated = yaml.load(found[1], Loader=yaml.BaseLoader)
    except (InputError, UnicodeDecodeError, RecursionError, yaml.YAMLError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def license_warning(name: str, metadata: Mapping[str, Any]) -> str | None:
    """A warning, without a full stop, if the license of a base forbids to share an edited model; else None.

    Args:
        name: the name of the base.
        metadata: what `base_metadata` gave.
    """
    for key in ("license", "license_name"):
        stated = metadata.get(key)
        for license in stated if isinstance(stated, list) else [stated]:
            if license is not None and _NO_DERIVATIVES.search(str(license).lower()):
                return (
                    f"the license of {name} ({license}) forbids to share derivatives, and an edited model is one: "
                    "keep it to yourself, or ask the owner of the base"
                )
    return None
