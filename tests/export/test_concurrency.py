"""Processes that run at the same time into the same output, or with the same cache, do not corrupt one another."""

from __future__ import annotations

import io
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

import sea_export
import sea_export.cards.record_evaluation
import sea_export.fitting.collect
import sea_export.saving
from sea_export.capture.cache import ActivationCache
from sea_export.cards.record_evaluation import record_evaluation
from sea_export.cli import main, progress
from sea_export.evaluation.report import BenchmarkReport
from sea_export.export.manifest import read_manifest
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.faulty_exports import assert_complete
from tests.helpers.messages import assert_names

pytestmark = pytest.mark.slow

PROCESSES = 4
OUTPUT_PROMISE = "Of runs into the same output at the same time one wins, and the others say in one line why not"
CACHE_PROMISE = "Runs that share a cache at the same time all fit the edit that each would fit alone"


def at_once(work: Callable[[threading.Barrier], Any]) -> list[Any]:
    """What some forked processes return, which are given a barrier to meet at."""
    context = multiprocessing.get_context("fork")
    barrier: Any = context.Barrier(PROCESSES)
    results: Queue[Any] = context.Queue()

    def run() -> None:
        try:
            results.put(work(barrier))
        except Exception as error:
            results.put(AssertionError(f"a process failed: {error!r}"))

    processes = [context.Process(target=run) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    gathered = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    for result in gathered:
        if isinstance(result, AssertionError):
            raise result
    return gathered


def meet_before(owner: object, name: str, barrier: threading.Barrier) -> None:
    """Has this process wait for the others before it calls a function."""
    function = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        barrier.wait(60)
        return function(*arguments, **options)

    setattr(owner, name, call)


def outcome(arguments: Sequence[object]) -> tuple[int, str]:
    """Exit status and stderr of a command in this process."""
    with redirect_stderr(io.StringIO()) as errors, redirect_stdout(io.StringIO()):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue()
    raise AssertionError("a command ends by exiting")


@pytest.fixture(autouse=True)
def no_drawing_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be lost in a fork."""
    monkeypatch.setattr(progress, "progress_bar", lambda *columns: Progress(*columns, disable=True))


@pytest.mark.guarantee(OUTPUT_PROMISE)
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("format", ["merged", "adapter", "custom-code"])
def test_one_output(format, overwrite, llama, fit_tiny, tiny_sharded_checkpoint, tmp_path, count_case):
    fit_tiny(llama).save(tmp_path / "edit")
    (tmp_path / "outputs").mkdir()
    output = tmp_path / "outputs" / "out"
    options = ["--base", tiny_sharded_checkpoint, "--no-verify", "--format", format]
    assert outcome(["save", tmp_path / "edit", tmp_path / "alone", *options]) == (0, "")
    alone = contents_of(tmp_path / "alone")

    def export(barrier: threading.Barrier) -> tuple[int, str]:
        meet_before(sea_export.saving, "staged_output", barrier)
        return outcome(["save", tmp_path / "edit", output, *options, *(["--overwrite"] if overwrite else [])])

    for round in range(5):
        count_case()
        if round and not overwrite:
            output.rename(tmp_path / f"round-{round}")
        ends = at_once(export)
        assert list(output.parent.iterdir()) == [output]
        assert_complete(output)
        assert contents_of(output) == alone
        lost = [message for status, message in ends if status]
        assert all(status in (0, 2) for status, _ in ends), ends
        assert len(lost) < PROCESSES if overwrite else len(lost) == PROCESSES - 1, ends
        for message in lost:
            assert message.count("\n") == 1
            assert_names(message, output)


@pytest.mark.guarantee(CACHE_PROMISE)
def test_one_cache(llama, tokenizer, demonstrations, tmp_path, count_case):
    options = {"layers": "1-3", "batch_tokens": 50}
    sea_export.fit(llama, tokenizer, demonstrations, **options).save(tmp_path / "alone")
    alone = contents_of(tmp_path / "alone")

    for round in range(5):
        count_case()
        cache = tmp_path / f"cache-{round}"

        def fit(barrier: threading.Barrier, cache: Path = cache) -> dict[str, bytes]:
            meet_before(sea_export.fitting.collect, "ActivationCache", barrier)
            meet_before(ActivationCache, "add", barrier)
            fitted = tmp_path / multiprocessing.current_process().name
            sea_export.fit(llama, tokenizer, demonstrations, cache=cache, **options).save(fitted)
            return contents_of(fitted)

        assert all(fitted == alone for fitted in at_once(fit))
        assert [path.suffix for path in cache.glob("*/*") if path.name != "key.json"]
        assert not [path for path in cache.rglob("*") if path.name.startswith(".")]


@pytest.mark.guarantee("Figures that are recorded at the same time are all recorded")
def test_one_record(llama, fit_tiny, tiny_checkpoint, tmp_path, count_case):
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", verify=False)
    recorded: set[str] = set()

    for round in range(5):
        count_case()

        def record(barrier: threading.Barrier, round: int = round) -> str:
            name = f"{round}: {multiprocessing.current_process().name}"
            barrier.wait(60)
            report = BenchmarkReport(name, rows=1, metrics=())
            record_evaluation(tmp_path / "out", [report], against="base", dtype="float32")
            return name

        recorded |= set(at_once(record))
        reports = read_manifest(tmp_path / "out")["evaluation"]["benchmarks"]
        assert {report["benchmark"] for report in reports} == recorded
        assert_complete(tmp_path / "out")


# What the checks are worth


@contextmanager
def written_in_place(output: Path, *, overwrite: bool) -> Iterator[Path]:
    output.mkdir(exist_ok=True)
    yield output


def test_outputs_that_are_written_in_place_do_not_pass(llama, fit_tiny, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sea_export.saving, "staged_output", written_in_place)
    with pytest.raises(AssertionError):
        test_one_output("merged", False, llama, fit_tiny, tiny_checkpoint, tmp_path, lambda: None)


def test_records_that_do_not_take_turns_do_not_pass(llama, fit_tiny, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sea_export.cards.record_evaluation, "taking_turns", nullcontext)
    with pytest.raises(AssertionError):
        test_one_record(llama, fit_tiny, tiny_checkpoint, tmp_path, lambda: None)
