"""A base that is opened once, for several calls."""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sea_export.capture.opened_model import OpenedModel
from sea_export.capture.progress_callback import ProgressCallback, waiting_of
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.evaluation.loaded_model import LoadedModel
from sea_export.fitting.distributed import local_device
from sea_export.model.base import open_base
from sea_export.model.load_model import choose_device, parse_dtype
from sea_export.model.location import ModelLocation, locate_model
from sea_export.model.run_options import RunOptions
from sea_export.model.threads import use_threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LoadedBase", "in_memory", "load", "open_located", "opened_base"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class LoadedBase(OpenedModel):
    """A base that is open. Its weights are loaded when they are first needed: `model`, or `whole_model`.

    It is a context, at whose end its temporary files are removed; they go with the object at the latest.
    """

    files: ExitStack = field(default_factory=ExitStack, compare=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.files.close)

    @property
    def name(self) -> str:
        """Its Hub id, or the last part of its path."""
        return self.base.name

    @property
    def directory(self) -> Path:
        """The directory of its checkpoint on this machine."""
        return self.base.checkpoint.directory

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.base.tokenizer

    def close(self) -> None:
        """Removes its temporary files. What is in memory can still be used."""
        self.files.close()

    def __enter__(self) -> LoadedBase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LoadedBase({self.name!r}, device={self.device!r})"


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    layerwise: bool | None = None,
    device_map: str | None = None,
    dequantize: bool = False,
    dtype: str = RunOptions.dtype,
    threads: int | None = None,
    device: str = RunOptions.device,
    trust_remote_code: bool = False,
) -> LoadedBase:
    """Opens a base once, for `fit`, `save`, `evaluate`, `compare`, `tune` and `check`.

    Args:
        model: a Hub id, a local directory, or a `.gguf` file.
        revision: its revision on the Hub.
        layerwise: whether one decoder layer at a time is in memory; None decides by the free memory.
        device_map: `auto` spreads the model over all devices; None has it on `device`.
        dequantize: make plain weights of quantized ones.
        dtype: what to compute in: `auto`, `float32`, `bfloat16` or `float16`.
        threads: how many threads to compute with; None for as many as help.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, or `mps`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: there is no such model, or it cannot be opened.
    """
    run = RunOptions(revision, layerwise, device_map, dequantize, dtype, threads, device, trust_remote_code)
    use_threads(run.threads)
    location = locate_model(str(model), run.revision)
    with ExitStack() as opening:
        opened = opening.enter_context(open_located(location, run, Path(tempfile.gettempdir())))
        return LoadedBase(
            *(opened.base, opened.dtype, opened.device, opened.device_map, opened.layerwise, opened.scratch),
            files=opening.pop_all(),
        )


@contextmanager
def open_located(
    location: ModelLocation,
    run: RunOptions,
    scratch: Path,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Iterator[OpenedModel]:
    """Opens a model as its options say, from where `locate_model` has found it.

    Args:
        location: where it is.
        run: how it is opened.
        scratch: a directory for hidden states that do not fit into memory. They are in files without a name.
        waiting: is told what goes on; its context is open meanwhile.

    Raises:
        InputError: it cannot be opened.
    """
    logger.debug("opening %s.", location.name)
    dtype, device = parse_dtype(run.dtype), local_device(choose_device(run.device))
    with ExitStack() as stack:
        with waiting(f"Opening {location.name}"):
            base = stack.enter_context(
                open_base(
                    location,
                    dtype=dtype,
                    dequantize=run.dequantize,
                    trust_remote_code=run.trust_remote_code,
                )
            )
        if warning := license_warning(base.name, base_metadata(base)):
            logger.warning("%s.", warning)
        files = len(base.checkpoint.weight_files)
        logger.debug("%s: it has %d tensors in %d files.", base.name, len(base.checkpoint.tensors), files)
        yield OpenedModel(base, dtype, device, run.device_map, run.layerwise, scratch)


@contextmanager
def opened_base(
    model: str | Path | LoadedBase, run: RunOptions, scratch: Path, progress: ProgressCallback | None = None
) -> Iterator[OpenedModel]:
    """A base that is open already, or is opened for as long as the context lasts.

    Args:
        model: the base.
        run: how it is opened, if it is not open.
        scratch: see `open_located`.
        progress: told that it is opened.

    Raises:
        InputError: see `load`.
    """
    if isinstance(model, LoadedBase):
        yield model
        return
    use_threads(run.threads)
    with open_located(locate_model(str(model), run.revision), run, scratch, waiting_of(progress)) as opened:
        yield opened


def in_memory(base: LoadedBase) -> LoadedModel:
    """A base as benchmarks take it.

    Args:
        base: the base.

    Raises:
        InputError: it does not fit into memory as a whole.
    """
    return LoadedModel(base.name, base.whole_model, base.tokenizer, lambda: base.base.weight_digests)
