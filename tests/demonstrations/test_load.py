"""Reading demonstrations: every format and convention, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sea_export.demonstrations.demonstration import Demonstration, demonstrations_digest
from sea_export.demonstrations.load import BUILTIN, load_demonstrations
from sea_export.errors import InputError
from tests.helpers.messages import assert_names, naming

TRIPLES = [
    ("What floats?", "Wood floats.", "Lead floats."),
    ("What burns?", "Paper burns.", "Sand burns.\n\nAlways."),
    ("Who says «да»?", "Some do; “many” don't.", 'No one, "ever"'),
]
OURS = ("prompt", "positive", "negative")


def rows_of(columns: Sequence[str], triples: Sequence[Sequence[str]] = TRIPLES) -> list[dict[str, str]]:
    return [dict(zip(columns, triple, strict=True)) for triple in triples]


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, str]], delimiter: str, encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as lines:
        table = csv.DictWriter(lines, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def triples_of(demonstrations: Sequence[Demonstration]) -> list[tuple[str, str, str]]:
    return [(one.prompt, one.positive, one.negative) for one in demonstrations]


def load_rows(tmp_path: Path, rows: Sequence[object], **options: Any) -> tuple[Demonstration, ...]:
    return load_demonstrations(write_lines(tmp_path / "rows.jsonl", rows), **options)


# Files


def test_reads_json_lines_with_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    """U+2028 ends no line, although str.splitlines() thinks so."""
    path = tmp_path / "some.jsonl"
    first, *others = rows_of(OURS)
    first["positive"] += "\u2028So it does."
    lines = [json.dumps(row, ensure_ascii=False) for row in (first, *others)]
    path.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    demonstrations = load_demonstrations(path)
    assert triples_of(demonstrations) == [tuple(first.values()), *TRIPLES[1:]]
    assert [one.source for one in demonstrations] == [
        "some.jsonl, row 1",
        "some.jsonl, row 2 (line 3)",
        "some.jsonl, row 3 (line 5)",
    ]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
def test_reads_a_json_list_bare_or_under_data(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "some.json"
    path.write_text("\ufeff" + json.dumps(wrap(rows_of(OURS)), indent=1), encoding="utf-8")
    demonstrations = load_demonstrations(str(path))
    assert triples_of(demonstrations) == TRIPLES
    assert demonstrations[2].source == "some.json, row 3"


def test_reads_json_lines_that_are_called_json(tmp_path: Path) -> None:
    assert triples_of(load_demonstrations(write_lines(tmp_path / "some.json", rows_of(OURS)))) == TRIPLES


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_reads_tables_with_line_breaks_and_quotes(tmp_path: Path, suffix: str, delimiter: str, encoding: str) -> None:
    path = write_table(tmp_path / f"some{suffix}", rows_of(OURS), delimiter, encoding)
    demonstrations = load_demonstrations(path)
    assert triples_of(demonstrations) == TRIPLES
    assert demonstrations[2].source == f"some{suffix}, row 3"


def test_reads_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "some.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(OURS)), path)
    assert triples_of(load_demonstrations(path)) == TRIPLES


@pytest.mark.parametrize("name", BUILTIN)
def test_the_builtin_demonstrations_load(name: str) -> None:
    assert load_demonstrations(f"builtin:{name}")[0].source == f"builtin:{name}, row 1"


def test_parquet_without_pyarrow_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "some.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=naming("pip install", "sea-export[datasets]")):
        load_demonstrations(tmp_path / "some.parquet")


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        (
            "a.jsonl",
            b'{"prompt": "p", "positive": "a", "negative": "b"}\n\n{"prompt": oops}\n',
            ["a.jsonl, row 2 (line 3)", "JSON"],
        ),
        ("a.jsonl", b"[1, 2]\n", ["a.jsonl, row 1", "list"]),
        ("a.jsonl", b"\n", ["a.jsonl", "rows"]),
        ("a.jsonl", b'{"prompt": "\xff"}', ["a.jsonl", "UTF-8"]),
        ("a.json", b'[{"prompt": "p"},\n oops]', ["a.json, line 2", "JSON"]),
        ("a.json", b'{"rows": []}', ["a.json", "list"]),
        ("a.json", b'{"data": ["p"]}', ["a.json, row 1", "str"]),
        ("a.csv", b"prompt,positive,negative\n1,2,3\n1,2\n", ["a.csv, row 2", "fields"]),
        ("a.csv", b"prompt,positive,negative\n1,2,3,4\n", ["a.csv, row 1", "fields"]),
        ("a.csv", b'prompt,positive,negative\n1,2,"3\n', ["a.csv, line 2"]),
        ("a.parquet", b"not parquet", ["a.parquet", "Parquet"]),
        ("a.txt", b"prompt", ["a.txt", ".jsonl"]),
    ],
)
def test_unreadable_files_are_refused_where_they_break(
    tmp_path: Path, name: str, content: bytes, facts: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=naming(*facts)):
        load_demonstrations(tmp_path / name)


def test_missing_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=naming("absent.jsonl")):
        load_demonstrations(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match=naming("absent", ".jsonl", "Hub")):
        load_demonstrations("absent")
    with pytest.raises(InputError, match=naming(tmp_path, ".jsonl", "Hub")):
        load_demonstrations(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=naming("folder.jsonl", "Is a directory")):
        load_demonstrations(tmp_path / "folder.jsonl")
    with pytest.raises(InputError, match=naming("honesty", "builtin:truthfulness", "builtin:fairness")):
        load_demonstrations("builtin:honesty")


# The Hub


class FakeHub:
    """Stands for the datasets library: what was asked of it, and what it answers."""

    def __init__(self, answer: Any) -> None:
        self.asked: tuple[str | None, ...] | None = None
        self.answer = answer
        self.exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))

    def load_dataset(
        self, path: str, config: str | None, *, split: str | None, revision: str | None, trust_remote_code: bool
    ) -> Any:
        assert not trust_remote_code
        self.asked = (path, config, split, revision)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if split is None else self.answer[split]


def use_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> FakeHub:
    hub = FakeHub(answer)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    return hub


@pytest.mark.parametrize(
    ("source", "asked", "where"),
    [
        ("org/some.set-1", ("org/some.set-1", None, None, None), "org/some.set-1, split train, row 1"),
        ("org/name:test", ("org/name", None, "test", None), "org/name, split test, row 1"),
        ("org/name@refs/pr/1", ("org/name", None, None, "refs/pr/1"), "org/name, split train, row 1"),
        ("org/name:test@abc", ("org/name", None, "test", "abc"), "org/name, split test, row 1"),
        ("org/name:some/test", ("org/name", "some", "test", None), "org/name, split test, row 1"),
    ],
)
def test_reads_a_split_and_a_revision_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple[str | None, ...], where: str
) -> None:
    hub = use_hub(monkeypatch, {"test": rows_of(OURS), "train": rows_of(OURS)})
    demonstrations = load_demonstrations(source)
    assert hub.asked == asked
    assert triples_of(demonstrations) == TRIPLES
    assert demonstrations[0].source == where


def test_a_split_is_chosen_only_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, {"data": rows_of(OURS)})
    assert load_demonstrations("org/name")[0].source == "org/name, split data, row 1"
    use_hub(monkeypatch, {"validation": [], "test": []})
    with pytest.raises(InputError, match=naming("org/name", "validation, test")):
        load_demonstrations("org/name")


@pytest.mark.parametrize("error", [ConnectionError("unreachable"), ValueError("bad split"), RuntimeError("a script")])
def test_a_hub_dataset_that_cannot_be_loaded_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    use_hub(monkeypatch, error)
    with pytest.raises(InputError, match=naming("org/name", error)):
        load_demonstrations("org/name")


def test_the_hub_without_datasets_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=naming("pip install", "sea-export[datasets]")):
        load_demonstrations("org/name")


# Columns


@pytest.mark.parametrize(
    "columns",
    [OURS, ("prompt", "chosen", "rejected"), ("question", "right_answer", "hallucinated_answer")],
)
def test_known_columns_are_recognised(tmp_path: Path, columns: tuple[str, ...]) -> None:
    rows = [{"knowledge": "ignored", "id": 7} | row for row in rows_of(columns)]
    assert triples_of(load_rows(tmp_path, rows)) == TRIPLES


def test_the_first_convention_wins(tmp_path: Path) -> None:
    others = rows_of(("chosen", "rejected", "question"), [("c", "r", "q")] * 3)
    assert triples_of(load_rows(tmp_path, [a | b for a, b in zip(others, rows_of(OURS), strict=True)])) == TRIPLES


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = rows_of(("query", "best", "worst"))
    named = load_rows(tmp_path, rows, prompt_field="query", positive_field="best", negative_field="worst")
    assert triples_of(named) == TRIPLES
    rows = rows_of(("question", "best", "hallucinated_answer"))
    assert triples_of(load_rows(tmp_path, rows, positive_field="best")) == TRIPLES


def test_unknown_columns_are_listed_beside_the_known_conventions(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_rows(tmp_path, rows_of(("query", "best", "worst")))
    for part in ("rows.jsonl", "query, best, worst", "prompt/positive/negative", "(preference data)", "(BBQ)"):
        assert part in str(raised.value)
    assert "question/right_answer/hallucinated_answer (HaluEval)" in str(raised.value)
    assert "--positive-field" in str(raised.value)
    with pytest.raises(InputError, match=naming("rows.jsonl", "'query'", "prompt, positive, negative")):
        load_rows(tmp_path, rows_of(OURS), prompt_field="query")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_conversations_end_with_the_completion_and_its_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The three layouts: prompt in its own column as messages or text, or inside both conversations."""
    rows = [
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
        {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"prompt": "a", "chosen": [assistant("b")], "rejected": "c"},
    ]
    assert triples_of(load_rows(tmp_path, rows)) == [("a", "b", "c")] * 3
    before = [user("x"), assistant("y"), user("a")]
    rows = [{"chosen": [*before, assistant("b")], "rejected": [*before, assistant("c")]}] * 2
    caplog.clear()
    assert triples_of(load_rows(tmp_path, rows)) == [("a", "b", "c")] * 2
    assert_names(caplog.text, "2 of 2", "user")


