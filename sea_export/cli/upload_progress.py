"""Progress of an upload: the bars of huggingface_hub on a terminal, elsewhere what `sea_export.cli.stages` tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.filesize import decimal

from sea_export.cli.consoles import errors
from sea_export.cli.stages import Stage, shows_bars, told

__all__ = ["upload_progress"]


@contextmanager
def upload_progress(stage: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """The progress of an upload.

    huggingface_hub tells nobody else how many bytes of a file it has sent. So its own bars are shown on a terminal.
    Elsewhere they would fill a log, and are off.

    Args:
        stage: what is uploaded.
        total_bytes: its size.
    """
    uploading = Stage(stage, total_bytes, "bytes")
    if shows_bars():
        errors.print(f"{stage}, {decimal(total_bytes)}", soft_wrap=True)
        with _bars(shown=True):
            yield uploading.advance
        return
    with _bars(shown=False), told(uploading):
        yield uploading.advance


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """A context in which huggingface_hub shows its bars, or does not. A fit has switched them off."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if HF_HUB_DISABLE_PROGRESS_BARS is not None:  # the user has decided
        yield
        return
    switch = {True: enable_progress_bars, False: disable_progress_bars}
    before = not are_progress_bars_disabled()
    switch[shown]()
    try:
        yield
    finally:
        switch[before]()
