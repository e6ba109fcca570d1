"""How many processes share this job. Nothing here imports torch."""

from __future__ import annotations

import os
import re

from sea_export.errors import InputError

__all__ = ["process_count"]

_VARIABLE = "WORLD_SIZE"
_NUMBER = re.compile("[1-9][0-9]{0,8}")


def process_count() -> int:
    """The number of processes that torchrun, or what else has started this one, tells each of them; 1 if it tells none.

    Raises:
        InputError: the environment variable WORLD_SIZE is no number of processes.
    """
    told = os.environ.get(_VARIABLE) or "1"
    if not _NUMBER.fullmatch(told):
        raise InputError(f"{_VARIABLE}: {told!r} is no number of processes. Unset it, or start the job with torchrun.")
    return int(told)