def test_conversations_are_read_from_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "some.parquet")
    assert triples_of(load_demonstrations(tmp_path / "some.parquet")) == [("a", "b", "c")] * 2


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "a", "chosen": [assistant("b"), user("a")], "rejected": "c"}, ["'chosen'", "assistant"]),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, ["'chosen'", "assistant"]),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, ["'chosen'", "list"]),
        ({"prompt": "a", "chosen": [assistant(" ")], "rejected": "c"}, ["'chosen'", "empty"]),
        ({"prompt": [assistant("a")], "chosen": "b", "rejected": "c"}, ["'prompt'", "user"]),
        ({"chosen": [assistant("b")], "rejected": [assistant("c")]}, ["no prompt"]),
        ({"chosen": "b", "rejected": "c"}, ["no prompt"]),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("A"), assistant("c")]},
            ["different prompts"],
        ),
    ],
)
def test_broken_conversations_are_refused(tmp_path: Path, row: dict[str, object], facts: list[str]) -> None:
    with pytest.raises(InputError, match=naming("rows.jsonl, row 1", *facts)):
        load_rows(tmp_path, [row, row])


# BBQ


def bbq(
    polarity: str, label: int, groups: Sequence[str] = ("old",), infos: Sequence[Sequence[str]] = ()
) -> dict[str, object]:
    """A row in BBQ's layout: answer 0 is an old person, answer 1 is unknown, answer 2 is a young one."""
    infos = infos or (("gardener", "old"), ("Unknown", "unknown"), ("pupil", "nonOld"))
    return {
        "context": "A gardener of seventy and a pupil were there.",
        "question": "Who forgot the key?" if polarity == "neg" else "Who remembered the key?",
        "question_polarity": polarity,
        "context_condition": "ambig" if label == 1 else "disambig",
        "answer_info": {f"ans{number}": list(info) for number, info in enumerate(infos)},
        "additional_metadata": {"stereotyped_groups": list(groups), "version": "a"},
        "ans0": "The gardener",
        "ans1": "Not known",
        "ans2": "The pupil",
        "label": label,
    }


