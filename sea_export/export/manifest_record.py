"""The types of the entries of a manifest that are read again."""

from __future__ import annotations

from typing import Any, TypedDict

from sea_export.edit.provenance import Provenance

__all__ = ["ManifestRecord"]


class _Export(TypedDict, total=False):
    adapter_rank: int | None
    adapter_padding: bool
    gguf_type: str
    verify: bool
    force: bool
    trust_remote_code: bool
    requantize: bool
    compatible_config: bool
    base_id: str | None


class _NamedBase(TypedDict):
    name: str
    revision: str | None
    dtype: str
    dequantized: bool
    files: dict[str, str]


class _Base(_NamedBase, total=False):
    model_class: str
    metadata: dict[str, Any]
    chat: bool
    hub_id: str


class _NamedLayer(TypedDict):
    target: str


class _Layer(_NamedLayer, total=False):
    positive_rank: int
    negative_rank: int
    positive_variance: float | None
    negative_variance: float | None
    map_rank: int | None
    strength: float
    feature_function: str
    normalization: str
    relative_change: float | None
    signature: float | None
    reader_error: float | None


class _Weight(TypedDict):
    module: str
    layer: int | None
    rank: int
    scaled_rows: bool
    strength: float
    relative_change: float | None


class _Adapter(TypedDict, total=False):
    rank_cap: int | None


class _Gguf(TypedDict):
    file: str
    parts: int
    types: dict[str, str]
    config: dict[str, bool]


class _GgufAdapter(TypedDict):
    architecture: str
    base_file: str
    converted: bool
    rank: int
    files: list[str]
    modelfile: bool


class _Benchmark(TypedDict):
    benchmark: str


class _Evaluation(TypedDict):
    benchmarks: list[_Benchmark]


class _StorageError(TypedDict):
    error: float
    own_rounding: float
    kept: float


class _Verification(TypedDict, total=False):
    storage_errors: dict[str, _StorageError]


class _Required(TypedDict):
    format: str
    base: _NamedBase
    edit: Provenance
    files: dict[str, str]


class ManifestRecord(_Required, total=False):
    """A manifest. Entries that are only shown in the model card are checked there."""

    export: _Export
    versions: dict[str, str]
    layers: list[_Layer]
    weights: list[_Weight]
    edited_tensors: list[str]
    added_tensors: list[str]
    left_out_files: list[str]
    adapter: _Adapter
    gguf: _Gguf
    gguf_adapter: _GgufAdapter
    verification: _Verification | None
    evaluation: _Evaluation | None
    repository: str | None
