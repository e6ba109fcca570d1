"""Whether a run can be repeated, and where its base is. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from sea_export.errors import InputError
from sea_export.export.output import check_output
from sea_export.model.location import ModelLocation, locate_model
from sea_export.verification.recorded_run import RecordedRun
from sea_export.verification.reproduce_options import ReproduceOptions

__all__ = ["check_repeatable", "locate_base"]


def check_repeatable(run: RecordedRun, directory: Path, output: Path, options: ReproduceOptions) -> None:
    """Refuses what would fail only after work was done.

    Args:
        run: the run.
        directory: where its manifest is.
        output: the directory that the repeated run writes.
        options: those of the repeated run.

    Raises:
        InputError: the output cannot be written or is the first run itself, or code of the base may not run.
    """
    check_output(output, overwrite=options.overwrite)
    if output.resolve() == directory.resolve():
        raise InputError(f"{output}: it is the run that is to be repeated. Choose another output.")
    if run.trust_remote_code and not options.trust_remote_code:
        raise InputError(
            "--trust-remote-code: the run used code that comes with its base. Read that code, and allow it with "
            "--trust-remote-code."
        )


def locate_base(run: RecordedRun, options: ReproduceOptions) -> ModelLocation:
    """Finds the base of a run.

    Args:
        run: the run.
        options: where the base is, if the manifest does not say it.

    Raises:
        InputError: it cannot be found.
    """
    base = run.base
    if options.base is None and base["revision"] is None:
        raise InputError(f"--base: the manifest names the local model {base['name']!r}. Say where that model is.")
    model = options.base or base["name"]
    return locate_model(model, None if Path(model).expanduser().exists() else base["revision"])
