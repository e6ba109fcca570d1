"""What a program is that `downstream` tries exports in, how it is installed, and how it is asked."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROBES = Path(__file__).with_name("downstream_probes")
TIMEOUT = 1800

# The build that this environment has: where a CPU build was found for it, one will be found for the others.
TORCH = f"torch=={importlib.metadata.version('torch')}"


class NotRun(Exception):
    """A program could not be installed."""


@dataclass(frozen=True)
class Environment:
    """What is installed in a virtual environment of its own."""

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    """Packages that come with them and are taken out again."""
    source: str | None = None
    """A requirement that is built from its source package, which is unpacked beside it."""
    variables: dict[str, str] = field(default_factory=dict)
    """For that build."""


@dataclass(frozen=True)
class Program:
    """A program at one version, used in one way, and what is expected of it."""

    name: str
    environment: Environment
    probe: str
    """The file in downstream_probes/ that runs it."""
    loads: tuple[str, ...]
    """Exports that have to give the edit's answers."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Exports that have to be refused -> what the message has to contain."""
    alters: Mapping[str, str] = field(default_factory=dict)
    """Exports that it loads without a word and whose answers it changes -> how."""
    measure: str = "tokens"
    """`tokens`, `log-likelihoods`, or, of a program that quantizes, `logits`."""
    call: str | None = None
    """What the probe does, if it knows several ways."""

    def tries(self, export: str) -> bool:
        """Whether the export is given to it."""
        return export in self.loads or export in self.refuses or export in self.alters


def install(environment: Environment, work: Path) -> None:
    """Makes an environment, unless it is there already.

    Args:
        environment: what to install.
        work: the work folder.

    Raises:
        NotRun: it cannot be installed.
    """
    own, python = _places(environment, work)
    complete = own / "installed.json"
    wanted = json.dumps(asdict(environment))
    if complete.is_file() and complete.read_text() == wanted:
        return
    shutil.rmtree(own, ignore_errors=True)
    print(f"Installing {environment.name} ...", flush=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(own)])
    requirements = list(environment.requirements)
    if environment.source is not None:
        sources = own / "sources"
        name = environment.source.partition("==")[0]
        _run([*pip, "download", "--no-deps", "--no-binary", name, "--dest", str(sources), environment.source])
        (archive,) = sources.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(sources, filter="data")
        requirements.append(str(archive))
    _run([*pip, "install", *requirements], environment.variables)
    if environment.unwanted:
        _run([*pip, "uninstall", "--yes", *environment.unwanted])
    complete.write_text(wanted)


def _places(environment: Environment, work: Path) -> tuple[Path, Path]:
    """An environment's directory and Python."""
    own = work / "environments" / environment.name
    return own, own / "bin" / "python"


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(variables or {})}
    )
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.startswith("ERROR")] or [f"failed: {command}"]
        raise NotRun(f"it could not be installed: {lines[-1]}")


def run_probe(program: Program, request: Mapping[str, Any], work: Path) -> tuple[list | None, str]:
    """What a probe answers, None where it failed, and what it printed.

    Args:
        program: whose probe.
        request: what the probe is asked.
        work: the work folder, where the probe has a scratch folder for as long as it runs.
    """
    _, python = _places(program.environment, work)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        question, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        question.write_text(json.dumps({**request, "scratch": scratch, "answer": str(answer)}))
        variables = {
            "HF_HOME": scratch,  # no code or setting of another run is found
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(work / "cache" / "inductor"),
            "VLLM_CACHE_ROOT": str(work / "cache" / "vllm"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        try:
            process = subprocess.run(
                [str(python), "-I", str(PROBES / program.probe), str(question)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT,
                cwd=scratch,
                env={**inherited, **variables},
            )
        except subprocess.TimeoutExpired:
            return None, f"no answer within {TIMEOUT} seconds"
        if process.returncode:
            return None, process.stdout + process.stderr
        return json.loads(answer.read_text()), process.stdout + process.stderr
