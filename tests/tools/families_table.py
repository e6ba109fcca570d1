"""Prints what becomes of an edit of every family that transformers knows, as the table that tests/README.md has."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from sea_export.model.load_model import quiet_transformers
from tests.helpers.families import FAMILIES, outcome, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", metavar="FAMILY", help="all if none is named")
    families = parser.parse_args().family or FAMILIES
    if unknown := sorted(set(families) - set(FAMILIES)):
        parser.error(f"not a family that transformers knows: {', '.join(unknown)}")
    quiet_transformers()
    torch.set_num_threads(1)
    outcomes = {}
    for family in families:
        print(family, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            outcomes[family] = outcome(family, Path(directory))
    print(table(outcomes))


if __name__ == "__main__":
    main()
