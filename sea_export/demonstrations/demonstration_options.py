"""The options of every command that reads demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

from sea_export.options import check_values, option

__all__ = ["DemonstrationOptions"]


@dataclass(frozen=True)
class DemonstrationOptions:
    """Where demonstrations come from, and which of them are used."""

    demonstrations: str = option(
        "builtin:truthfulness",
        "JSONL, JSON, CSV or Parquet file, Hub dataset id, builtin:truthfulness or builtin:fairness.",
    )
    prompt_field: str | None = option(None, "Column of the prompt.")
    positive_field: str | None = option(None, "Column of the good completion.")
    negative_field: str | None = option(None, "Column of the bad completion.")
    limit: int | None = option(None, "Use a seeded sample of that many demonstrations.", minimum=2)
    skip_bad_rows: bool = option(
        False,
        "Leave out rows that cannot be used, such as those with an empty or twice the same answer, and count them.",
    )

    def __post_init__(self) -> None:
        check_values(self)
