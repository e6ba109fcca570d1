"""Text of unknown origin is text in a card: every reader of Markdown shows it as it is written."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import sea_export
from sea_export.cards.markdown import Markdown, escaped, markdown, python_text, table
from sea_export.cards.model_card import model_card
from sea_export.errors import InputError
from sea_export.export.manifest import read_manifest
from sea_export.text import visible

READER = MarkdownIt("gfm-like", {"linkify": False})
HOSTILE = (
    "# heading",
    "<img src=x onerror=alert(1)>",
    "[go](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "<https://evil.example>",
    "https://evil.example www.evil.example a@evil.example",
    "*a* **b** _c_ __d__ ~~e~~ `f` $g$ :tada:",
    "mit`\n\n# INJECTED\n\n<script>`",
    "a | b | c",
    "- list",
    "+ list",
    "1. list",
    "12) list",
    "---",
    "===",
    "~~~",
    "```python",
    "    code",
    "> quote",
    "&lt;b&gt; &#35; &amp",
    "ends in \\",
    "\\*not escaped\\*",
    "[a]: http://evil.example",
    "{{ 7 * 7 }} {% raw %} {0}",
    "\x1b[31m\u202e\ud800",
    "model.layers.1.mlp.down_proj.weight, MC1 (%), 3.5 - 4",
)
MARKS = st.text(alphabet=st.sampled_from("\\`*_{}[]<>()#+-.!|~$&@:;=/ \n\t1wa^\"'"), max_size=12)


def shown(text: str) -> str:
    return visible(" ".join(text.split()))


def blocks_of(source: str) -> list[tuple[str, str]]:
    """The blocks of a page by their tag, each with its text; fails for anything in a block but text."""
    tokens = READER.parse(source)
    blocks = []
    for opened, token in itertools.pairwise(tokens):
        if token.type == "inline":
            assert token.children is not None
            assert {child.type for child in token.children} <= {"text", "text_special"}, token
            blocks.append((opened.tag, "".join(child.content for child in token.children)))
    return blocks


@settings(max_examples=400, deadline=None)
@given(st.one_of(MARKS, st.text(max_size=20)))
@example("_a_b_")
@example("a_")
@example("1.")
@example("-")
@example("&a;&#1;")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert_shown(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text: str) -> None:
    assert_shown(text)
    assert not re.search(r"https?://|www\.|(?<!\\)@|(?<!\\):\w+:", escaped(text)), (
        "an address becomes a link without marks"
    )


def assert_shown(text: str) -> None:
    """At the beginning of a page, in a heading, a list, a sentence and a table, and after another line."""
    source, expected = escaped(text), shown(text)
    assert blocks_of(source) == ([("p", expected)] if expected else [])
    assert blocks_of(f"# {source}, edited") == [("h1", f"{expected}, edited")]
    assert blocks_of(f"- of {source}: so.") == [("p", f"of {expected}: so.")]
    assert blocks_of(table(["a"], [[text]])) == [("th", "a"), ("td", expected)]
    assert len(READER.parse(f"before\n{source}")) == 3, "it begins nothing of its own after another line"


def test_values_are_escaped_once() -> None:
    link = markdown("[{}](https://example.org)", "a*b")
    assert link == "[a\\*b](https://example.org)"
    assert escaped(link) is link
    assert markdown("see {}, {}", link, 7) == f"see {link}, 7"
    assert table(["a|b", Markdown("**c**")], [["<x>", 0.5]]) == "| a\\|b | **c** |\n| --- | --- |\n| \\<x\\> | 0.5 |"


@pytest.mark.parametrize("text", [*HOSTILE, '"); import os; ("', "a\nb"])
def test_text_in_code_is_one_literal(text: str) -> None:
    code = python_text(text)
    assert "\n" not in code
    assert json.loads(code) == visible(text)
    compile(code, "card", "eval")


# Cards


def leaves(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all texts in a record."""
    if isinstance(record, str):
        return [path]
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [leaf for key, value in items for leaf in leaves(value, (*path, key))]


def replaced(record: Any, path: tuple[Any, ...], text: str) -> Any:
    changed = copy.deepcopy(record)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = text
    return changed


@pytest.fixture(scope="module")
def manifest(
    llama, fit_tiny: Callable[..., Any], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The manifest of an adapter, which says the most, with everything that a manifest may tell."""
    output = tmp_path_factory.mktemp("cards") / "out"
    sea_export.save(fit_tiny(llama), tiny_checkpoint, output, format="adapter", verify=False)
    interval = [0.5, 0.4, 0.6]
    metric = {"name": "MC1", "unit": "%", "group": "Age", "best": 1.0, "value": interval, "base": interval}
    figures = [{**metric, "difference": interval, "p_value": 0.5}]
    agreement = {"max_logit_difference": 0.1, "mean_divergence": 0.1, "equal_greedy": 0.1}
    names = ("mathematics", "storage", "base_rounding", "effect")
    found = read_manifest(output)
    found["edit"]["tuning"] = {
        "benchmark": "bbq",
        "metric": "MC1",
        "pick": "best",
        "rows": 5,
        "max_kl": 0.1,
        "trials": 3,
    }
    answers = {"base": "Yes.", "base_marks": ["loops"], "edited": "No.", "edited_marks": ["cut off"]}
    found["edit"]["examples"] = {"prompts": 12, "shown": [{"prompt": "Is it?", **answers, "surprise": 2.0}]}
    found["edit"]["demonstrations"]["origin"] = {"source": "rows.jsonl"}
    return {
        **found,
        "base": {**found["base"], "metadata": {"license": "other", "license_name": "own", "language": ["en"]}},
        "verification": {**dict.fromkeys(names, agreement), "dtype": "float32", "exact": True, "statement": "It is."},
        "evaluation": {
            "against": "base",
            "dtype": "float32",
            "benchmarks": [{"benchmark": "bbq", "rows": 9, "figures": figures}],
        },
        "repository": "me/edited",
    }


PAYLOAD = 'x`\n\n# INJECTED\n\n<img src=x> [go](http://evil.example) | *b*\n```\n---\nlicense: injected\n"'


def outline(card: str) -> list[str]:
    """The kinds of everything in a card but its words."""
    kinds = []
    for token in READER.parse(ModelCard(card).text):
        kinds.append(token.type)
        kinds += [child.type for child in token.children or () if child.type not in ("text", "softbreak")]
    return kinds


def test_no_text_of_a_manifest_becomes_markup(manifest: Any) -> None:
    """Every text of it in turn: the card is refused, or has the headings, tables and links that it has with a word."""
    shown_somewhere = 0
    for path in leaves(manifest):
        try:
            card = model_card(replaced(manifest, path, PAYLOAD))
        except (AttributeError, LookupError, TypeError, ValueError, InputError):
            continue
        assert outline(card) == outline(model_card(replaced(manifest, path, "word.word"))), path
        assert ModelCard(card).data.to_dict().get("license") in ("other", PAYLOAD), path
        shown_somewhere += "INJECTED" in ModelCard(card).text
    assert shown_somewhere >= 12, "few texts are shown, so that little was tried"
