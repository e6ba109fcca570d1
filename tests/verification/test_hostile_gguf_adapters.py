"""Damaged and lying files of GGUF adapters, given to the commands that read them: told in a sentence, in little memory.

What is random is in the fuzzers; here are the single lies, through the command line.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sea_export
from tests.helpers.hostile_gguf_adapters import (
    CONTROL_VECTOR,
    GGUF_FILES,
    GGUF_MANIFESTS,
    HUGE_BYTES,
    LORA,
    MODELFILE,
    sparse,
)
from tests.helpers.refusals import MAXIMUM_PEAK_BYTES, Commands, Outcome, state_of
from tests.helpers.tampering import forged
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit

pytest.importorskip("gguf")

pytestmark = pytest.mark.slow

FOUND = "An export with a false manifest, edit or adapter is refused in one sentence, and nothing is written"
# As numbers of 64 bits and all at once, both sides of a comparison would need more than a command may take.
_LARGE_BYTES = 300_000_000


@pytest.fixture(scope="module")
def exports(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good outputs: `affine`, a LoRA and a control vector, and `linear`, a LoRA and a Modelfile."""
    directory = tmp_path_factory.mktemp("exports")
    for name, center in (("affine", "affine"), ("linear", "off")):
        edit = spectral_edit(MLP_TARGETS, center=center, normalization="none")
        sea_export.save(edit, tiny_checkpoint, directory / name, format="gguf-adapter", verify=False)
    return directory


@pytest.fixture
def arena(exports: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A directory with the base, a good output, and one that is to be changed."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    shutil.copytree(exports / "affine", tmp_path / "good")
    shutil.copytree(exports / "affine", tmp_path / "out")
    return tmp_path


def told(commands: Commands, arena: Path, *arguments: object) -> Outcome:
    """Runs a command that may find a problem (1), refuse (2) or do its work (0), and checks how it does that."""
    before = state_of(arena)
    outcome = commands.run(*arguments)
    assert outcome.status in (0, 1, 2), outcome.output
    assert "Traceback" not in outcome.output
    assert "does not expect this error" not in outcome.output, outcome.output
    assert all(line.isprintable() for line in outcome.output.splitlines()), outcome.output
    errors = [line for line in outcome.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (outcome.status == 2), outcome.output
    assert state_of(arena) == before
    assert outcome.peak_bytes < MAXIMUM_PEAK_BYTES
    return outcome


@pytest.mark.guarantee(FOUND)
@pytest.mark.parametrize("name", GGUF_FILES)
def test_verify_finds(name: str, arena: Path, commands: Commands, count_case: Callable[[], None]) -> None:
    """With the digests of the manifest as they were, and brought up to date."""
    GGUF_FILES[name](arena / "out")
    for also_forged in (False, True):
        count_case()
        if also_forged:
            forged(arena / "out")
        outcome = told(commands, arena, "verify", arena / "out", "--base", arena / "model")
        assert outcome.status != 0, outcome.output


@pytest.mark.guarantee(FOUND)
@pytest.mark.parametrize("name", GGUF_FILES)
def test_diff_and_push_say(name: str, arena: Path, commands: Commands) -> None:
    GGUF_FILES[name](arena / "out")
    file = CONTROL_VECTOR if name.startswith(("direction", "control vector")) else LORA
    outcome = told(commands, arena, "diff", arena / "good" / file, arena / "out" / file)
    assert outcome.status == 2 or "0 tensors differ; 4 tensors and 7 keys" not in outcome.output, outcome.output
    commands.refuses(arena, "push", arena / "out", "somebody/edited")


@pytest.mark.guarantee(FOUND)
@pytest.mark.parametrize("name", GGUF_MANIFESTS)
def test_commands_refuse(name: str, arena: Path, commands: Commands) -> None:
    GGUF_MANIFESTS[name](arena / "out")
    for arguments in (
        ("verify", arena / "out", "--base", arena / "model"),
        ("reproduce", arena / "out", arena / "again"),
        ("push", arena / "out", "somebody/edited"),
    ):
        commands.refuses(arena, *arguments)


def test_a_file_of_forty_gigabytes_takes_no_memory_and_no_time(arena: Path, commands: Commands) -> None:
    """The file is sparse. Its tensor is all of it, and has another shape than the one that it is compared with."""
    sparse(HUGE_BYTES, values=HUGE_BYTES // 4 - 1000)(arena / "out")
    outcome = told(commands, arena, "diff", arena / "good" / LORA, arena / "out" / LORA)
    assert outcome.status == 0
    assert "other shape" in outcome.output
    assert outcome.seconds < 20


def test_the_values_of_a_large_tensor_are_compared_in_little_memory(arena: Path, commands: Commands) -> None:
    for output in ("good", "out"):
        sparse(_LARGE_BYTES, values=_LARGE_BYTES // 4 - 1000)(arena / output)
    with open(arena / "out" / LORA, "r+b") as stream:
        stream.seek(_LARGE_BYTES // 2 + 1)
        stream.write(b"\x01\x02")
    outcome = told(commands, arena, "diff", arena / "good" / LORA, arena / "out" / LORA)
    assert outcome.status == 0, outcome.output
    assert "1 tensors differ" in outcome.output


def test_a_large_modelfile_is_not_read(exports: Path, arena: Path, commands: Commands) -> None:
    shutil.rmtree(arena / "out")
    shutil.copytree(exports / "linear", arena / "out")
    os.truncate(arena / "out" / MODELFILE, 2 * 10**9)
    forged(arena / "out")
    outcome = told(commands, arena, "verify", arena / "out", "--base", arena / "model")
    assert outcome.status == 1
    assert MODELFILE in outcome.output


def test_only_llama_cpp_runs_an_output(arena: Path, commands: Commands) -> None:
    prompts = arena / "prompts.txt"
    prompts.write_text("Is the sea wet?\n")
    for arguments in (
        ("compare", arena / "model", arena / "out", "--prompts", prompts),
        ("evaluate", arena / "out", "--benchmark", "damage"),
        ("evaluate", arena / "model", "--against", arena / "out", "--benchmark", "damage"),
    ):
        commands.refuses(arena, *arguments, names=["llama.cpp"])


def test_the_output_that_is_changed_is_good(arena: Path, commands: Commands) -> None:
    """Otherwise it would be refused for another reason than the change."""
    for arguments in (
        ("verify", arena / "out", "--base", arena / "model"),
        ("inspect", arena / "out"),
        ("diff", arena / "good" / LORA, arena / "out" / LORA),
    ):
        outcome = commands.run(*arguments)
        assert outcome.status == 0, outcome.output
