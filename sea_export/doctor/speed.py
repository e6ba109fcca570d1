"""How fast a machine is: small measurements, which take a few seconds together."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

from sea_export.capture.activations import Activations
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.model.isolated_python import run_python

__all__ = ["Speed", "measure_speed", "spectrum_seconds"]

_SECONDS = 0.3
_HEAD_SIZE, _LARGEST_SIZE = 64, 1024
_FILE_BYTES = 16 * 2**20
_BUFFER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Speed:
    """Measured rates. Other programs that use the machine at the same time slow them, as they would slow the job."""

    batches: float
    """Floating-point operations per second of a decoder layer on a batch of texts, in the dtype of a fit."""
    single_texts: float
    """The same on one text of a few dozen tokens in float32, as exports are verified."""
    memory: float
    """Bytes per second that a copy in memory reads and writes together."""
    disk: float
    """Bytes per second that are written to the disk of the output, flushed, and digested (SHA-256)."""
    start: float
    """Seconds in which a process imports transformers."""


def measure_speed(device: torch.device, dtype: torch.dtype, size: int, directory: Path) -> Speed:
    """Measures for some seconds. Most of them are the import of transformers in a process.

    Args:
        device: where a fit computes.
        dtype: the dtype of the fit.
        size: the hidden size d. The measured decoder layer has at most 1024.
        directory: an existing directory on the disk that is to be written to.
    """
    start = _timed(lambda: run_python(["-c", _IMPORTS]))
    return Speed(
        batches=_layer_rate(device, dtype, size, texts=16, tokens=40),
        single_texts=_layer_rate(device, torch.float32, size, texts=1, tokens=40),
        memory=_copy_rate(device),
        disk=_write_rate(directory),
        start=start,
    )


_IMPORTS = "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM"


def spectrum_seconds(count: int, size: int, center: str) -> float:
    """About how long the spectrum of one target takes: a smaller one is measured, and its time is scaled.

    Args:
        count: the number of demonstrations n.
        size: the hidden size d.
        center: one of `CENTERS`.
    """
    rows, columns = min(count, 128), min(size, 512)
    generator = torch.Generator().manual_seed(0)
    kinds = [torch.randn(rows, columns, generator=generator) for _ in range(3)]
    seconds = _timed(lambda: SpectrumFitter(center).update(Activations(*kinds)).finish())
    return seconds * _spectrum_cost(count, size) / _spectrum_cost(rows, columns)


def _spectrum_cost(count: int, size: int) -> float:
    """Operations: orthogonal factors of n x d rows, and a decomposition of the smaller square."""
    smaller = min(count, size)
    return 6.0 * count * size * smaller + 20.0 * smaller**3


@torch.inference_mode()
def _layer_rate(device: torch.device, dtype: torch.dtype, size: int, *, texts: int, tokens: int) -> float:
    """Operations per second of a model with one decoder layer of Llama, and a tiny vocabulary."""
    size = min(_LARGEST_SIZE, max(_HEAD_SIZE, size // _HEAD_SIZE * _HEAD_SIZE))
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=1,
        num_attention_heads=size // _HEAD_SIZE,
        num_key_value_heads=size // _HEAD_SIZE,
    )
    model: Any = LlamaModel(config).eval()
    model.to(device, dtype)
    inputs = torch.zeros(texts, tokens, dtype=torch.long, device=device)
    operations = 2.0 * texts * tokens * sum(parameter.numel() for parameter in model.layers.parameters())
    return _rate(lambda: model(input_ids=inputs), operations, device)


def _copy_rate(device: torch.device) -> float:
    source = torch.zeros(_BUFFER_BYTES, dtype=torch.uint8, device=device)
    destination = torch.empty_like(source)
    return _rate(lambda: destination.copy_(source), 2.0 * _BUFFER_BYTES, device)


def _write_rate(directory: Path) -> float:
    data = os.urandom(_FILE_BYTES)

    def write() -> None:
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(data)
            hashlib.sha256(data)
            stream.flush()
            os.fsync(stream.fileno())

    return _FILE_BYTES / min(_timed(write) for _ in range(3))  # a disk is sometimes busy with other work


def _rate(step: Callable[[], object], amount: float, device: torch.device) -> float:
    """`amount` per second. The step is repeated for a part of a second."""
    step()
    start, steps = time.perf_counter(), 0
    while True:
        step()
        steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        if seconds > _SECONDS:
            return amount * steps / seconds


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
