"""Runs the tests that try to break the guarantees, and puts what they counted into tests/README.md.

With a file that `pytest --guarantees FILE` has written, no test is run. With --check the document is compared and not
written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.guarantees import replace_table

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", type=Path, help="what a run of the tests has written")
    parser.add_argument("--check", action="store_true", help="fail if tests/README.md says anything else")
    arguments = parser.parse_args()
    table = arguments.table.read_text(encoding="utf-8") if arguments.table else table_of_a_run()
    readme = ROOT / "tests" / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = replace_table(before, table)
    if not arguments.check:
        readme.write_text(after, encoding="utf-8")
    elif before != after:
        sys.exit(f"tests/README.md is stale: run scripts/guarantees. The tests counted\n\n{table}")


def table_of_a_run() -> str:
    """Tests that fail are counted too, and the table is written nevertheless."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "guarantees.md"
        subprocess.run([sys.executable, "-m", "pytest", "-m", "guarantee", f"--guarantees={file}"], cwd=ROOT)
        return file.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
