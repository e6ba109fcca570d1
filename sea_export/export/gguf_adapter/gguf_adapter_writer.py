"""Writes a GGUF adapter to the disk."""

from __future__ import annotations

from pathlib import Path

from sea_export.export.gguf_adapter.gguf_adapter_plan import GgufAdapterPlan
from sea_export.export.modelfile import write_modelfile
from sea_export.export.write_report import WriteReport
from sea_export.files.digests import file_digest
from sea_export.model.base import Base

__all__ = ["write_gguf_adapter"]


def write_gguf_adapter(plan: GgufAdapterPlan, base: Base, directory: Path) -> WriteReport:
    """Writes the files of an adapter. The same adapter gives the same bytes.

    Args:
        plan: the adapter.
        base: the base. The report has the digests of its files, because the adapter belongs to them.
        directory: an existing, empty directory.

    Raises:
        SeaExportError: a file of the base has changed.
        OSError: a file could not be written.
    """
    for file in plan.files:
        file.write(directory)
    written = [file.name for file in plan.files] + write_modelfile(directory, plan.modelfile)
    gguf = plan.located.gguf
    sources = {} if gguf is None else gguf.files.digests(part.path.name for part in gguf.parts)
    return WriteReport(
        base_digests={**base.weight_digests, **sources},
        digests={name: file_digest(directory / name) for name in written},
        edited=tuple(plan.located.names.values()),
        unchanged=(),
        added=tuple(name for file in plan.files for name in file.tensors),
    )
