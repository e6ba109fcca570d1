"""The result of a verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sea_export.export.formats import StorageError
    from sea_export.verification.compare import Agreement

__all__ = ["Verification"]

# The names in version 1 of the manifest for some fields of a verification and of an agreement.
_RECORD_NAMES = {"fold_error": "mathematics", "rounding_error": "storage", "top1_agreement": "equal_greedy"}


@dataclass(frozen=True)
class Verification:
    """What a verification found, and what it measured. Nothing is measured where a check of the files or tensors has
    found a problem."""

    dtype: str
    """The dtype in which the base stores the edited tensors, or the name of their storage if they are requantized."""
    problems: tuple[str, ...]
    """What is outside the tolerance or not as planned, each as a clause without a full stop."""
    unchecked: tuple[str, ...]
    """What was not checked, each as a noun phrase."""
    statement: str = ""
    """What the tensors of the export are, in one sentence."""
    changed_tensors: int = 0
    """The number of tensors that differ from the base's, or that it does not have."""
    identical_tensors: int = 0
    """The number of tensors that are the base's, byte for byte."""
    identical_files: int = 0
    """The number of other files that are the base's, byte for byte."""
    weight_error: float | None = None
    """For an adapter: the largest ‖adapted W - W'‖ / ‖W' - W‖ of the weights that it changes."""
    exact: bool = True
    """False for an adapter of capped rank, which is only an approximation."""
    fold_error: Agreement | None = None
    """The run-time edit compared with the export in memory, both in float32."""
    rounding_error: Agreement | None = None
    """The run-time edit (for an adapter of capped rank: the adapter in memory) compared with the stored export, which
    another process loads and computes in float32."""
    base_rounding: Agreement | None = None
    """The unedited base in float32 compared with itself in the stored dtype: the noise that users of the base already
    accept. For quantized weights: compared with itself with edited outputs rounded in another way. For requantized
    weights: compared with itself with these moved at random within what their storage rounds."""
    effect: Agreement | None = None
    """The base compared with the run-time edit: the effect of the edit."""
    storage_errors: Mapping[str, StorageError] = field(default_factory=dict)
    """Name of a requantized weight -> what its storage does to the edit."""

    @property
    def passed(self) -> bool:
        """Whether the export is the edit that it should be."""
        return not self.problems

    @property
    def measured(self) -> bool:
        """Whether the predictions were compared, because files and tensors are as they should be."""
        return self.effect is not None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"passed": self.passed, **asdict(self)}

    def record(self) -> dict[str, Any]:
        """All fields as plain JSON data, under their names in the manifest."""
        return _renamed(asdict(self))


def _renamed(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _RECORD_NAMES.get(name, name): _renamed(value) if isinstance(value, dict) else value
        for name, value in entries.items()
    }
