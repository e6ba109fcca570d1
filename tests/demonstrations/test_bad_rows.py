"""Rows that cannot be used are an error that names the option, or are left out, counted and named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedTokenizerFast

from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.hold_out import hold_out
from sea_export.demonstrations.load import load_demonstrations
from sea_export.demonstrations.usable import usable_demonstrations
from sea_export.errors import InputError
from sea_export.verification.recorded_run import RecordedRun
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import UNMEASURED

WORDS = ("Paris", "Rome", "cheese", "rock", "water", "salt", "a poet", "a bird", "feathers", "the sea")


def good(number: int) -> dict[str, Any]:
    return {"prompt": f"Is it {WORDS[number]}?", "chosen": f"Yes, {WORDS[number]}.", "rejected": "No."}


BAD: dict[str, dict[str, Any] | bytes] = {
    "an empty answer": {**good(0), "rejected": ""},
    "two equal answers": {**good(0), "rejected": good(0)["chosen"]},
    "a number": {**good(0), "prompt": 5},
    "no answer": {"prompt": "Is it?", "chosen": "Yes."},
    "half of a character": {**good(0), "chosen": "\ud800"},
    "an empty message": {
        **good(0),
        "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}],
    },
    "a list": b"[1, 2]\n",
    "no JSON": b'{"prompt": "Is\n',
    "no UTF-8": b'{"prompt": "Is it\xff?", "chosen": "Yes.", "rejected": "No."}\n',
    "JSON that cannot be read": b'{"prompt": ' + b"9" * 5000 + b"}\n",
}


def write(file: Path, rows: list[dict[str, Any] | bytes]) -> Path:
    file.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return file


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("kind", BAD)
def test_every_kind_of_bad_row_is_left_out_if_asked(
    kind: str, limit: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "rows.jsonl", [good(1), BAD[kind], good(2), good(3), BAD[kind]])
    with pytest.raises(InputError, match=naming("rows.jsonl, row 2", "--skip-bad-rows")):
        load_demonstrations(file, limit=limit)
    with caplog.at_level(logging.WARNING):
        loaded = load_demonstrations(file, limit=limit, skip_bad_rows=True)
    assert len(loaded) == (limit or 3)
    assert loaded.origin.skip_bad_rows
    assert {one.source for one in loaded} <= {f"rows.jsonl, row {row}" for row in (1, 3, 4)}
    assert_names(caplog.text, "2 of 5 rows", "row 2", "row 5")


def test_the_first_three_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "rows.jsonl", [*BAD.values(), good(1), good(2)])
    with caplog.at_level(logging.WARNING):
        load_demonstrations(file, skip_bad_rows=True)
    assert_names(caplog.text, f"{len(BAD)} of {len(BAD) + 2} rows", "row 1", "row 2", "row 3")
    assert "row 4" not in caplog.text
    (line,) = [record.getMessage() for record in caplog.records]
    assert "\n" not in line


def test_bad_rows_of_csv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rows.csv"
    rows = [b"prompt,positive,negative", b"a,b,c", b"a,b", b'a,"b"x,c', b"a,\xff,c", b"d,e,f", b"g,h,h"]
    file.write_bytes(b"\r\n".join(rows))
    for bad in ("row 2", "line 4", "row 4", "row 6"):
        with pytest.raises(InputError, match=naming(f"rows.csv, {bad}", "--skip-bad-rows")):
            load_demonstrations(file)
        number = {"row 2": 2, "line 4": 3, "row 4": 4, "row 6": 6}[bad]
        rows[number] = b"k,l,%d" % number
        file.write_bytes(b"\r\n".join(rows))
    assert len(load_demonstrations(file)) == 6
    file.write_bytes(b"prompt,positive,negative\na,b,c\na,b\nd,e,f\n")
    assert len(load_demonstrations(file, skip_bad_rows=True)) == 2


def test_a_table_without_a_good_row(tmp_path: Path) -> None:
    for rows in (list(BAD.values()), [BAD["a list"]], [good(1), BAD["a number"]]):
        with pytest.raises(InputError, match=naming("rows.jsonl", "Give at least 2")):
            load_demonstrations(write(tmp_path / "rows.jsonl", rows), skip_bad_rows=True)


# Rows that only a tokenizer refuses


def demonstration(prompt: str, positive: str, negative: str, number: int) -> Demonstration:
    return Demonstration(prompt, positive, negative, source=f"rows.jsonl, row {number}")


def test_rows_that_only_the_tokenizer_refuses(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt that fills the context, and answers that are equal once they are cut to it."""
    rows = [demonstration("Is it?", "Yes.", "No.", number) for number in range(1, 6)]
    rows[1] = demonstration("Is it? " * 400, "Yes.", "No.", 2)
    rows[3] = demonstration("Is it? " * 12, "Yes, " * 40 + "a.", "Yes, " * 40 + "b.", 4)
    asked: dict[str, Any] = {"template": "none", "context_length": 60}
    with pytest.raises(InputError, match=naming("rows.jsonl, row 2", "--skip-bad-rows")):
        usable_demonstrations(rows, tokenizer, skip=False, **asked)
    with caplog.at_level(logging.WARNING):
        kept = usable_demonstrations(rows, tokenizer, skip=True, **asked)
    assert [one.source[-1] for one in kept] == ["1", "3", "5"]
    assert_names(caplog.text, "2 of 5 rows", "row 2", "row 4")
    with pytest.raises(InputError, match=naming("none of its rows", "row 2")):
        usable_demonstrations(rows[1:2], tokenizer, skip=True, **asked)
    good_rows = rows[::2]
    assert usable_demonstrations(good_rows, tokenizer, skip=False, **asked) is good_rows
    with pytest.raises(InputError, match="--template") as raised:
        usable_demonstrations(rows, tokenizer, skip=True, template="nonesuch", context_length=None)
    assert "--skip-bad-rows" not in str(raised.value), "it is not the fault of a row"


def test_a_run_that_left_rows_out_is_repeated(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Those that nobody can read, and those that the tokenizer refuses. A wrong row is found before the fit."""
    rows: list[dict[str, Any] | bytes] = [good(number) for number in range(10)]
    rows[2], rows[5] = BAD["no JSON"], {**good(5), "prompt": "Is it? " * 3000}
    file = write(tmp_path / "rows.jsonl", rows)
    fit = ["fit", str(tiny_checkpoint), str(tmp_path / "edit"), "--demonstrations", str(file), "--layers", "last:1"]
    result = CliRunner().invoke(main, [*fit, *UNMEASURED])
    assert result.exit_code == 2
    assert_names(result.stderr, "row 3", "--skip-bad-rows")
    result = CliRunner().invoke(main, [*fit, *UNMEASURED, "--skip-bad-rows"])
    assert result.exit_code == 0, result.output
    assert_names(result.stderr, "1 of 10 rows", "row 3", "1 of 9 rows", "row 6")
    save = ["save", str(tmp_path / "edit"), str(tmp_path / "out"), "--base", str(tiny_checkpoint), "--no-verify"]
    assert CliRunner().invoke(main, save).exit_code == 0
    manifest = json.loads((tmp_path / "out" / "sea_export.json").read_text(encoding="utf-8"))
    recorded = RecordedRun.of(manifest).demonstrations([str(file)])[0]
    loaded = load_demonstrations(file, skip_bad_rows=True)
    assert recorded == tuple(one for position, one in enumerate(loaded) if position != 4)
    assert hold_out(recorded, 0.0, 0).fitted == recorded
