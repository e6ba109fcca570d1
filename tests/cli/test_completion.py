"""Shell completion: what is offered, in bash and in zsh, and that nobody waits for it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sea_export

SECONDS = 0.4
ZSH = shutil.which("zsh")

OFFERED = {
    ("fit-and",): ["fit-and-save"],
    ("recipes", "show", "tr"): ["truthfulness"],
    ("fit", "model", "edit", "--method", "s"): ["spectral"],
    ("fit", "model", "edit", "--layers", "last"): ["last:60%", "last:6"],
    ("save", "edit", "out", "--format", "gguf"): ["gguf", "gguf-adapter"],
    ("evaluate", "model", "--benchmark", "dam"): ["damage"],
    ("evaluate", "model", "--benchmark", "truthfulqa"): ["truthfulqa=", "truthfulqa-generation="],
    ("fit", "model", "edit", "--progr"): ["--progress"],
}
"""What is written, the last word in part -> what is offered."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `sea-export` is the program of this package."""
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "sea-export"
    file.write_text(f"#!{sys.executable} -P\nfrom sea_export.__main__ import run\nrun()\n", encoding="utf-8")
    file.chmod(0o755)
    home = Path(sea_export.__file__).parent.parent
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(home)}


def said(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


BASH = """
eval "$(_SEA_EXPORT_COMPLETE=bash_source sea-export)"
COMP_WORDS=(sea-export "$@")
COMP_CWORD=$#
_sea_export_completion sea-export
printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSH_SCRIPT = """
compdef() { registered="$1 $2"; }
_describe() { print -l -- "${(@)${(P)3}%%:*}"; }
compadd() { print -l -- "${(@P)@[-1]}"; }
eval "$(_SEA_EXPORT_COMPLETE=zsh_source sea-export)"
[[ $registered == "_sea_export_completion sea-export" ]] || exit 3
words=(sea-export "$@")
CURRENT=$#words
_sea_export_completion
"""


@pytest.mark.parametrize("words", OFFERED, ids=" ".join)
def test_bash_offers_it(words: tuple[str, ...], program: dict[str, str]) -> None:
    assert said(["bash", "--norc", "-c", BASH, "bash", *words], program).split() == OFFERED[words]


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
@pytest.mark.parametrize("words", OFFERED, ids=" ".join)
def test_zsh_offers_it(words: tuple[str, ...], program: dict[str, str]) -> None:
    offered = said([str(ZSH), "-f", "-c", ZSH_SCRIPT, "zsh", *words], program).split()
    assert sorted(offered) == sorted(OFFERED[words])


def completed(words: tuple[str, ...], program: dict[str, str], *launcher: str) -> subprocess.CompletedProcess[str]:
    words = ("sea-export", *words)
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_SEA_EXPORT_COMPLETE": "bash_complete"}
    command = [*launcher, str(shutil.which("sea-export", path=program["PATH"]))]
    return subprocess.run(command, env={**program, **asked}, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("words", [("fit", ""), ("diff", "")], ids=" ".join)
def test_paths_are_left_to_the_shell(words: tuple[str, ...], program: dict[str, str]) -> None:
    assert completed(words, program).stdout.startswith("file,")


def processor_seconds() -> float:
    """What the processes that this one has started, and that have ended, took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", [("fit", "model", "edit", "--method", "s"), ("",)], ids=["values", "commands"])
def test_nobody_waits_for_it(words: tuple[str, ...], program: dict[str, str]) -> None:
    """The time of the processor is counted, because the machine may be busy with something else."""
    before = processor_seconds()
    completed(words, program)
    assert processor_seconds() - before < SECONDS


def test_it_imports_nothing_large(program: dict[str, str]) -> None:
    imported = completed(("fit", "model", "edit", "--method", "s"), program, sys.executable, "-X", "importtime").stderr
    assert "sea_export.cli.click_options" in imported, "the command was imported"
    assert not [name for name in ("torch", "transformers", "numpy", "pandas") if f" {name}\n" in imported]
