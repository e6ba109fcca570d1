"""Writes an adapter to the disk."""

from __future__ import annotations

import json
from pathlib import Path

from sea_export.export.adapter.adapter_plan import AdapterPlan
from sea_export.export.write_report import WriteReport
from sea_export.files.digests import file_digest
from sea_export.files.writing import write_tensors
from sea_export.model.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from sea_export.model.base import Base

__all__ = ["write_adapter"]


def write_adapter(plan: AdapterPlan, base: Base, directory: Path) -> WriteReport:
    """Writes `adapter_config.json` and `adapter_model.safetensors`. The same adapter gives the same bytes.

    Args:
        plan: the adapter.
        base: the base. The report has the digests of its weight files, because the adapter belongs to them.
        directory: an existing directory.
    """
    text = json.dumps(plan.adapter.config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    write_tensors(directory / ADAPTER_WEIGHTS, plan.adapter.tensors)
    return WriteReport(
        base_digests=base.weight_digests,
        digests={file: file_digest(directory / file) for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)},
        edited=plan.stored_weights or tuple(f"{module.module}.weight" for module in plan.adapter.modules),
        unchanged=(),
        added=tuple(plan.adapter.tensors),
    )
