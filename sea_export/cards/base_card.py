"""The metadata of a base's model card that is valid for models made from it, such as the license and the languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sea_export.errors import InputError
from sea_export.files.reading import open_file, read_json_object
from sea_export.model.checkpoint import CARD
from sea_export.model.location import is_hub_id

if TYPE_CHECKING:
    from sea_export.model.base import Base

__all__ = ["base_facts", "base_metadata", "license_warning"]

_MAXIMUM_CARD_BYTES = 1_000_000
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_METADATA = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", re.DOTALL)
_CACHED = re.compile(r"/models--([\w.-]+?--[\w.-]+)/snapshots/[^/]+$")
# CC-BY-ND-4.0, CC-BY-NC-ND-3.0 and their like.
_NO_DERIVATIVES = re.compile(r"(^|[^a-z])(nd|no-?derivatives?)([^a-z]|$)")


def base_facts(base: Base, stated_id: str | None = None) -> dict[str, Any]:
    """What the card of an output takes over from its base, as entries of the manifest.

    Args:
        base: the base.
        stated_id: the Hub id of which the base is a local copy, if the user says so.

    Returns:
        `metadata` (see `base_metadata`); `chat`, whether it has a chat template; and of a local copy `hub_id`, its id
        on the Hub, if that is known.
    """
    hub_id = None if base.revision is not None else stated_id or _guessed_id(base)
    return {
        "metadata": base_metadata(base, hub_id),
        "chat": _has_chat_template(base.checkpoint.directory),
        **({} if hub_id is None else {"hub_id": hub_id}),
    }


def _guessed_id(base: Base) -> str | None:
    """The Hub id of a local copy, as the cache of the Hub or its own config tells it; None if neither does.

    A config keeps the name of the model that a fine-tuned one was made from. So it counts only where the directory has
    the same name.
    """
    if base.source is None:
        return None
    cached = _CACHED.search(base.source.resolve().as_posix())
    if cached is not None:
        return "/".join(cached[1].split("--"))
    named = base.checkpoint.config.get("_name_or_path")
    if not isinstance(named, str) or not is_hub_id(named):
        return None
    same = named.rpartition("/")[2].lower() == base.source.resolve().name.lower()
    return named if same else None


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_json_object(directory / "tokenizer_config.json").get("chat_template"))
    except InputError:  # there is none, or nobody can read it: the card then asks as one asks a model without
        return False


def base_metadata(base: Base, hub_id: str | None = None) -> dict[str, Any]:
    """License, languages and task from the base's model card; empty if there is no card, or none that can be read.

    Args:
        base: the base. If it is on the Hub, a license file that its card names gets its full address.
        hub_id: the Hub id of which it is a local copy; None if none is known.
    """
    stated = _stated(base.checkpoint.directory / CARD)
    metadata = {key: stated[key] for key in _INHERITED if _is_text(stated.get(key))}
    link = metadata.get("license_link")
    if isinstance(link, str) and "://" not in link and (base.revision is not None or hub_id is not None):
        address = f"{base.name}/blob/{base.revision}" if base.revision is not None else f"{hub_id}/blob/main"
        metadata["license_link"] = f"https://huggingface.co/{address}/{Path(link).as_posix()}"
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
