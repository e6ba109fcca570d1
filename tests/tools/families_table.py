"""Prints what becomes of an edit of every family that transformers knows, as the table that tests/README.md has."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from sea_export.model.load_model import quiet_transformers
from tests.helpers.families import FAMILIES, outcome, table


def main() -> None:
    """Tries one family after the other, and prints all at the end."""
    quiet_transformers()
    torch.set_num_threads(1)
    outcomes = {}
    for family in FAMILIES:
        print(family, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            outcomes[family] = outcome(family, Path(directory))
    print(table(outcomes))


if __name__ == "__main__":
    main()
