"""What no GGUF adapter can hold, in the words in which it is refused. Nothing here is heavy to import."""

from __future__ import annotations

__all__ = ["NO_ROW_SCALES"]

NO_ROW_SCALES = (
    "--format: gguf-adapter holds changes of low rank and constants, and --normalization or --projections positive "
    "scale all of a weight. Choose --normalization none and other projections, or --format merged or gguf."
)
