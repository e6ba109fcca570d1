"""The options of every command that opens a model."""

from __future__ import annotations

from dataclasses import dataclass

from sea_export.errors import InputError
from sea_export.options import check_values, option

__all__ = ["DTYPES", "MOST_THREADS", "RunOptions", "check_conversion"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_THREADS = 1024
"""The most threads that may be asked for. Far more take all processes of a machine."""


@dataclass(frozen=True)
class RunOptions:
    """How the base is found, loaded and computed with."""

    revision: str | None = option(None, "Revision of the model on the Hub.")
    layerwise: bool | None = option(
        None, "Have one decoder layer at a time in memory, or all of them; by default all if they fit."
    )
    device_map: str | None = option(
        None, "Spread the model over all GPUs, and over what else there is (accelerate).", ("auto",)
    )
    dequantize: bool = option(False, "Make plain weights of a quantized model's.")
    dtype: str = option(
        "auto",
        "What to compute in; auto: as stored, or float32 on a CPU that is faster in it, and for gradients on a CPU. A "
        ".gguf or dequantized model is written out in it (auto: bfloat16).",
        DTYPES,
    )
    threads: int | None = option(
        None,
        "Threads to compute with; by default as OMP_NUM_THREADS says, or as many as help in a trial.",
        minimum=1,
        maximum=MOST_THREADS,
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto: a GPU if any.")
    trust_remote_code: bool = option(False, "Run code that comes with the model. Custom-code exports come with some.")

    def __post_init__(self) -> None:
        check_values(self)
        if self.device_map is not None and self.layerwise:
            raise InputError(
                "--device-map: it has all layers in memory, and --layerwise has one at a time. Choose one of them."
            )


def check_conversion(*, dequantize: bool, requantize: bool) -> None:
    """Refuses an export that would keep the storage of a base that is dequantized.

    Args:
        dequantize: whether the base is dequantized.
        requantize: whether the export keeps the base's storage.

    Raises:
        InputError: it would.
    """
    if dequantize and requantize:
        raise InputError(
            "--requantize: it keeps the storage of quantized weights, and --dequantize makes them plain. Choose one."
        )
