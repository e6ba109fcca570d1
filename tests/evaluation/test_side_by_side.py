"""Answers side by side: what is marked, what is escaped, what is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.answer_pieces import compare_answers
from sea_export.evaluation.answering import answer_prompts
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.evaluation.prompts import load_prompts
from sea_export.evaluation.side_by_side import compare_models
from sea_export.evaluation.side_by_side_page import comparison_page
from sea_export.model.run_options import RunOptions
from tests.helpers.messages import assert_names, naming


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_words_that_differ_are_marked() -> None:
    one = compare_answers(
        "?", "The moon is made of rock.\n\nIt is cold.", "The moon is made of cheese.\n\nIt is cold and old."
    )
    assert [piece.text for piece in one.base if piece.changed] == ["rock.\n\n"]
    assert [piece.text for piece in one.edited if piece.changed] == ["cheese.\n\n", "and old."]
    assert "".join(piece.text for piece in one.base) == "The moon is made of rock.\n\nIt is cold."
    assert one.differs
    assert one.alike


def test_case_and_punctuation_are_not_marked() -> None:
    one = compare_answers("?", "Yes, it is: 'cold'!", "yes it is cold.")
    assert one.differs
    assert not [piece for piece in (*one.base, *one.edited) if piece.changed]
    marks = compare_answers("?", "It costs - 5 $.", "It costs + 5 $.")
    assert [piece.text for piece in marks.base if piece.changed] == ["- "]


def test_answers_that_have_little_in_common_have_no_marked_words() -> None:
    """Nearly all words would be marked, and nobody would see what differs."""
    one = compare_answers("?", "The moon is made of rock.", "I do not know what the moon is.", ("loops",), ("cut off",))
    assert one.differs
    assert not one.alike
    assert not [piece for piece in (*one.base, *one.edited) if piece.changed]
    page = comparison_page("org/base", "org/edited", [one])
    assert "Another answer" in page
    assert page.count('class="mark"') == 2
    assert "loops" in page
    assert "cut off" in page
    assert "Another answer" not in comparison_page("org/base", "org/edited", [compare_answers("?", "Yes.", "Yes.")])


def test_equal_answers_have_no_marks() -> None:
    one = compare_answers("?", "No, of rock.", "No,  of rock.")
    assert not one.differs
    assert not compare_answers("?", "", "").differs
    assert compare_answers("?", "", "Yes.").differs


class Reader(HTMLParser):
    """Tags and visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name in ("src", "href")], "the page needs no other file"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_whatever_was_written() -> None:
    attack = '<script>alert("x")</script> & <img src=x onerror=y>'
    one = compare_answers(attack, f"{attack} a", f"{attack} b")
    page = comparison_page(f"base {attack}", f"edited {attack}", [one])
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert attack in reader.text
    assert reader.tags.count("del") == reader.tags.count("ins") == 2  # one each in the explanation
    assert "1 of 1 answers differ" in re.sub(r"\s+", " ", reader.text)


def test_answers_are_greedy_and_in_the_template(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    import torch

    for template, text in (
        ("qa", "Q: Is it?\nA:"),
        ("none", "Is it?"),
        ("chat", "<|user|>Is it?<|end|>\n<|assistant|>"),
        ("auto", "<|user|>Is it?<|end|>\n<|assistant|>"),
    ):
        (found,) = answer_prompts(llama, tokenizer, ["Is it?"], template=template, new_tokens=5)
        answer = found.text
        tokens = tokenizer(text).input_ids
        for _ in range(5):
            with torch.no_grad():
                tokens.append(int(llama(torch.tensor([tokens])).logits[0, -1].argmax()))
        expected = tokenizer.decode(tokens[-5:], skip_special_tokens=True).strip()
        assert expected.startswith(answer)
        assert answer or not expected


def test_without_a_chat_template(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    assert answer_prompts(llama, plain, ["Is it?"], new_tokens=4) == answer_prompts(
        llama, plain, ["Is it?"], template="qa", new_tokens=4
    )
    with pytest.raises(InputError, match=naming("--template qa")):
        answer_prompts(llama, plain, ["Is it?"], template="chat", new_tokens=4)


def test_reading_prompts(tmp_path: Path) -> None:
    assert len(load_prompts(None)) == 12
    (tmp_path / "prompts.txt").write_text("One?\n\nTwo?\n", encoding="utf-8")
    assert load_prompts(str(tmp_path / "prompts.txt")) == ("One?", "Two?")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "One?"}\n{"question": "Two?"}\n', encoding="utf-8")
    assert load_prompts(str(tmp_path / "prompts.jsonl")) == ("One?", "Two?")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "One?"}\n{"text": "Two?"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=naming("bad.jsonl, row 2")):
        load_prompts(str(tmp_path / "bad.jsonl"))
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=naming("empty.txt", "prompts")):
        load_prompts(str(tmp_path / "empty.txt"))


def test_compare_prints_both_answers_and_writes_a_page(
    llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output, page = tmp_path / "out", tmp_path / "page.html"
    sea_export.save(fit_tiny(llama), tiny_checkpoint, output, format="adapter", verify=False)
    prompts = ("--prompt", "Is the moon made of rock?", "--prompt", "What boils?")
    result = run("compare", tiny_checkpoint, output, *prompts, "--new-tokens", 8, "--html", page)
    assert result.exit_code == 0, result.output
    assert_names(result.output, "2 of 2")
    assert "What boils?" in result.output
    assert "[-" in result.output or "fewer than half" in result.output
    assert "[cut off]" in result.output
    assert Reader(page.read_text(encoding="utf-8")).tags.count("section") == 2
    same = run("compare", tiny_checkpoint, tiny_checkpoint, *prompts, "--new-tokens", 8)
    assert_names(same.output, "0 of 2")
    assert "[-" not in same.output
    assert "fewer than half" not in same.output


def test_an_edit_is_compared_with_its_base(
    llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As its export is; at half its strength as the export of half of it; and at no strength nothing differs."""
    edit = fit_tiny(llama)
    edit.save(tmp_path / "edit")
    prompts = ("--prompt", "Is the moon made of rock?", "--prompt", "What boils?", "--new-tokens", 8)
    tables = {}
    for strength in (1.0, 0.5):
        output = tmp_path / f"out-{strength}"
        sea_export.save(edit * strength, tiny_checkpoint, output, verify=False)
        tried = compare_models(str(tiny_checkpoint), str(tmp_path / "edit"), options(strength), RunOptions())
        baked = compare_models(str(tiny_checkpoint), str(output), options(None), RunOptions())
        assert tried.answers == baked.answers
        tables[strength] = tried.answers
    assert tables[1.0] != tables[0.5]
    result = run("compare", tiny_checkpoint, tmp_path / "edit", *prompts, "--strength", 0)
    assert result.exit_code == 0, result.output
    assert_names(result.output, "0 of 2", "edit at strength 0")


def options(strength: float | None) -> CompareOptions:
    return CompareOptions(own_prompts=("Is the moon made of rock?", "What boils?"), new_tokens=8, strength=strength)


def test_bad_options(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for options, fact in (
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--html", tmp_path / "no" / "page.html"], tmp_path / "no" / "page.html"),
    ):
        result = run("compare", tiny_checkpoint, tiny_checkpoint, *options)
        assert result.exit_code == 2
        assert_names(result.stderr, fact)