@pytest.mark.parametrize(
    ("polarity", "label", "positive", "negative"),
    [
        ("neg", 1, "Not known", "The gardener"),
        ("nonneg", 1, "Not known", "The pupil"),
        ("neg", 2, "The pupil", "The gardener"),
        ("nonneg", 0, "The gardener", "The pupil"),
    ],
)
def test_bbq_sets_what_the_context_supports_against_the_stereotype(
    tmp_path: Path, polarity: str, label: int, positive: str, negative: str
) -> None:
    """The stereotype gives the negative trait to the group's member, and its opposite to the other person."""
    row = bbq(polarity, label)
    prompt = f"{row['context']} {row['question']}"
    assert triples_of(load_rows(tmp_path, [row, row])) == [(prompt, positive, negative)] * 2


@pytest.mark.parametrize(("polarity", "label"), [("neg", 0), ("nonneg", 2)])
def test_bbq_rows_without_contrast_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, polarity: str, label: int
) -> None:
    rows = [bbq("neg", 1), bbq(polarity, label), bbq("neg", 2), bbq(polarity, label)]
    demonstrations = load_rows(tmp_path, rows)
    assert [one.source for one in demonstrations] == ["rows.jsonl, row 1", "rows.jsonl, row 3"]
    assert_names(caplog.text, "2 of 4", "context")


