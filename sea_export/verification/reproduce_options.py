"""The options of a repeated run."""

from __future__ import annotations

from dataclasses import dataclass

from sea_export.model.run_options import MOST_THREADS
from sea_export.options import ExportOptions, option, same_option

__all__ = ["ReproduceOptions"]


@dataclass(frozen=True)
class ReproduceOptions:
    """Where a repeated run finds what its manifest cannot name, and what it may do."""

    base: str | None = option(None, "Directory or .gguf file of the base; by default the Hub id in the manifest.")
    demonstrations: tuple[str, ...] = option(
        (),
        "Where the demonstrations are, if they came from a local file; once for each edit that has such.",
        metavar="FILE",
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, mps; by default the kind of device that the run used.")
    threads: int | None = option(
        None, "Threads to compute with; by default as many as the run used.", minimum=1, maximum=MOST_THREADS
    )
    trust_remote_code: bool = option(False, "Run code that comes with the base model.")
    overwrite: bool = same_option(ExportOptions, "overwrite")
