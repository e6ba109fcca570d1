"""Counts how often the tests try to break each guarantee, and writes the table that tests/README.md holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

PLUGIN = "guarantees"
START, END = "<!-- guarantees -->\n", "<!-- guarantees end -->\n"


@dataclass
class Tries:
    """What was tried against one guarantee."""

    tests: list[str] = field(default_factory=list)
    cases: int = 0
    failures: int = 0


def guarantees_table(guarantees: Mapping[str, Tries]) -> str:
    """The Markdown table: guarantee, test, cases tried, failures."""
    rows = [
        f"| {guarantee} | {', '.join(sorted(tries.tests))} | {tries.cases:,} | {tries.failures} |\n"
        for guarantee, tries in guarantees.items()
    ]
    return "| guarantee | test | cases tried | failures |\n|---|---|---|---|\n" + "".join(rows)


def replace_table(text: str, table: str) -> str:
    """The text with another table between the two marks, each of which it must have once."""
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"there is no {START.strip()} with a {END.strip()} behind it")
    return f"{before}{START}{table}{END}{after}"


@pytest.fixture(scope="session")
def count_case(pytestconfig: pytest.Config) -> Callable[[], None]:
    """To be called at the start of each case that a test tries; a test that never calls it tries one."""
    counter = pytestconfig.pluginmanager.get_plugin(PLUGIN)
    assert isinstance(counter, GuaranteeCounter)
    return counter.count_case


class GuaranteeCounter:
    """A pytest plugin: counts the cases and the failures of tests that are marked with a guarantee.

    Where pytest-xdist spreads the tests over processes, each of them hands its counts to the first one.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._guarantees: dict[str, Tries] = {}
        self._running: Tries | None = None

    def count_case(self) -> None:
        """Adds a case to the guarantee of the test that runs."""
        assert self._running is not None, "mark the test: @pytest.mark.guarantee(...)"
        self._running.cases += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._running = self._tries_of(item)
        before = self._running and self._running.cases
        try:
            return (yield)
        finally:
            if self._running is not None and self._running.cases == before:
                self._running.cases += 1
            self._running = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[Any]:
        report = yield
        tries = self._tries_of(item)
        if tries is not None and report.failed:
            tries.failures += 1
        return report

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Adds what a process of pytest-xdist has counted. One that died has left no counts, and its tests failed."""
        for guarantee, counts in getattr(node, "workeroutput", {}).get(PLUGIN, {}).items():
            tries = self._guarantees.setdefault(guarantee, Tries())
            tries.tests += [name for name in counts["tests"] if name not in tries.tests]
            tries.cases += counts["cases"]
            tries.failures += counts["failures"]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[PLUGIN] = {name: asdict(tries) for name, tries in self._guarantees.items()}
        elif self._file is not None:
            self._file.write_text(guarantees_table(dict(sorted(self._guarantees.items()))), encoding="utf-8")

    def _tries_of(self, item: pytest.Item) -> Tries | None:
        marker = item.get_closest_marker("guarantee")
        if marker is None:
            return None
        (guarantee,) = marker.args
        tries = self._guarantees.setdefault(guarantee, Tries())
        if item.path.name not in tries.tests:
            tries.tests.append(item.path.name)
        return tries