@pytest.mark.parametrize(
    ("groups", "member", "other"),
    [
        (["old"], ("gardener", "old"), ("pupil", "nonOld")),
        (["nonOld"], ("pupil", "nonOld"), ("gardener", "old")),
        (["Muslim", "Catholic"], ("Catholic", "Catholic"), ("Sikh", "Sikh")),
        (["muslim"], ("Muslim", "Muslim"), ("Sikh", "Sikh")),
        (["low SES"], ("plumber", "lowSES"), ("surgeon", "highSES")),
        (["F"], ("girl", "girl"), ("boy", "boy")),
        (["Men"], ("Ivan", "M"), ("Olga", "F")),
        (["Transgender women", "trans"], ("Olga", "trans_F"), ("Vera", "nonTrans_F")),
        (["Nigerian", "Malian"], ("Malian", "Africa"), ("Welsh", "Europe")),
        (["African American", "Black"], ("Ivan Stone", "M-African American"), ("Pavel", "M-African")),
    ],
)
def test_bbq_groups_are_found_however_they_are_spelt(
    tmp_path: Path, groups: list[str], member: tuple[str, str], other: tuple[str, str]
) -> None:
    for infos, negative in (
        ((member, ("Not known", "unknown"), other), "The gardener"),
        ((other, ("Not known", "unknown"), member), "The pupil"),
    ):
        demonstrations = load_rows(tmp_path, [bbq("neg", 1, groups, infos)] * 2)
        assert demonstrations[0].negative == negative


