"""The table of guarantees says what the tests counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.guarantees import Tries, guarantees_table, replace_table
from tests.helpers.parameters import slow_but

CONFTEST = """
from pathlib import Path
from tests.helpers.guarantees import PLUGIN, GuaranteeCounter, count_case

def pytest_configure(config):
    config.addinivalue_line("markers", "guarantee(sentence): ...")
    config.pluginmanager.register(GuaranteeCounter(Path("table.md")), PLUGIN)
"""

TESTS = """
import pytest

@pytest.mark.guarantee("B holds")
@pytest.mark.parametrize("parameter", [1, 2])
def test_counts(count_case, parameter):
    for _ in range(3):
        count_case()

@pytest.mark.guarantee("A holds")
def test_one_case():
    pass

@pytest.mark.guarantee("A holds")
def test_fails_at_the_second_of_three(count_case):
    for case in range(3):
        count_case()
        assert case < 1

@pytest.fixture
def broken():
    raise OSError

@pytest.mark.guarantee("C holds")
def test_cannot_even_start(broken):
    pass

def test_of_something_else():
    pass

def test_that_guarantees_nothing(count_case):
    count_case()
"""


@pytest.mark.parametrize("processes", slow_but([0], [0, 2]))
def test_cases_and_failures_are_counted(tmp_path, processes):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_a.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(processes), "test_a.py"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "2 failed, 4 passed, 1 error" in run.stdout, run.stdout
    assert "mark the test" in run.stdout
    assert (tmp_path / "table.md").read_text() == guarantees_table(
        {
            "A holds": Tries(["test_a.py"], cases=3, failures=1),
            "B holds": Tries(["test_a.py"], cases=6),
            "C holds": Tries(["test_a.py"], cases=0, failures=1),
        }
    )


def test_the_table():
    table = guarantees_table({"It holds": Tries(["test_a.py", "test_b.py"], cases=1234)})
    head = "| guarantee | test | cases tried | failures |\n|---|---|---|---|\n"
    assert table == head + "| It holds | test_a.py, test_b.py | 1,234 | 0 |\n"


def test_only_what_is_between_the_marks_is_replaced():
    text = "a\n<!-- guarantees -->\nold\n<!-- guarantees end -->\nb\n"
    assert replace_table(text, "new\n") == text.replace("old", "new")
    for unmarked in ("a\n", "<!-- guarantees -->\n", "<!-- guarantees end -->\n<!-- guarantees -->\n"):
        with pytest.raises(ValueError, match="guarantees"):
            replace_table(unmarked, "new\n")
