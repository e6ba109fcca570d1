"""What an edit tells of how it was made: the types of the entries that are read again."""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = ["Provenance"]


class _NamedBase(TypedDict):
    name: str


class _Base(_NamedBase, total=False):
    revision: str | None
    weights: dict[str, str]
    """SHA-256, in hexadecimal, by file name."""
    fitted_on: dict[str, Any]
    """The base that the edit was fitted on, if that is another one."""


class _Origin(TypedDict):
    source: str


class _DemonstrationTexts(TypedDict):
    count: int
    sha256: str


class _Demonstrations(_DemonstrationTexts, total=False):
    origin: _Origin | None


class _Computation(TypedDict):
    """See `sea_export.fitting.fit.computation_record`."""

    dtype: str
    device: str
    layerwise: bool
    threads: int
    processes: int


class _Tuning(TypedDict):
    benchmark: str
    metric: str
    pick: str
    rows: int
    max_kl: float
    trials: int


class _Checkpoint(TypedDict):
    name: str
    revision: str | None
    weights: dict[str, str]
    """SHA-256, in hexadecimal, by file name."""


class _Extracted(TypedDict):
    """See `sea_export.extraction.extract.extract`. The first checkpoint is the base."""

    checkpoint: _Checkpoint


class _ImportedFile(TypedDict):
    source: str
    sha256: str
    form: str
    meaning: str
    coefficient: float
    site: str
    numbering: str | None
    source_layer: int | None
    layers: list[int]


class _Imported(_ImportedFile, total=False):
    """See `sea_export.importing.import_edit.import_edit`."""

    config_sha256: str
    """Of an adapter: that of its config; `sha256` is that of its weights."""
    keep_norm: str
    """Which norms of weights were kept, if any; then `strength` is what the change of weights was scaled by."""
    strength: float


class Provenance(TypedDict, total=False):
    """Where an edit comes from."""

    base: _Base | None
    demonstrations: _Demonstrations
    options: dict[str, Any]
    """The record of a `sea_export.options.FitOptions`."""
    fitted_strength: float
    """The strength that was fitted, if the edit was given another one afterwards."""
    computation: _Computation
    versions: dict[str, str]
    tuning: _Tuning | None
    effect: dict[str, Any] | None
    """See `sea_export.effect.measure.measured_edit`."""
    examples: dict[str, Any] | None
    """See `sea_export.evaluation.example_answers.with_examples`."""
    extracted: _Extracted
    """The second of the two checkpoints that the edit was found between, if it was not fitted."""
    imported: _Imported
    """What was imported, if the edit was not fitted."""
    targets: list[str]
    """The targets, and the linear maps with changed weights, that were kept of it, if others were left out."""
    composed: list[Provenance]
    """The edits that it was made of. It has no other entries then but its base, its targets, and the next two."""
    composition: str
    """`sum` if their changes were added up; else it is their product."""
    strength: float
    """What the sum was scaled by."""
