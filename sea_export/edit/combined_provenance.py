"""Where combined edits come from: records of edits that were scaled, restricted to layers, multiplied or added up.

A record of an edit that was made of others has them under `composed`, and how under `composition`: `product` (the
default) or `sum`. `sea_export.edit.spectral_edit.combined` makes such an edit again from its members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sea_export.errors import InputError

__all__ = ["combined_provenance", "is_sum", "restricted_provenance", "scaled_provenance"]

_MEASURED = ("effect", "examples")
"""What was measured of an edit, and does not hold of it at another strength or with fewer layers."""


def is_sum(provenance: Mapping[str, Any]) -> bool:
    """Whether an edit is the sum of the changes of others, and not their product.

    Args:
        provenance: that of an edit that has `composed`.
    """
    return provenance.get("composition") == "sum"


def combined_provenance(members: Sequence[Mapping[str, Any]], *, as_sum: bool) -> dict[str, Any]:
    """The provenance of a product or of a sum.

    Args:
        members: those of the edits that it is made of, in their order.
        as_sum: whether their changes were added up.

    Raises:
        InputError: the edits were fitted on different bases.
    """
    bases = [member.get("base") or {} for member in members]
    known = {tuple(sorted(base["weights"].values())): base.get("name") for base in bases if base.get("weights")}
    if len(known) > 1:
        raise InputError(
            f"edits: they were fitted on different weights ({', '.join(map(str, known.values()))}). Fit all of them on "
            "the same base."
        )
    how = {"composition": "sum", "strength": 1.0} if as_sum else {}
    return {"base": members[0].get("base"), "composed": [dict(member) for member in members], **how}


def restricted_provenance(provenance: Mapping[str, Any], kept_targets: Iterable[str]) -> dict[str, Any]:
    """The provenance of an edit of which only some targets were kept.

    Args:
        provenance: that of the whole edit.
        kept_targets: the names of the targets, and of the linear maps with changed weights, that were kept.
    """
    kept = {name: entry for name, entry in provenance.items() if name not in _MEASURED}
    return {**kept, "targets": list(kept_targets)}


def scaled_provenance(provenance: Mapping[str, Any], strength: Callable[[float], float]) -> dict[str, Any]:
    """The provenance of an edit at another strength. It names the fitted one, and nothing that was measured.

    Args:
        provenance: that of the edit at its own strength.
        strength: gives the strength for the one that the edit has.
    """
    if "composed" in provenance and not is_sum(provenance):
        return {**provenance, "composed": [scaled_provenance(one, strength) for one in provenance["composed"]]}
    scaled = {name: entry for name, entry in provenance.items() if name not in _MEASURED}
    if "composed" in provenance:
        scaled["strength"] = strength(provenance.get("strength", 1.0))
    elif options := provenance.get("options"):
        fitted = options["edit"]["strength"]
        scaled["options"] = {**options, "edit": {**options["edit"], "strength": strength(fitted)}}
        scaled["fitted_strength"] = provenance.get("fitted_strength", fitted)
    elif imported := provenance.get("imported"):
        # Of weights that keep their norms the change is scaled, which is not that of another coefficient.
        entry, default = ("strength", 1.0) if "keep_norm" in imported else ("coefficient", imported["coefficient"])
        scaled["imported"] = {**imported, entry: strength(imported.get(entry, default))}
    return scaled
