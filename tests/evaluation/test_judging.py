"""Judges, local and behind an address: verdicts are right, nothing is lost or guessed, and known ones are not asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.cli import main
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import GivenAnswer, Measurement
from sea_export.evaluation.judge import CRITERIA, Judge, JudgeRequest, JudgeUnavailable, read_verdict
from sea_export.evaluation.judging import judge_measurements
from sea_export.evaluation.local_judge import LocalJudge
from sea_export.evaluation.metrics import mean_metric
from sea_export.evaluation.remote_judge import RemoteJudge
from sea_export.evaluation.verdict_file import VerdictFile
from tests.helpers.benchmark_files import write_truthfulqa
from tests.helpers.loopback_judge import CHAT, LoopbackJudge
from tests.helpers.messages import assert_names, naming

NOW = 1_800_000_000.0
KEY = "sk-only-for-the-tests-0123456789"


def by_rule(messages: list[str]) -> str:
    """A judge of known rules: an answer with the word rock is truthful, one with the word nothing not informative."""
    answer = next(line for line in messages[0].splitlines() if line.startswith("Answer to judge:"))
    truthful = "judge truthful?" in messages[0]
    return "Yes." if ("rock" in answer if truthful else "nothing" not in answer) else "no"


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    judge = LoopbackJudge(by_rule)
    with judge.serving():
        yield judge


@pytest.fixture
def remote(server: LoopbackJudge) -> RemoteJudge:
    """A judge that does not wait, but notes how long it would."""
    return RemoteJudge("m", server.url, KEY, timeout=10, attempts=3, sleep=server.waits.append, now=lambda: NOW)


def answered(*answers: str) -> Measurement:
    given = tuple(GivenAnswer(f"Question {i}?", one, ("Right.",), ("Wrong.",)) for i, one in enumerate(answers))
    return Measurement("truthfulqa-generation", len(given), (mean_metric("length", [1.0] * len(given)),), given)


def opened(judge: Judge) -> AbstractContextManager[Judge]:
    return nullcontext(judge)


def values(measurement: Measurement) -> dict[str, float]:
    return {metric.name: metric.value for metric in measurement.metrics}


ANSWERS = ("of rock", "nothing", "of cheese", "rock, nothing else")
EXPECTED = {"length": 1.0, "truthful": 0.5, "informative": 0.5, "truthful and informative": 0.25, "not judged": 0.0}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", True),
        ("No", False),
        (" **Yes.**\n", True),
        ("No, it says that fish fly.", False),
        ("<think>yes or no? yes</think>\n\nno", False),
        ("", None),
        ("Yes and no.", None),
        ("It is true: yes", None),
        ("nothing", None),
        ("42", None),
    ],
)
def test_replies_are_read_and_not_guessed(reply: str, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict


def test_a_judge_gets_question_answer_and_references() -> None:
    for criterion in CRITERIA:
        prompt = JudgeRequest(criterion, "Q {1}?", "A {2}", ("R.",), ("W.",)).prompt
        assert all(text in prompt for text in ("Q {1}?", "A {2}", "R.", "W."))
    assert "empty" in JudgeRequest("truthful", "Q?", "", ("R.",), ("W.",)).prompt


def test_metrics_of_a_remote_judge(server: LoopbackJudge, remote: RemoteJudge, tmp_path: Path) -> None:
    own, base = answered(*ANSWERS), answered(ANSWERS[0], "of cheese", "of cheese", "of cheese")
    (judged, other), judging = judge_measurements([own, base], opened(remote), VerdictFile("m", "m", None))
    assert values(judged) == EXPECTED
    assert values(other)["truthful"] == 0.25
    assert [(one.truthful, one.informative) for one in judged.answers] == [
        (True, True),
        (False, False),
        (False, True),
        (True, False),
    ]
    # The first and the third answer of both are the same.
    assert judging.asked == len(server.requests) == 12
    assert (judging.missing, judging.failure) == (0, None)
    assert {request.token for request in server.requests} == {KEY}
    assert server.requests[0].json()["model"] == "m"
    assert server.requests[0].json()["temperature"] == 0


def test_answers_without_references_are_not_judged(remote: RemoteJudge, server: LoopbackJudge) -> None:
    free = Measurement("prompts", 1, (), (GivenAnswer("What?", "That."),))
    found, judging = judge_measurements([free], opened(remote), VerdictFile("m", "m", None))
    assert found == [free]
    assert judging.asked == len(server.requests) == 0


def test_a_known_verdict_is_not_asked_for_again(server: LoopbackJudge, remote: RemoteJudge, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    judge_measurements([answered(*ANSWERS[:2])], opened(remote), VerdictFile("m", "m", file))
    server.reset()
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", file))
    assert values(judged) == EXPECTED
    assert judging.asked == len(server.requests) == 4
    server.reset()
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", file))
    assert values(judged) == EXPECTED
    assert not server.requests
    judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "another m", file))
    assert len(server.requests) == 8
    assert KEY not in file.read_text(encoding="utf-8")


def test_what_a_stopped_run_wrote_is_used(server: LoopbackJudge, remote: RemoteJudge, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"

    class Stopped:
        def verdicts(self, prompts: Any) -> Iterator[bool | None]:
            yield from list(remote.verdicts(prompts[:3]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_measurements([answered(*ANSWERS)], opened(Stopped()), VerdictFile("m", "m", file))
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "half a li')
    server.reset()
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", file))
    assert judging.asked == len(server.requests) == 5
    assert values(judged) == EXPECTED
    assert len([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]) == 8


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = ('{"prompt": "x"}', "x", "[]", '{"key": "x", "verdict": "yes"}', '{"key": ["x"], "verdict": true}')
    for line in (*lines, '{"key": {}, "verdict": true}', "[" * 100_000, '{"key": "\\ud800", "verdict": true}'):
        file.write_text(f'{{"key": "x", "verdict": true}}\n{line}\n', encoding="utf-8")
        with pytest.raises(InputError, match=naming("rows.jsonl, row 2")):
            VerdictFile("m", "m", file)
    file.write_text("a text without an end of line", encoding="utf-8")
    with pytest.raises(InputError, match=naming("rows.jsonl")):
        VerdictFile("m", "m", file)
    assert file.read_text(encoding="utf-8") == "a text without an end of line"


def test_what_is_no_verdict_is_asked_once_more_and_then_counted(server: LoopbackJudge, remote: RemoteJudge) -> None:
    def hesitant(messages: list[str]) -> str:
        return "Perhaps yes, perhaps no." if len(messages) == 1 else by_rule(messages)

    server.says = hesitant
    (judged,), judging = judge_measurements(
        [answered("of rock", "of cheese")], opened(remote), VerdictFile("m", "m", None)
    )
    assert values(judged)["not judged"] == 0
    assert len(server.requests) == 8
    assert len(server.requests[1].json()["messages"]) == 3

    server.reset()
    server.says = lambda messages: "garbage" if "of rock" in messages[0] else by_rule(messages)
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", None))
    assert len(server.requests) == 2 * 2 + 6
    assert (judging.missing, judging.failure) == (2, None)
    found = values(judged)
    assert found["not judged"] == 0.25
    assert found["truthful"] == found["informative"] == pytest.approx(1 / 3)
    assert judged.answers[0].truthful is None

    server.says = lambda messages: "garbage"
    (judged,), _ = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", None))
    assert values(judged) == {"length": 1.0, "not judged": 1.0}


FAULTS: dict[str, dict[str, Any]] = {
    "rate limit": {"status": 429, "headers": {"Retry-After": "7"}},
    "rate limit until a date": {"status": 429, "headers": {"Retry-After": formatdate(NOW + 9, usegmt=True)}},
    "rate limit with nonsense": {"status": 429, "headers": {"Retry-After": "soon"}},
    "rate limit of no number": {"status": 429, "headers": {"Retry-After": "nan"}},
    "rate limit without end": {"status": 429, "headers": {"Retry-After": "inf"}},
    "a day's rate limit": {"status": 429, "headers": {"Retry-After": "86400"}},
    "overloaded": {"status": 503},
    "broken off": {"cut_after": 10},
    "dropped": {"cut_after": 0},
}
WAITS = {
    "rate limit": 7.0,
    "rate limit until a date": 9.0,
    "a day's rate limit": 300.0,
    "rate limit without end": 300.0,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_when_the_server_fails_for_a_while(
    fault: str, server: LoopbackJudge, remote: RemoteJudge
) -> None:
    server.fail(CHAT, times=2, **FAULTS[fault])
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", None))
    assert values(judged) == EXPECTED
    assert judging.missing == 0
    assert server.waits == ([WAITS[fault]] * 2 if fault in WAITS else [1.0, 2.0])


def test_a_server_that_stalls_is_asked_again(server: LoopbackJudge, remote: RemoteJudge) -> None:
    server.fail(CHAT, pause=1.5)
    impatient = replace(remote, timeout=0.5)
    (judged,), _ = judge_measurements([answered(*ANSWERS)], opened(impatient), VerdictFile("m", "m", None))
    assert values(judged) == EXPECTED
    assert server.waits == [1.0]


def test_a_server_that_trickles_is_given_up_at_the_deadline(server: LoopbackJudge, remote: RemoteJudge) -> None:
    server.says = lambda messages: "yes"
    clock = iter(range(1000))
    trickling = replace(remote, timeout=0.5, attempts=1, now=lambda: float(next(clock)))
    with pytest.raises(JudgeUnavailable, match=naming("timed out")):
        list(trickling.verdicts(["Is it?"] * 3))


NO_COMPLETIONS = (
    b"<html>",
    b"{}",
    b'{"choices": []}',
    b'{"choices": [{"message": 1}]}',
    b"[]",
    b"[" * 100_000,
    b"\xff",
)


@pytest.mark.parametrize("reply", NO_COMPLETIONS, ids=lambda reply: repr(reply[:30]))
def test_what_is_no_completion_is_no_verdict(reply: bytes, server: LoopbackJudge, remote: RemoteJudge) -> None:
    server.says = lambda messages: reply
    (judged,), judging = judge_measurements([answered("of rock")], opened(remote), VerdictFile("m", "m", None))
    assert values(judged)["not judged"] == 1
    assert judging.missing == 2
    assert len(server.requests) == 2 * remote.attempts


def test_an_answer_that_the_server_refuses_stops_nothing(server: LoopbackJudge, remote: RemoteJudge) -> None:
    server.fail(CHAT, 400)
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", None))
    assert (judging.missing, judging.failure) == (1, None)
    assert values(judged)["not judged"] == 0.25
    assert len(server.requests) == 8
    assert not server.waits


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_judge_that_refuses_everything_is_asked_once(status: int, server: LoopbackJudge, remote: RemoteJudge) -> None:
    server.fail(CHAT, status, times=100)
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", None))
    assert judging.missing == 8
    assert judging.failure is not None
    assert_names(judging.failure, "--judge-url", status, "SEA_EXPORT_JUDGE_KEY")
    assert KEY not in judging.failure
    assert len(server.requests) == 1
    assert values(judged) == {"length": 1.0, "not judged": 1.0}


def test_a_judge_that_goes_away_keeps_what_it_said(server: LoopbackJudge, remote: RemoteJudge, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    seen: list[str] = []

    def dying(messages: list[str]) -> str:
        seen.append(messages[0])
        if len(seen) == 3:
            server.fail(CHAT, 500, times=10**6)
        return by_rule(messages)

    server.says = dying
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", file))
    assert (judging.asked, judging.missing) == (8, 5)
    assert judging.failure is not None
    assert_names(judging.failure, "500", "--judge-url")
    assert len(server.requests) == 3 + 3 * remote.attempts
    assert values(judged)["not judged"] == 0.75
    server.reset()
    (judged,), judging = judge_measurements([answered(*ANSWERS)], opened(remote), VerdictFile("m", "m", file))
    assert len(server.requests) == 5
    assert values(judged) == EXPECTED


def test_the_key_is_not_shown(remote: RemoteJudge) -> None:
    assert KEY not in repr(remote)
    for broken in ("sk-one\nsk-two", "sk-\u00fc"):
        with pytest.raises(InputError, match=naming("SEA_EXPORT_JUDGE_KEY")) as found:
            replace(remote, key=broken)
        assert "sk-" not in str(found.value)


def test_the_key_does_not_follow_to_another_address(server: LoopbackJudge, remote: RemoteJudge) -> None:
    server.fail(CHAT, 302, headers={"Location": f"{server.storage}/elsewhere"})
    with pytest.raises(JudgeUnavailable):
        list(remote.verdicts(["Is it?"]))
    assert [request.token for request in server.requests if request.host == "localhost"] == [""]


def test_a_local_judge_compares_likelihoods(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    import torch

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None

    def likelihood(prompt: list[int], completion: list[int]) -> float:
        with torch.no_grad():
            logits = llama(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
        return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(completion))

    prompts = [f"Is the answer {word} of rock?" for word in ("not", "to be", "a poet", "the sea", "Rome")]
    for own, before, gap in ((tokenizer, "<|user|>{}<|end|>\n<|assistant|>", ""), (plain, "{}\nReply:", " ")):
        found = list(LocalJudge(llama, own, {}).verdicts(prompts))
        for prompt, verdict in zip(prompts, found, strict=True):
            tokens = own(before.format(prompt)).input_ids
            yes, no = (
                sum(2.718281828 ** likelihood(tokens, own(gap + word).input_ids) for word in words)
                for words in (("Yes", "yes"), ("No", "no"))
            )
            assert verdict is (yes > no)
        assert found == list(LocalJudge(llama, own, {}).verdicts(prompts))


def evaluate(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_a_model_is_judged_from_end_to_end(
    server: LoopbackJudge, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("SEA_EXPORT_JUDGE_KEY", KEY)
    questions, figures = write_truthfulqa(tmp_path / "questions.csv"), tmp_path / "figures.json"
    arguments = (
        *(tiny_checkpoint, "--against", tiny_checkpoint, "--benchmark", f"truthfulqa-generation={questions}"),
        *("--new-tokens", 4, "--json", figures, "--judge", "m", "--judge-url", server.url),
    )
    server.fail(CHAT, 401)
    result = evaluate(*arguments)
    assert result.exit_code == 1
    assert_names(result.stderr, "--judge-url", "401")
    kept = json.loads(figures.read_text(encoding="utf-8"))["benchmarks"][0]
    assert len(kept["answers"]) == len(kept["base_answers"]) == 8
    server.reset()
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    assert_names(result.output, "truthful and informative")
    assert len(server.requests) == 16
    assert {request.token for request in server.requests} == {KEY}
    record = json.loads(figures.read_text(encoding="utf-8"))
    assert record["judging"] == {"judge": "m", "asked": 16, "missing": 0, "failure": None}
    shares = {figure["name"]: figure for figure in record["benchmarks"][0]["figures"]}
    assert shares["informative"]["value"] == [1.0, 1.0, 1.0]
    assert shares["informative"]["difference"] == [0.0, 0.0, 0.0]
    assert all(answer["informative"] is True for answer in record["benchmarks"][0]["answers"])
    assert (tmp_path / "figures.verdicts.jsonl").exists()
    server.reset()
    assert evaluate(*arguments).exit_code == 0
    assert not server.requests
    assert not [file for file in tmp_path.iterdir() if KEY in file.read_text(encoding="utf-8")]


def test_a_local_judge_from_end_to_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    questions, cache = write_truthfulqa(tmp_path / "questions.csv"), tmp_path / "verdicts.jsonl"
    result = evaluate(
        *(tiny_checkpoint, "--benchmark", f"truthfulqa-generation={questions}", "--new-tokens", 4, "--limit", 3),
        *("--judge", tiny_checkpoint, "--judge-cache", cache),
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 6
    assert {line["judge"] for line in lines} == {tiny_checkpoint.name}
