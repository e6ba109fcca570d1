"""Benchmarks in which models answer: what is asked, what is kept, and which options are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.cli import main
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation import evaluate
from sea_export.evaluation.answering import Answer, answer_prompts
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.evaluation.generation import answer_metrics, load_generation
from sea_export.evaluation.generation_options import GenerationOptions, template_values
from sea_export.evaluation.truthfulqa import load_truthfulqa
from tests.helpers.benchmark_files import write_truthfulqa
from tests.helpers.messages import assert_names, naming

PROMPTS = ["Is it?", "What is the capital of France, and what is the capital of Italy?", "Who wrote the play?"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def options(*benchmarks: str, **others: object) -> EvaluateOptions:
    return EvaluateOptions(benchmarks=benchmarks, **others)  # type: ignore[arg-type]


def test_answers_in_a_batch_are_those_of_each_alone(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    together = answer_prompts(any_model, tokenizer, PROMPTS, new_tokens=6)
    alone = [answer_prompts(any_model, tokenizer, [one], new_tokens=6)[0] for one in PROMPTS]
    assert together == alone
    counts: list[int] = []
    assert answer_prompts(any_model, tokenizer, PROMPTS, new_tokens=6, batch_tokens=1, progress=counts.append) == alone
    assert counts == [1, 1, 1]


def test_where_an_answer_ends(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    (long,) = answer_prompts(llama, tokenizer, ["Is it?"], new_tokens=6)
    assert long.cut_off
    assert len(long.tokens) == 6
    ending = copy.deepcopy(llama)
    assert ending.generation_config is not None
    ending.generation_config.eos_token_id = long.tokens[3]
    end = long.tokens.index(long.tokens[3])
    (short,) = answer_prompts(ending, tokenizer, ["Is it?"], new_tokens=6)
    assert short.tokens == long.tokens[:end]
    assert not short.cut_off
    ending.generation_config.eos_token_id = long.tokens[0]
    assert answer_prompts(ending, tokenizer, ["Is it?"], new_tokens=1) == [Answer("", (), cut_off=False)]


def test_values_reach_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = "{{ messages[0]['content'] }}{% if not enable_thinking %}, no thoughts{% endif %}"
    (thoughts,) = prompt_tokens(thinking, ["Is it?"], template_values={"enable_thinking": True})
    assert thoughts == tokenizer("Is it?").input_ids
    (without,) = prompt_tokens(thinking, ["Is it?"], template_values=template_values('{"enable_thinking": false}'))
    assert without == tokenizer("Is it?, no thoughts").input_ids


def test_metrics_are_those_of_the_answers() -> None:
    answers = [
        Answer("I cannot say.", (1, 2, 3, 4), cut_off=False),
        Answer("so so", (7,) * 13, cut_off=True),
        Answer("", (), cut_off=False),
        Answer("Rock.", (1, 2, 3), cut_off=False),
    ]
    found = {metric.name: (metric.value, metric.unit) for metric in answer_metrics(answers)}
    assert found == {
        "length": (5.0, "tokens"),
        "refusals": (0.25, "%"),
        "loops": (0.25, "%"),
        "repeated 4-grams": (pytest.approx(0.9 / 4), "%"),
        "empty": (0.25, "%"),
        "cut off": (0.25, "%"),
    }
    assert all(len(metric.rows) == 4 for metric in answer_metrics(answers))


def test_prompts_are_read(tmp_path: Path) -> None:
    file = write_truthfulqa(tmp_path / "questions.csv")
    questions = load_truthfulqa(file)
    generation = load_generation(f"truthfulqa-generation={file}", options("damage"))
    assert [row.prompt for row in generation.rows] == [one.question for one in questions]
    assert [row.correct for row in generation.rows] == [one.correct for one in questions]
    assert len(load_generation("prompts", options("damage")).rows) == 12
    assert len(load_generation("prompts", options("damage", limit=5)).rows) == 5
    (tmp_path / "own.txt").write_text("One?\nTwo?\n", encoding="utf-8")
    own = load_generation(f"prompts={tmp_path / 'own.txt'}", options("damage"))
    assert [row.prompt for row in own.rows] == ["One?", "Two?"]
    for text in ("truthfulqa-generation", "truthfulqa-generation=", "prompts="):
        with pytest.raises(InputError, match=naming("--benchmark")):
            load_generation(text, options("damage"))


def test_answers_of_base_and_edit_are_kept(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    edit, output, figures = fit_tiny(llama), tmp_path / "out", tmp_path / "figures.json"
    sea_export.save(edit, tiny_checkpoint, output, verify=False)
    (tmp_path / "own.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    result = run(
        *("evaluate", output, "--against", tiny_checkpoint, "--benchmark", f"prompts={tmp_path / 'own.txt'}"),
        *("--new-tokens", 6, "--json", figures, "--record"),
    )
    assert result.exit_code == 0, result.output
    (report,) = json.loads(figures.read_text(encoding="utf-8"))["benchmarks"]
    base = [one.text for one in answer_prompts(llama, tokenizer, PROMPTS, new_tokens=6)]
    with edit.apply(llama):
        edited = [one.text for one in answer_prompts(llama, tokenizer, PROMPTS, new_tokens=6)]
    assert [one["text"] for one in report["base_answers"]] == base
    assert [one["text"] for one in report["answers"]] == edited != base
    assert [one["prompt"] for one in report["answers"]] == PROMPTS
    assert all(figure["difference"] is not None for figure in report["figures"])
    manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert manifest["evaluation"]["benchmarks"][0]["rows"] == 3
    assert base[0] not in json.dumps(manifest)


GENERATION = ["--benchmark", "truthfulqa-generation={file}"]
BAD_OPTIONS = {
    "no file": (["--benchmark", "truthfulqa-generation"], "truthfulqa-generation=FILE"),
    "judge without questions": (["--benchmark", "prompts", "--judge", "m"], "truthfulqa-generation=FILE"),
    "address without judge": ([*GENERATION, "--judge-url", "http://localhost:1/v1"], "--judge-url"),
    "verdicts without judge": ([*GENERATION, "--judge-cache", "x.jsonl"], "--judge-cache"),
    "no address": ([*GENERATION, "--judge", "m", "--judge-url", "localhost:8000"], "--judge-url"),
    "broken address": ([*GENERATION, "--judge", "m", "--judge-url", "http://[::1"], "--judge-url"),
    "password in the address": (
        [*GENERATION, "--judge", "m", "--judge-url", "http://me:secret@localhost/v1"],
        "SEA_EXPORT_JUDGE_KEY",
    ),
    "no such judge": ([*GENERATION, "--judge", "./no/where"], "./no/where"),
    "verdicts into nowhere": ([*GENERATION, "--judge", "m", "--judge-cache", "no/where.jsonl"], "no/where.jsonl"),
    "verdicts in a table": (
        [*GENERATION, "--judge", "m", "--judge-url", "http://x/v1", "--judge-cache", "{file}"],
        "{file}",
    ),
    "values that are no JSON": (["--benchmark", "prompts", "--chat-template-kwargs", "x=1"], "--chat-template-kwargs"),
    "values that are no object": (["--benchmark", "prompts", "--chat-template-kwargs", "1"], "--chat-template-kwargs"),
    "values of the program": (
        ["--benchmark", "prompts", "--chat-template-kwargs", '{"tokenize": true}'],
        "tokenize",
    ),
    "values for nothing": (["--benchmark", "damage", "--chat-template-kwargs", "{}"], "--chat-template-kwargs"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_before_a_model_is_loaded(
    case: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **others: object) -> None:
        raise AssertionError("a model was loaded before the checks")

    monkeypatch.setattr(evaluate, "open_loaded_model", fail)
    file = str(write_truthfulqa(tmp_path / "questions.csv"))
    given, fact = BAD_OPTIONS[case]
    result = run("evaluate", tiny_checkpoint, *(one.replace("{file}", file) for one in given))
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, fact.replace("{file}", file))
    assert "secret" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error:")]) == 1


def test_compare_gives_values_to_the_chat_template(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=naming("--chat-template-kwargs")):
        GenerationOptions(chat_template_kwargs="[]")
    result = run("compare", tiny_checkpoint, tiny_checkpoint, "--chat-template-kwargs", "[]")
    assert result.exit_code == 2
    assert_names(result.stderr, "--chat-template-kwargs")
