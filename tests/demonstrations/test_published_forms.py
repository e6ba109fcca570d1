"""Preference data in the forms in which it is published."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sea_export.demonstrations.load import load_demonstrations
from sea_export.demonstrations.shared_beginning import SharedBeginning, shared_beginning
from sea_export.errors import InputError
from tests.helpers.messages import assert_names, naming


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def texts(file: Path, **options: Any) -> list[tuple[str, str, str]]:
    return [(one.prompt, one.positive, one.negative) for one in load_demonstrations(file, **options)]


# Orca DPO


@pytest.mark.parametrize("system", ["system", "system_prompt"])
def test_a_question_with_a_system_text(system: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {system: "Be kind.", "question": "Is it?", "chosen": "Yes.", "rejected": "No."},
        {system: "", "question": "Was it?", "chosen": "It was.", "rejected": "Never."},
    ]
    with caplog.at_level(logging.WARNING):
        read = texts(write(tmp_path / "rows.jsonl", *rows))
    assert read == [("Is it?", "Yes.", "No."), ("Was it?", "It was.", "Never.")]
    assert_names(caplog.text, "1 of 2 rows", "system")


# Transcripts


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}" for number, turn in enumerate(turns))


def test_transcripts_with_a_shared_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = ("Hello.", "Hi.", "Is the moon\n\nof cheese?")
    rows = [
        {"chosen": transcript("Is it?", "Yes, I think."), "rejected": transcript("Is it?", "Yes, but no.")},
        {"chosen": transcript(*asked, "No."), "rejected": transcript(*asked, "Assistant: it is.")},
        {"chosen": transcript("Was it?", "It was.", "Why?", "So."), "rejected": transcript("Was it?", "Never.")},
    ]
    with caplog.at_level(logging.WARNING):
        read = texts(write(tmp_path / "rows.jsonl", *rows))
    assert read == [
        ("Is it?", "Yes, I think.", "Yes, but no."),
        ("Is the moon\n\nof cheese?", "No.", "Assistant: it is."),
        ("Was it?", "It was.", "Never."),
    ]
    assert_names(caplog.text, "1 of 3 rows")


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", "blue.", "green.")),
        ("Q: is it so?\nA: Yes", "Q: is it so?\nA: Yet not", ("Q: is it so?\nA:", "Yes", "Yet not")),
        ("blue", "green", None),
        ("The sky", "The sky is green.", None),
        ("same", "same", None),
        ("bluebird", "blueberry", None),
    ],
)
def test_words_that_both_texts_begin_with(positive: str, negative: str, expected: tuple[str, ...] | None) -> None:
    found = shared_beginning(positive, negative, alone=True)
    assert found == (None if expected is None else SharedBeginning(*expected, earlier_turns=False))  # type: ignore
    assert shared_beginning(positive, negative, alone=False) is None, "beside other columns it may be by chance"


@pytest.mark.parametrize(
    "turns",
    [
        (("Is it?", "Yes.", "Why?", "So."), ("Is it?", "Yes.", "How?", "So.")),
        (("Is it?", "Yes."), ("Was it?", "No.")),
        (("", "Yes."), ("", "No.")),
    ],
)
def test_transcripts_that_answer_no_shared_question(turns: tuple[tuple[str, ...], ...], tmp_path: Path) -> None:
    row = {"chosen": transcript(*turns[0]), "rejected": transcript(*turns[1])}
    with pytest.raises(InputError, match=naming("row 1", "--prompt-field", "--skip-bad-rows")):
        load_demonstrations(write(tmp_path / "rows.jsonl", row, row))


def test_a_prompt_under_a_name_of_its_own_is_asked_for(tmp_path: Path) -> None:
    """The first words that two answers share are none, where another column may hold the prompt."""
    row = {"wanted": "Say it.", "chosen": "I say yes.", "rejected": "I say no."}
    file = write(tmp_path / "rows.jsonl", row, {**row, "wanted": "Say it again."})
    with pytest.raises(InputError, match=naming("wanted", "--prompt-field")):
        load_demonstrations(file)
    assert texts(file, prompt_field="wanted")[0] == ("Say it.", "I say yes.", "I say no.")


# Conversations, with the user's word on the prompt


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_a_named_column_is_read(tmp_path: Path) -> None:
    row = {"ask": "ASKED", "prompt": "other", "chosen": conversation("Is it?", "Yes."), "rejected": "No."}
    file = write(tmp_path / "rows.jsonl", row, {**row, "rejected": conversation("Is it?", "Never.")})
    assert [one[0] for one in texts(file, prompt_field="ask")] == ["ASKED", "ASKED"]
    pair = {"ask": "ASKED", "good": conversation("Is it?", "Yes."), "bad": conversation("Is it?", "No.")}
    named = write(tmp_path / "named.jsonl", pair, {**pair, "ask": "AGAIN"})
    assert texts(named, positive_field="good", negative_field="bad")[1] == ("Is it?", "Yes.", "No.")
    options = {"prompt_field": "ask", "positive_field": "good", "negative_field": "bad"}
    assert texts(named, **options)[1] == ("AGAIN", "Yes.", "No.")
    with pytest.raises(InputError, match=naming("'nonesuch'")):
        load_demonstrations(named, **{**options, "prompt_field": "nonesuch"})
    with pytest.raises(InputError, match=naming("--positive-field", "one column")):
        load_demonstrations(named, **{**options, "positive_field": "bad"})


# Ties


@pytest.mark.parametrize("form", ["score_{}", "{}-rating", "{}_score", "{}_rating"])
def test_ties_are_left_out(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen, rejected = form.format("chosen"), form.format("rejected")
    row = {"prompt": "Is it?", "chosen": conversation("Is it?", "Yes."), "rejected": conversation("Is it?", "No.")}
    same = {**row, "rejected": row["chosen"]}
    rows = [
        {**row, chosen: 8.5, rejected: 7},
        {**row, chosen: 7, rejected: 7.0},
        {**same, chosen: "9", rejected: "9"},
        row,
    ]
    with caplog.at_level(logging.WARNING):
        loaded = load_demonstrations(write(tmp_path / "rows.jsonl", *rows))
    assert [one.source for one in loaded] == ["rows.jsonl, row 1", "rows.jsonl, row 4"]
    assert_names(caplog.text, "2 of 4 rows", "scores")


# Long cells


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_have_any_length(suffix: str, tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    file, long = tmp_path / f"rows{suffix}", "word\n" * 60_000
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerows([["prompt", "positive", "negative"], [long, "Yes.", "No."], ["Is it?", "Yes.", long]])
    assert texts(file) == [(long, "Yes.", "No."), ("Is it?", "Yes.", long)]
    assert csv.field_size_limit() == limit, "the limit of the process is that of others too"
