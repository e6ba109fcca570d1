"""Answers before and after: chosen by a rule that shows the worst one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.example_answers import ANSWER_TOKENS, ExampleAnswer, chosen_examples, example_answers


def answer(prompt: str, surprise: float | None, *marks: str, changed: bool = True) -> ExampleAnswer:
    return ExampleAnswer(prompt, "before", (), "after" if changed else "before", marks, surprise)


def test_the_worst_answer_is_the_last() -> None:
    answers = [
        answer("c", 3.0),
        answer("same", 0.1, changed=False),
        answer("a", 1.0),
        answer("d", 4.0),
        answer("b", 2.0),
    ]
    assert [one.prompt for one in chosen_examples(answers)] == ["a", "c", "d"]
    assert chosen_examples([*answers, answer("loop", 0.5, "loops")])[-1].prompt == "loop"
    assert chosen_examples([*answers, answer("empty", None)])[-1].prompt == "empty"


def test_few_answers() -> None:
    assert [one.prompt for one in chosen_examples([answer("a", 1.0)])] == ["a"]
    assert [one.prompt for one in chosen_examples([answer("a", 1.0), answer("b", 2.0)])] == ["a", "b"]
    same = [answer("a", 1.0, changed=False), answer("b", 2.0, changed=False)]
    assert chosen_examples(same), "an edit that changes no answer shows that it changes none"


def test_both_models_answer(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, fit_tiny: Callable[..., SpectralEdit]
) -> None:
    edit = fit_tiny(llama)
    prompts = ["What boils?", "Is the moon made of rock?", "Who wrote the play?"]
    answers = example_answers(llama, tokenizer, edit, prompts)
    assert [one.prompt for one in answers] == prompts
    assert any(one.changed for one in answers)
    assert all(one.surprise is None or one.surprise > 0 for one in answers)
    unchanged = example_answers(llama, tokenizer, edit * 0, prompts)
    assert not any(one.changed for one in unchanged)
    assert [one.base for one in answers] == [one.base for one in unchanged]


def test_prompts_without_room_for_an_answer_are_left_out(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    fit_tiny: Callable[..., SpectralEdit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = "sea_export.evaluation.example_answers.position_limit"
    (tokens,) = prompt_tokens(tokenizer, ["What boils?"])
    for room, count in ((0, 1), (-1, 0)):
        monkeypatch.setattr(limit, lambda _, room=room: len(tokens) + ANSWER_TOKENS + room)
        answers = example_answers(llama, tokenizer, fit_tiny(llama), ["What boils?", "Is the moon made of " * 9])
        assert len(answers) == count
