"""TruthfulQA against the definitions of its metrics, written out again here."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.errors import InputError
from sea_export.evaluation.truthfulqa import (
    PROMPTS,
    TruthfulQuestion,
    evaluate_truthfulqa,
    load_truthfulqa,
)
from tests.helpers.messages import naming

COLUMNS = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
ROWS = [
    ["Adversarial", "Cheese", "What is the moon made of?", "Rock", "Rock; It is rock.", "Cheese; Green cheese"],
    ["Adversarial", "Birds", 'Do swans, as some say, "sing"?', "No", "They do not; No;", "Yes; ; They sing once"],
    ["Adversarial", "Birds", "Do geese?", "They honk.", "They honk", "They sing"],
    ["Non-Adversarial", "Fish", "Do fish sleep?", "Yes", "Yes; Yes; In a way", "No; Never; Fish cannot sleep"],
    ["Non-Adversarial", "Long", "Why?", "Because", f"Because; {'so ' * 200}", f"{'no ' * 200}; {'on ' * 201}"],
]  # fmt: skip


def write_csv(path: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(columns)
        table.writerows([*row, "https://example.org"] for row in rows)
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> tuple[TruthfulQuestion, ...]:
    return load_truthfulqa(write_csv(tmp_path_factory.mktemp("truthfulqa") / "questions.csv", ROWS))


def log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, answers: tuple[str, ...]
) -> list[list[float]]:
    """For each answer, log p of each of its tokens, from one plain forward pass."""
    start = len(tokenizer(prompt)["input_ids"])
    scores = []
    for answer in answers:
        ids = tokenizer(f"{prompt} {answer}")["input_ids"]
        with torch.no_grad():
            log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores.append([log_probabilities[i - 1, ids[i]].item() for i in range(start, len(ids))])
    return scores


@pytest.mark.parametrize("prompt", ["qa-primer", "plain"])
def test_metrics_follow_their_definitions(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: tuple[TruthfulQuestion, ...],
    prompt: str,
) -> None:
    scores = evaluate_truthfulqa(llama, tokenizer, questions, prompt=prompt, batch_tokens=300)
    for index, question in enumerate(questions):
        text = PROMPTS[prompt].replace("{question}", question.question)
        true_tokens = log_likelihoods(llama, tokenizer, text, question.correct)
        true = np.array([sum(tokens) for tokens in true_tokens], dtype=np.longdouble)
        false = np.array(
            [sum(tokens) for tokens in log_likelihoods(llama, tokenizer, text, question.incorrect)],
            dtype=np.longdouble,
        )
        # Extended precision reaches e^-11000, so that nothing vanishes here.
        probability_true, probability_false = np.exp(true).sum(), np.exp(false).sum()
        best = true[list(question.correct).index(question.best)]
        assert scores.mc1[index] == (1 if best > false.max() else 0)
        expected_mc2 = probability_true / (probability_true + probability_false)
        assert scores.mc2[index] == pytest.approx(float(expected_mc2), abs=2e-4)
        assert scores.mc3[index] == pytest.approx(np.mean(true > false.max()))
        per_token = [-np.mean(tokens) for tokens in true_tokens]
        assert scores.negative_log_likelihood[index] == pytest.approx(np.mean(per_token), abs=1e-4)


def test_the_sample_can_tell_right_from_wrong(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: tuple[TruthfulQuestion, ...]
) -> None:
    """Negative control of the test above: both outcomes occur, and swapping the answers turns MC2 around."""
    scores = evaluate_truthfulqa(llama, tokenizer, questions)
    assert 0 < sum(scores.mc1) < len(questions)
    swapped = [
        TruthfulQuestion(one.question, one.incorrect[0], one.incorrect, one.correct, one.category) for one in questions
    ]
    turned = evaluate_truthfulqa(llama, tokenizer, swapped).mc2
    assert [a + b for a, b in zip(scores.mc2, turned, strict=True)] == pytest.approx([1] * len(questions), abs=1e-4)


def test_answers_whose_probabilities_vanish_still_compare(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    long, longer = "so " * 300 + ".", "so " * 300 + "and so on."
    question = TruthfulQuestion("Why?", long, (long,), (longer,), "Long")
    scores = evaluate_truthfulqa(llama, tokenizer, [question])
    text = PROMPTS["qa-primer"].replace("{question}", "Why?")
    assert np.exp(sum(log_likelihoods(llama, tokenizer, text, (long,))[0])) == 0
    assert 0.5 < scores.mc2[0] <= 1


def test_the_primer_is_the_published_one() -> None:
    """Figures are comparable with published ones only if every character is."""
    prompt = PROMPTS["qa-primer"]
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    assert digest == "72cfd96668aae373ed163f14e9287fa4a4937171dcdc4868bdd741a87227d51d"
    assert prompt.count("Q: ") == prompt.count("\nA:") == 7
    assert prompt.endswith(PROMPTS["plain"])


def test_reading_the_table(questions: tuple[TruthfulQuestion, ...]) -> None:
    assert questions[0] == TruthfulQuestion(
        question="What is the moon made of?",
        best="Rock.",
        correct=("Rock.", "It is rock."),
        incorrect=("Cheese.", "Green cheese."),
        category="Cheese",
    )
    assert questions[1].question == 'Do swans, as some say, "sing"?'
    assert questions[1].incorrect == ("Yes.", "They sing once.")
    assert questions[3].correct == ("Yes.", "Yes.", "In a way.")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "plain.csv", [row[1:] for row in ROWS], COLUMNS[1:])
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_truthfulqa(marked) == load_truthfulqa(path)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        (["x", "x", "Why?", "A", "B; C", "D"], ["bad.csv, row 2", "'A.'"]),
        (["x", "x", "Why?", "A", "A; C", " ; "], ["bad.csv, row 2", "incorrect answers"]),
        (["x", "x"], ["bad.csv, row 2", "fields"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: list[str], facts: list[str]) -> None:
    path = write_csv(tmp_path / "bad.csv", [ROWS[0], row])
    with pytest.raises(InputError, match=naming(*facts)):
        load_truthfulqa(path)


def test_files_that_are_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=naming("missing.csv")):
        load_truthfulqa(tmp_path / "missing.csv")
    without_best = [[*row[:3], *row[4:]] for row in ROWS]
    with pytest.raises(InputError, match=naming("other.csv", "Best Answer")):
        load_truthfulqa(write_csv(tmp_path / "other.csv", without_best, [c for c in COLUMNS if c != "Best Answer"]))
    with pytest.raises(InputError, match=naming("empty.csv", "questions")):
        load_truthfulqa(write_csv(tmp_path / "empty.csv", []))


def test_an_unknown_prompt_is_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=naming("qa-primer", "plain")):
        evaluate_truthfulqa(llama, tokenizer, [], prompt="chat")
