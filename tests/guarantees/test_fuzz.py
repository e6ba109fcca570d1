"""The readers of other people's files, on valid files that were changed at random: see `fuzzing`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.changed_gguf import join_gguf, split_gguf
from tests.helpers.fuzzing import PROPERTIES, Property, is_read
from tests.helpers.gguf_files import write_control_vector, write_gguf

pytestmark = pytest.mark.slow

CASES = 300


@pytest.mark.guarantee("Whatever is in a file that we parse, we read what it says or refuse it in one sentence")
@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.usefixtures("little_memory")
def test_every_file_is_read_or_refused(name: str, count_case: Callable[[], None]) -> None:
    holds, files = PROPERTIES[name]
    check(holds, files, CASES, count_case)


@pytest.mark.parametrize("name", ["v.gguf", "m.gguf"])
def test_headers_of_gguf_are_changed_only_where_they_are_changed(name: str, tmp_path: Path) -> None:
    """Otherwise all changed files would be refused for what has been lost."""
    write_control_vector(tmp_path / "v.gguf", {1: torch.ones(6)})
    write_gguf(tmp_path / "m.gguf")
    contents = (tmp_path / name).read_bytes()
    assert join_gguf(*split_gguf(contents)) == contents


def check(holds: Property, files: st.SearchStrategy[bytes], cases: int, count_case: Callable[[], None]) -> None:
    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
    )
    @given(files)
    def holds_for_every(contents: bytes) -> None:
        count_case()
        is_read(holds, contents)

    holds_for_every()
