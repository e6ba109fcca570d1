"""Everything that a command does is a call from Python: it runs, it has types, and it costs nothing to import."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pandas
import pytest
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.files import frames
from tests.helpers.benchmark_files import write_jsonl
from tests.helpers.hub_client import connected_hub
from tests.helpers.messages import naming
from tests.interface.python_example import search, work

EXAMPLE = Path(__file__).with_name("python_example.py")
ROOT = Path(sea_export.__file__).parents[1]


def rows_of(demonstrations: tuple[Demonstration, ...]) -> list[dict[str, str]]:
    return [{"prompt": one.prompt, "positive": one.positive, "negative": one.negative} for one in demonstrations]


@pytest.fixture
def rows(demonstrations: tuple[Demonstration, ...], tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", rows_of(demonstrations))


@pytest.mark.slow
def test_the_example_runs(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    with connected_hub(tmp_path / "home"):
        found = work(str(tiny_checkpoint), rows, tmp_path)
    assert found["version"] == sea_export.__version__
    assert found["verify"] is True
    assert found["reproduce"] == "byte-identical"
    for name in ("check", "diagnose", "fit", "fit_and_measure", "compare", "evaluate", "inspect", "diff"):
        assert isinstance(found[name], pandas.DataFrame), name
    assert len(found["diagnose"]) == 5
    assert list(found["fit"]["layer"]) == list(found["inspect"]["layer"]) == [2, 3]
    assert found["push"]["repo_id"] == "me/edited"
    pictures = ("answers.html", "damage.svg", "activations.svg", "edit.svg")
    assert all((tmp_path / file).stat().st_size > 500 for file in pictures)
    stages = {stage for stage, _, _ in found["stages"]}
    assert {"Reading demonstrations", "Writing", "Verifying", "Checking the files"} <= stages
    assert any(stage.startswith("edit: ") for stage in stages)
    assert all(0 <= done <= total for _, done, total in found["stages"])


@pytest.mark.slow
def test_settings_are_searched(tiny_checkpoint: Path, demonstrations: Any, tmp_path: Path) -> None:
    many = [{**row, "prompt": f"{number}: {row['prompt']}"} for number in range(8) for row in rows_of(demonstrations)]
    tuned = search(str(tiny_checkpoint), write_jsonl(tmp_path / "many.jsonl", many), tmp_path)
    frame = tuned.to_frame()
    assert len(frame) == 3
    assert frame["chosen"].sum() == 1
    assert tuned.edit.provenance["tuning"]["trials"] == 3
    assert (tmp_path / "search.svg").exists()
    assert (tmp_path / "tuned" / "sea_export.json").exists()


CHECKERS = {
    "mypy": ("mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports", "--config-file="),
    "pyright": ("pyright", "--level", "error", "--pythonpath", sys.executable),
}


def checked(checker: str, file: Path) -> subprocess.CompletedProcess[str]:
    """A check of the types of a file, whose imports count and are not checked themselves."""
    command = [sys.executable, "-m", *CHECKERS[checker], str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_the_example_has_types(checker: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    text = EXAMPLE.read_text(encoding="utf-8")
    right.write_text(text, encoding="utf-8")
    wrong.write_text(text.replace("threads=1", 'threads="one"'), encoding="utf-8")
    done = checked(checker, right)
    assert done.returncode == 0, done.stdout + done.stderr
    done = checked(checker, wrong)
    assert done.returncode == 1
    assert "threads" in done.stdout


CALLS = {
    "doctor": "diagnose",
    "fit": "fit_and_measure",
    "import": "import_edit",
    "patch apply": "apply_patch",
    "patch make": "make_patch",
}
"""The calls that do not have the name of their command."""

SETTINGS = "the settings one by one"
BASE = "a base that load has opened"

NO_CALLS = ("chat", "patch", "recipes", "recipes show")
"""A conversation has no result, a group is no command of its own, and `sea_export.recipes` has no arguments."""

OTHERWISE = {
    "compare": {"html": "ModelComparison.save_page"},
    "evaluate": {"plot": "Evaluation.plot"},
    "extract": {"edit": "SpectralEdit.save", "overwrite": "SpectralEdit.save"},
    "fit": {"overwrite": "SpectralEdit.save", "preset": SETTINGS},
    "fit-and-save": {"preset": SETTINGS, "push": "push_to"},
    "import": {"as": "as_", "edit": "SpectralEdit.save", "overwrite": "SpectralEdit.save"},
    "patch make": {"threads": "set_num_threads of torch"},
    "save": {
        "device": BASE,
        "device_map": BASE,
        "edits": "edit",
        "except": "SpectralEdit.without",
        "only": "SpectralEdit.only",
        "strength": "SpectralEdit.with_strength",
        "threads": BASE,
    },
    "tune": {"plot": "TunedModel.plot"},
}
"""What is said in Python by other words than the option."""


def commands_of(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """The name of each command, with that of its group, and the command."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {rest}", one) for rest, one in commands_of(command, context))
        yield name, command


