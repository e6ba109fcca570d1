"""The properties of tests/helpers/fuzzing.py with as many cases as one likes: what fails is printed with its file.

Prints, for each reader, how many cases were tried, how long they took and how much memory the process grew.
"""

from __future__ import annotations

import resource
import sys
import time
from datetime import timedelta

import click
from hypothesis import HealthCheck, given, seed, settings

from tests.helpers.fuzzing import PROPERTIES

_MAXIMUM_GROWTH = 300_000_000


@click.command()
@click.option("--cases", default=10_000, show_default=True, help="How many, for each reader.")
@click.option("--seed", "start", default=0, show_default=True, help="Other seeds try other cases.")
@click.option("--reader", "readers", type=click.Choice(list(PROPERTIES)), multiple=True, help="Only these readers.")
def main(cases: int, start: int, readers: tuple[str, ...]) -> None:
    """Exits with 1 if a file was neither read nor refused, or memory grew without bound."""
    failed = False
    for name in readers or PROPERTIES:
        before, begun, tried = _memory(), time.monotonic(), 0
        holds, files = PROPERTIES[name]

        @seed(start)
        @settings(
            max_examples=cases,
            database=None,
            deadline=timedelta(seconds=10),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        @given(files)
        def holds_for_every(contents: bytes) -> None:
            nonlocal tried
            tried += 1
            holds(contents)  # noqa: B023 (it is run in this turn of the loop)

        problem = ""
        try:
            holds_for_every()
        except Exception as error:
            problem = f": {type(error).__name__}: {error}"
        growth = _memory() - before
        if growth > _MAXIMUM_GROWTH:
            problem += ": memory grew without bound"
        failed |= bool(problem)
        click.echo(
            f"{name}: {tried} cases in {time.monotonic() - begun:.0f} s, {growth / 1e6:.0f} MB more memory{problem}"
        )
    sys.exit(failed)


def _memory() -> int:
    """The most memory that the process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
