"""The process that will verify an output, begun as early as it can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sea_export.export.formats import export_format
from sea_export.model.process_count import process_count
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions
from sea_export.verification.clean_process import CleanProcess

__all__ = ["early_process"]


@contextmanager
def early_process(export: ExportOptions, run: RunOptions) -> Iterator[CleanProcess]:
    """A context for the process that verifies an output. It ends with the context at the latest.

    It is begun while this process opens the model, so that both import transformers at the same time. The number of
    threads is chosen before, because the trial must meet a processor that nothing here keeps busy. Where there will be
    no verification, or none that transformers takes part in, where one layer at a time is in memory, which may be
    short, and in a job of several processes, of which only the first one verifies, it is begun only if it gets a task.

    Args:
        export: whether the output is verified.
        run: the number of threads, and whether one layer at a time is in memory.
    """
    from sea_export.model.threads import use_threads

    use_threads(run.threads)
    with CleanProcess() as process:
        loaded = export.verify and export_format(export.format).loads_in_transformers
        if loaded and not run.layerwise and process_count() == 1:
            process.begin()
        yield process