def words_of(command: click.Command) -> set[str]:
    """Its arguments and its options, as names."""
    options = [one for one in command.params if isinstance(one, click.Option)]
    arguments = {str(one.name) for one in command.params if isinstance(one, click.Argument)}
    return arguments | {one.opts[0].removeprefix("--").replace("-", "_") for one in options}


def words_of_call(name: str) -> set[str]:
    """The arguments of a call, and the fields of those that are objects of options."""

    def fields_of(value: object) -> set[str]:
        if not is_dataclass(value):
            return set()
        own = {one.name: getattr(value, one.name) for one in fields(value)}
        return set(own).union(*map(fields_of, own.values()))

    parameters = inspect.signature(getattr(sea_export, name)).parameters
    return set(parameters).union(*(fields_of(one.default) for one in parameters.values()))


def test_every_command_and_option_is_a_call() -> None:
    with click.Context(main) as context:
        commands = {name: one for name, one in commands_of(main, context) if name not in NO_CALLS}
    of_all = set.intersection(*map(words_of, commands.values()))
    assert {"progress", "config", "quiet"} <= of_all
    missing = {}
    for name, command in commands.items():
        known = words_of_call(CALLS.get(name, name.replace("-", "_")))
        missing[name] = words_of(command) - known - of_all
    assert {name: set(words) for name, words in OTHERWISE.items()} == {
        name: words for name, words in missing.items() if words
    }
    for word in (word for words in OTHERWISE.values() for word in words.values() if "." in word):
        found, _, method = word.partition(".")
        assert callable(getattr(getattr(sea_export, found), method))


def test_all_names_are_there_and_documented() -> None:
    for name in sea_export.__all__:
        found = getattr(sea_export, name)
        assert found.__doc__ or name == "ProgressCallback", name
        assert getattr(sea_export, name) is found or name == "__version__"


@pytest.mark.parametrize("kind", ["list", "dataset", "frame"])
def test_rows_of_every_kind_give_the_same_edit(
    kind: str,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
    tmp_path: Path,
) -> None:
    """Byte for byte; other rows give another one."""
    rows = rows_of(demonstrations)
    kinds: dict[str, Any] = {"list": rows, "dataset": Dataset.from_list(rows), "frame": pandas.DataFrame(rows)}
    for name, data in (("file", write_jsonl(tmp_path / "rows.jsonl", rows)), ("rows", kinds[kind]), ("less", rows[1:])):
        sea_export.fit(llama, tokenizer, data, layers="last:2").save(tmp_path / name)
    tensors = {name: (tmp_path / name / "sea_edit.safetensors").read_bytes() for name in ("file", "rows", "less")}
    assert tensors["rows"] == tensors["file"] != tensors["less"]


def test_a_base_is_opened_once(
    tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], llama: PreTrainedModel, tmp_path: Path
) -> None:
    edit = fit_tiny(llama)
    edit.save(tmp_path / "edit")
    with sea_export.load(tiny_checkpoint, threads=1) as base:
        assert base.model is base.model
        assert repr(base) == f"LoadedBase({tiny_checkpoint.name!r}, device='cpu')"
        live = sea_export.compare(base, edit, prompt=["Who knows?", "Is it?"], new_tokens=4)
        stored = sea_export.compare(tiny_checkpoint, tmp_path / "edit", prompt=["Who knows?", "Is it?"], new_tokens=4)
        assert [one["edited"] for one in live.to_dict()["answers"]] == [
            one["edited"] for one in stored.to_dict()["answers"]
        ]
        measured = sea_export.evaluate(base, "damage", edit=tmp_path / "edit", strength=0.0)
        difference = measured.reports[0].metric("perplexity").difference
        assert difference is not None
        assert abs(difference[0]) < 1e-3
        with pytest.raises(sea_export.InputError, match="open"):
            sea_export.evaluate(base, "damage", against=tiny_checkpoint)
        with pytest.raises(sea_export.InputError, match="revision"):
            sea_export.save(edit, base, tmp_path / "out", revision="main")
    with pytest.raises(sea_export.InputError, match=naming("edit")):
        sea_export.compare(tiny_checkpoint, edit)


def test_errors_speak_python(tiny_checkpoint: Path) -> None:
    with pytest.raises(sea_export.InputError, match=r"^benchmark:") as error:
        sea_export.evaluate(tiny_checkpoint)
    assert "--" not in str(error.value)


def test_a_frame_needs_pandas(monkeypatch: pytest.MonkeyPatch, fit_tiny: Any, llama: PreTrainedModel) -> None:
    edit = fit_tiny(llama)
    monkeypatch.setattr(frames.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sea_export.InputError, match=naming("pandas", "pip install pandas")):
        edit.to_frame()


def test_importing_costs_nothing() -> None:
    code = "import sys, sea_export; sea_export.__version__; dir(sea_export); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not [name for name in ("torch", "numpy", "pandas", "click", "transformers") if f"'{name}'" in done.stdout]
