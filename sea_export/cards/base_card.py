"""The metadata of a base's model card that is valid for models made from it, such as the license and the languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from sea_export.model.base import Base
from sea_export.model.checkpoint import CARD

__all__ = ["base_metadata", "license_warning"]

_MAXIMUM_CARD_BYTES = 1_000_000
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
# CC-BY-ND-4.0, CC-BY-NC-ND-3.0 and their like.
_NO_DERIVATIVES = re.compile(r"(^|[^a-z])(nd|no-?derivatives?)([^a-z]|$)")


def base_metadata(base: Base) -> dict[str, Any]:
    """License, languages and task from the base's model card; empty if there is no card, or none that can be read.

    Args:
        base: the base. If it is on the Hub, a license file that its card names gets its full address.
    """
    card = base.checkpoint.directory / CARD
    if not card.is_file() or card.stat().st_size > _MAXIMUM_CARD_BYTES:
        return {}
    try:
        stated = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, RecursionError, YAMLError):  # a card without valid metadata has nothing to take over
        return {}
    metadata = {key: stated[key] for key in _INHERITED if _is_text(stated.get(key))}
    link = metadata.get("license_link")
    if base.revision is not None and isinstance(link, str) and "://" not in link:
        metadata["license_link"] = f"https://huggingface.co/{base.name}/blob/{base.revision}/{Path(link).as_posix()}"
    return metadata


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