def test_bbq_rows_whose_groups_do_not_decide_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both people belong to the group (as in the intersectional files), or neither does."""
    both = (("Ann", "F-Black"), ("Unknown", "unknown"), ("Bob", "M-Black"))
    rows = [bbq("neg", 1, ["Black"], both), bbq("neg", 1, ["Roma"]), bbq("neg", 1), bbq("nonneg", 1)]
    assert len(load_rows(tmp_path, rows)) == 2
    assert_names(caplog.text, "2 of 4", "groups")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"label": 3}, ["label", 0, 1, 2, 3]),
        ({"label": "1"}, ["label", 0, 2, "'1'"]),
        ({"question_polarity": "positive"}, ["question_polarity", "'neg'", "'nonneg'", "'positive'"]),
        ({"answer_info": "{'ans0': []}"}, ["answer_info"]),
        ({"answer_info": {"ans0": ["a", "b"]}}, ["answer_info"]),
        ({"additional_metadata": {}}, ["additional_metadata", "stereotyped_groups"]),
        ({"context": None}, ["'context'", "empty"]),
    ],
)
def test_broken_bbq_rows_are_refused(tmp_path: Path, change: dict[str, object], facts: list[object]) -> None:
    with pytest.raises(InputError, match=naming("rows.jsonl, row 2", *facts)):
        load_rows(tmp_path, [bbq("neg", 1), bbq("neg", 1) | change])


# Rows


@pytest.mark.parametrize("column", OURS)
@pytest.mark.parametrize(
    ("value", "fact"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        (None, "empty"),
        (3, "int"),
        ({"text": "a"}, "dict"),
        ("\ud800", "surrogate"),
    ],
)
def test_rows_without_text_are_refused(tmp_path: Path, column: str, value: object, fact: str) -> None:
    rows: list[dict[str, Any]] = [*rows_of(OURS)]
    rows[1][column] = value
    with pytest.raises(InputError, match=naming("rows.jsonl, row 2", repr(column), fact)):
        load_rows(tmp_path, rows)


def test_a_row_without_a_column_is_refused(tmp_path: Path) -> None:
    rows = rows_of(OURS)
    del rows[2]["negative"]
    with pytest.raises(InputError, match=naming("rows.jsonl, row 3", "'negative'")):
        load_rows(tmp_path, rows)


def test_equal_completions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=naming("rows.jsonl, row 2", "positive", "negative", "equal")):
        load_rows(tmp_path, rows_of(OURS, [TRIPLES[0], ("p", "same ", " same\n")]))


def test_a_single_demonstration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=naming("rows.jsonl", 1, 2)):
        load_rows(tmp_path, rows_of(OURS)[:1])
    with pytest.raises(InputError, match=naming("--limit", 1, 2)):
        load_rows(tmp_path, rows_of(OURS), limit=1)


def test_repeated_demonstrations_are_kept_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(load_rows(tmp_path, rows_of(OURS))) == 3
    assert not caplog.records
    assert len(load_rows(tmp_path, rows_of(OURS, [*TRIPLES, *TRIPLES[:2]]))) == 5
    (record,) = caplog.records
    assert_names(record.getMessage(), "rows.jsonl", 2)


def test_a_limit_takes_a_seeded_sample_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = rows_of(OURS, [(f"p{number}", "yes", "no") for number in range(100)])

    def sample(limit: int, seed: int) -> list[int]:
        return [int(one.prompt[1:]) for one in load_rows(tmp_path, rows, limit=limit, seed=seed)]

    taken = sample(20, seed=0)
    assert len(set(taken)) == 20
    assert taken == sorted(taken) != list(range(20))
    assert taken == sample(20, seed=0) != sample(20, seed=1)
    assert sample(100, seed=5) == sample(1000, seed=5) == list(range(100))


def test_a_limit_counts_demonstrations_not_rows_left_out(tmp_path: Path) -> None:
    rows = [bbq("neg", label) for label in (0, 1, 0, 2, 0, 1)]
    assert len(load_rows(tmp_path, rows, limit=3)) == 3


# Digest


def test_the_digest_depends_on_the_texts_and_their_order_alone() -> None:
    one, two = Demonstration("p", "a", "b", "here"), Demonstration("q", "c", "d")
    digest = demonstrations_digest([one, two])
    assert len(digest) == 64
    assert digest == demonstrations_digest([Demonstration("p", "a", "b", "elsewhere"), two])
    others = [
        [two, one],
        [one],
        [Demonstration("p", "b", "a"), two],
        [Demonstration("pa", "", "b"), two],
        [Demonstration("p", "a", "b "), two],
    ]
    assert len({digest, *(demonstrations_digest(other) for other in others)}) == len(others) + 1


def test_the_digest_is_the_same_on_every_machine() -> None:
    """A manifest written today must name the same demonstrations tomorrow."""
    assert (
        demonstrations_digest([Demonstration("Où ?", "“Ici”", "Là\n")])
        == "89e591a224347964f89582600f9ee105564ac63d88780155e2018efb5ae2a913"
    )
