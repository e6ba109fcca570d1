"""The properties of tests/helpers/fuzzing.py with as many inputs as one likes, as a table of what became of them.

What fails is told after its row, each kind of failure with the smallest input that caused it.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field

import click
import transformers
from huggingface_hub.utils import disable_progress_bars
from hypothesis import HealthCheck, given, seed, settings

from tests.helpers.fuzzing import PROPERTIES, is_read
from tests.helpers.peak_memory import PeakMemory

_MAXIMUM_GROWTH = 500_000_000
_MAXIMUM_SECONDS = 60
_SHOWN_BYTES = 2000


@dataclass
class Tried:
    """What became of the inputs of one door."""

    accepted: int = 0
    refused: int = 0
    failed: int = 0
    slowest: float = 0
    growth: int = 0
    failures: dict[str, bytes] = field(default_factory=dict)
    """Kind of failure -> the smallest input that failed so."""

    @property
    def is_bounded(self) -> bool:
        return self.growth < _MAXIMUM_GROWTH and self.slowest < _MAXIMUM_SECONDS

    def row(self, door: str) -> str:
        inputs = self.accepted + self.refused + self.failed
        return (
            f"| {door} | {inputs:,} | {self.refused:,} | {self.accepted:,} | {self.failed:,} "
            f"| {self.growth / 1e6:.0f} | {self.slowest:.1f} |"
        )


@click.command()
@click.option("--cases", default=10_000, show_default=True, help="How many inputs, for each door.")
@click.option("--seed", "start", default=0, show_default=True, help="Other seeds try other inputs.")
@click.option("--door", "doors", type=click.Choice(list(PROPERTIES)), multiple=True, help="Only these doors.")
def main(cases: int, start: int, doors: tuple[str, ...]) -> None:
    """Exits with 1 if an input was neither read nor refused, or time or memory grew without bound."""
    disable_progress_bars()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    click.echo("| door | inputs | refused | accepted | tracebacks | more memory at most (MB) | slowest (s) |")
    click.echo("|---|---|---|---|---|---|---|")
    whole = True
    for door in doors or PROPERTIES:
        tried = _tried(door, cases, start)
        click.echo(tried.row(door))
        for failure, contents in tried.failures.items():
            click.echo(f"{failure}\nof {contents[:_SHOWN_BYTES]!r}\n")
        whole &= tried.is_bounded and not tried.failed
    sys.exit(not whole)


def _tried(door: str, cases: int, start: int) -> Tried:
    holds, files = PROPERTIES[door]
    tried = Tried()

    @seed(start)
    @settings(max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(files)
    def holds_for_every(contents: bytes) -> None:
        begun, peak = time.monotonic(), PeakMemory()  # of each input, because Hypothesis keeps all of them
        try:
            if is_read(holds, contents):
                tried.accepted += 1
            else:
                tried.refused += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a library in another language may panic, which is no Exception
            tried.failed += 1
            kind = _kind(error)
            tried.failures[kind] = min(tried.failures.get(kind, contents), contents, key=len)
        tried.slowest = max(tried.slowest, time.monotonic() - begun)
        tried.growth = max(tried.growth, peak.growth())

    holds_for_every()
    return tried


def _kind(error: BaseException) -> str:
    """Which error was raised, and the last two places of the program that it went through."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    return f"{type(error).__name__} in " + ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)


if __name__ == "__main__":
    main()
