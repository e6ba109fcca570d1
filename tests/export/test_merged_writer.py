"""Exactly the intended tensors change in a written checkpoint, and not one other byte."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sea_export.errors import InputError, SeaExportError
from sea_export.export import streaming
from sea_export.export.merged.merge_writer import TensorEdit, write_checkpoint
from sea_export.model.checkpoint import Checkpoint
from tests.helpers.checkpoint_files import (
    INDEX,
    contents_of,
    split_file,
    tensors_of_many_dtypes,
    write_sharded,
    write_single,
)
from tests.helpers.messages import naming

EDITED = ("layers.0.down.weight", "layers.1.half", "layers.1.double", "layers.0.norm.weight", "scale")


@pytest.fixture(params=["sharded", "single"])
def base(request, tmp_path) -> Checkpoint:
    write = write_sharded if request.param == "sharded" else write_single
    return Checkpoint.open(write(tmp_path / "base", tensors_of_many_dtypes()))


@pytest.fixture
def output(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def scaled(factor: float) -> TensorEdit:
    return lambda tensor: (factor * tensor.double()).to(tensor.dtype)


def tensors_in(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by safetensors itself."""
    tensors = {}
    for path in directory.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.reshape(-1), b.reshape(-1)
    return a.dtype == b.dtype and a.view(torch.uint8).equal(b.view(torch.uint8))


def test_edited_tensors_are_exact_and_the_others_untouched(base, output):
    before = contents_of(base.directory)
    report = write_checkpoint(base, output, {name: scaled(1.5) for name in EDITED})
    original, written = tensors_of_many_dtypes(), tensors_in(output)
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        expected = scaled(1.5)(tensor) if name in EDITED else tensor
        assert same_bits(written[name], expected), name
        assert written[name].shape == tensor.shape
        assert same_bits(written[name], tensor) == (name not in EDITED)
    assert set(report.edited) == set(EDITED)
    assert report.unchanged == report.added == ()
    assert contents_of(base.directory) == before


def test_every_other_byte_is_the_bases(base, output):
    """Headers with their padding and order, side files, and all bytes outside the edited tensor."""
    write_checkpoint(base, output, {EDITED[0]: scaled(2.0)})
    stored = base.tensors[EDITED[0]]
    before, after = contents_of(base.directory), contents_of(output)
    assert before.keys() == after.keys()
    changed = [file for file in before if before[file] != after[file]]
    assert changed == [stored.file]
    assert before[stored.file][: stored.start] == after[stored.file][: stored.start]
    assert before[stored.file][stored.end :] == after[stored.file][stored.end :]


def test_digests_are_those_of_the_files(base, output):
    additions = {"new": torch.ones(3)}
    report = write_checkpoint(
        base, output, {EDITED[1]: scaled(2.0)}, additions=additions, config_changes={"mlp_bias": True}
    )
    for digests, directory in ((report.base_digests, base.directory), (report.digests, output)):
        expected = {file: hashlib.sha256(data).hexdigest() for file, data in contents_of(directory).items()}
        assert digests == expected
    differing = {file for file in report.digests if report.digests[file] != report.base_digests[file]}
    named = {base.tensors[EDITED[1]].file, base.weight_files[-1], "config.json"}
    assert differing == named | ({INDEX} if base.index_file else set())


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_result_does_not_depend_on_the_pieces_it_is_copied_in(base, output, monkeypatch, chunk):
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", chunk)
    report = write_checkpoint(base, output, {name: scaled(1.5) for name in EDITED})
    monkeypatch.undo()
    (output.parent / "whole").mkdir()
    assert write_checkpoint(base, output.parent / "whole", {name: scaled(1.5) for name in EDITED}) == report
    assert contents_of(output) == contents_of(output.parent / "whole")


def test_what_is_left_out_and_links(tmp_path, output):
    """Other forms of the weights are not copied; links to blobs become files."""
    repository = tmp_path / "models--org--tiny"
    real = write_single(repository / "blobs", {"w": torch.ones(4)})
    base = repository / "snapshots" / "abc"
    base.mkdir(parents=True)
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        (base / file).symlink_to(real / file)
    for file in ("README.md", "pytorch_model.bin"):
        (base / file).write_text("x")
    write_checkpoint(Checkpoint.open(base), output, {"w": scaled(2.0)})
    assert contents_of(output).keys() == {"model.safetensors", "config.json", "tokenizer.json"}
    assert not any(path.is_symlink() for path in output.iterdir())
    assert load_file(real / "model.safetensors")["w"].equal(torch.ones(4))


def test_extra_heads_are_copied_like_every_other_byte(tmp_path, output):
    base = write_single(tmp_path / "base", {"w": torch.ones(4)})
    save_file({"mtp.w": torch.zeros(2)}, base / "mtp.safetensors")
    write_checkpoint(Checkpoint.open(base), output, {"w": scaled(2.0)})
    assert (output / "mtp.safetensors").read_bytes() == (base / "mtp.safetensors").read_bytes()


def test_progress_counts_every_byte_written(base, output):
    counts: list[int] = []
    write_checkpoint(base, output, {EDITED[0]: scaled(2.0)}, additions={"new": torch.ones(3)}, progress=counts.append)
    assert sum(counts) == sum(len(data) for data in contents_of(output).values())


# Copies that share their blocks with the base


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"additions": {"new": torch.ones(3)}},
        {"config_changes": {"mlp_bias": True}},
    ],
    ids=["edits", "longer header", "longer config"],
)
def test_shared_blocks_give_the_same_output(base, output, monkeypatch, changes):
    edits = {name: scaled(1.5) for name in EDITED}
    report = write_checkpoint(base, output, edits, **changes)
    (output.parent / "shared").mkdir()

    def share(destination: int, _: int, source: int) -> None:
        os.pwrite(destination, os.pread(source, 10**9, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", share)
    assert write_checkpoint(base, output.parent / "shared", edits, **changes) == report
    assert contents_of(output.parent / "shared") == contents_of(output)


def test_of_shared_blocks_only_the_edited_bytes_are_written(base, output, monkeypatch):
    """Here the blocks that are said to be shared are zeros, so that only what is written is something else."""

    def share(destination: int, _: int, source: int) -> None:
        os.truncate(destination, os.fstat(source).st_size)

    monkeypatch.setattr(fcntl, "ioctl", share)
    write_checkpoint(base, output, {EDITED[0]: scaled(2.0)})
    stored = base.tensors[EDITED[0]]
    for file, data in contents_of(output).items():
        edited = slice(stored.start, stored.end) if file == stored.file else slice(0, 0)
        assert any(data[edited]) == (file == stored.file)
        assert not any(data[: edited.start] + data[edited.stop :])


def test_a_file_of_shared_blocks_may_become_shorter(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"0123456789")
    monkeypatch.setattr(fcntl, "ioctl", lambda destination, *_: os.pwrite(destination, b"0123456789", 0))
    with streaming.FileCopy(tmp_path / "source", tmp_path / "copy", progress=lambda count: None) as copy:
        copy.take(4)
        copy.put(memoryview(b"a"))
        copy.copy_rest()
        assert copy.digests()[1] == hashlib.sha256(b"a456789").hexdigest()
    assert (tmp_path / "copy").read_bytes() == b"a456789"


# Digests that are known already


def as_known(base: Checkpoint) -> dict[str, str]:
    """Digests that are told from computed ones."""
    return dict.fromkeys(contents_of(base.directory), "0" * 64)


def unable(*_: object) -> int:
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.parametrize("system", ["copies", "shares blocks", "does neither"])
def test_known_digests_are_not_computed_again(base, output, monkeypatch, system):
    if system == "does neither":
        monkeypatch.setattr(os, "copy_file_range", unable, raising=False)
    elif system == "shares blocks":
        monkeypatch.setattr(fcntl, "ioctl", lambda to, _, source: os.pwrite(to, os.pread(source, 10**9, 0), 0))
    counts: list[int] = []
    edits, known = {EDITED[0]: scaled(1.5)}, as_known(base)
    report = write_checkpoint(base, output, edits, known_digests=known, progress=counts.append)
    (output.parent / "whole").mkdir()
    whole = write_checkpoint(base, output.parent / "whole", edits)
    assert contents_of(output) == contents_of(output.parent / "whole")
    assert sum(counts) == sum(len(data) for data in contents_of(output).values())
    assert report.base_digests == known
    edited = base.tensors[EDITED[0]].file
    for file, digest in report.digests.items():
        computed = file == edited or system == "does neither"
        assert digest == (whole.digests[file] if computed else known[file])


def test_a_full_disk_while_the_system_copies(base, output, monkeypatch):
    copied: list[int] = []

    def fails(source: int, destination: int, count: int, *offsets: int) -> int:
        if copied:
            raise OSError(28, "No space left on device")
        copied.append(count)
        return 1

    monkeypatch.setattr(os, "copy_file_range", fails, raising=False)
    edits = {"edits": {EDITED[0]: scaled(2.0)}}
    refused(base, output, SeaExportError, "No space left on device", **edits, known_digests=as_known(base))


def test_a_base_that_becomes_shorter_while_the_system_copies(base, output, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    edits = {"edits": {EDITED[0]: scaled(2.0)}}
    refused(base, output, SeaExportError, "shorter", **edits, known_digests=as_known(base))


# Additions and config changes


def test_additions_are_read_by_safetensors(base, output):
    additions = {"new.bias": torch.randn(5).bfloat16(), "new.scale": torch.tensor(2.0), "new.b": torch.randn(3, 2)}
    report = write_checkpoint(base, output, {EDITED[0]: scaled(2.0)}, additions=additions)
    assert report.added == tuple(additions)
    last = output / base.weight_files[-1]
    with safe_open(last, framework="pt") as stream, safe_open(base.directory / last.name, framework="pt") as old:
        assert stream.metadata() == old.metadata()
        assert set(stream.keys()) == set(old.keys()) | set(additions)
    written = tensors_in(output)
    for name, tensor in additions.items():
        assert same_bits(written[name], tensor)
        assert written[name].shape == tensor.shape
    for name, tensor in tensors_of_many_dtypes().items():
        assert same_bits(written[name], tensor) == (name != EDITED[0])
    header, _ = split_file(last.read_bytes())
    assert int.from_bytes(last.read_bytes()[:8], "little") % 8 == 0
    old_header, _ = split_file((base.directory / last.name).read_bytes())
    for name in old_header.keys() - {"__metadata__"}:
        assert header[name] == old_header[name]


def test_index_names_the_additions(tmp_path, output):
    base = Checkpoint.open(write_sharded(tmp_path / "base", tensors_of_many_dtypes()))
    write_checkpoint(base, output, {}, additions={"new.bias": torch.ones(5)})
    before = json.loads((base.directory / INDEX).read_text())
    after = json.loads((output / INDEX).read_text())
    assert after["weight_map"] == before["weight_map"] | {"new.bias": base.weight_files[-1]}
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"] + 20
    assert Checkpoint.open(output).read("new.bias").equal(torch.ones(5))


def test_config_changes_and_nothing_else(base, output):
    changes = {"mlp_bias": True, "nested.a": 2, "nested.b": None}
    write_checkpoint(base, output, {EDITED[0]: scaled(2.0)}, config_changes=changes)
    config = json.loads((output / "config.json").read_text())
    assert config == {"model_type": "llama", "hidden_size": 10, "nested": {"a": 2, "b": None}, "mlp_bias": True}
    assert list(config) == ["model_type", "hidden_size", "nested", "mlp_bias"]
    assert (output / "config.json").read_text().endswith("}\n")


def test_config_change_in_a_section_that_is_missing(base, output):
    with pytest.raises(InputError, match=naming("text_config")):
        write_checkpoint(base, output, {EDITED[0]: scaled(2.0)}, config_changes={"text_config.mlp_bias": True})
    assert not list(output.iterdir())


def test_llama_with_new_biases_computes_with_them(tmp_path, output):
    """A real architecture switched to `mlp_bias`: transformers finds every bias and the logits move."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    base = Checkpoint.open(tmp_path / "base")
    assert len(base.weight_files) > 1
    sizes = {"gate": 24, "up": 24, "down": 16}
    biases = {
        f"model.layers.{layer}.mlp.{kind}_proj.bias": torch.zeros(size)
        for layer in range(2)
        for kind, size in sizes.items()
    }
    down = "model.layers.1.mlp.down_proj"
    biases[f"{down}.bias"] = torch.linspace(-1, 1, 16)
    write_checkpoint(base, output, {f"{down}.weight": scaled(0.5)}, additions=biases, config_changes={"mlp_bias": True})
    edited, report = AutoModelForCausalLM.from_pretrained(output, torch_dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = torch.arange(6)[None]
    handles = [
        model.model.layers[1].mlp.down_proj.register_forward_hook(
            lambda module, inputs, outputs: 0.5 * outputs + biases[f"{down}.bias"]
        )
    ]
    with torch.no_grad():
        expected, actual = model(tokens).logits, edited(tokens).logits
        handles.pop().remove()
        unedited = model(tokens).logits
    assert actual.allclose(expected, atol=1e-5)
    assert not actual.allclose(unedited, atol=1e-2)


# What is refused


def refused(base: Checkpoint, output: Path, kind: type[Exception], *facts: object, **arguments: object) -> None:
    with pytest.raises(kind, match=naming(*facts)) as caught:
        write_checkpoint(base, output, **({"edits": {}} | arguments))
    assert type(caught.value) is kind


def test_wrong_edits_are_refused_before_anything_is_written(base, output):
    refused(base, output, InputError, "edit")
    refused(base, output, InputError, "absent", edits={"absent": scaled(2.0)})
    for name in ("packed", "eighth", "mask"):
        refused(base, output, InputError, name, "quantized", edits={name: scaled(2.0)})
    refused(base, output, InputError, "scale", additions={"scale": torch.ones(2)})
    refused(base, output, SeaExportError, "new", additions={"new": torch.tensor([float("nan")])})
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    ("edit", "facts"),
    [
        (lambda tensor: tensor.T, [(6, 10), (10, 6)]),
        (lambda tensor: tensor.float(), ["float32", "bfloat16"]),
        (lambda tensor: tensor * float("inf"), ["finite"]),
        (lambda tensor: tensor * 0 + float("nan"), ["finite"]),
        (lambda tensor: tensor.float().mul(1e38).to(tensor.dtype) * 10, ["finite"]),
    ],
)
def test_edits_with_impossible_results_fail(base, output, edit, facts):
    refused(base, output, SeaExportError, EDITED[0], *facts, edits={EDITED[0]: edit})


def test_overflow_of_the_stored_dtype_fails(base, output):
    """Finite in float32, not in the float16 that is stored."""
    refused(base, output, SeaExportError, "layers.1.half", "finite", edits={"layers.1.half": scaled(1e6)})


def test_edit_that_changes_nothing_is_an_error(base, output):
    refused(base, output, SeaExportError, "edit", 2, edits=dict.fromkeys(EDITED[:2], torch.clone))


def test_change_below_the_rounding_of_the_dtype_changes_nothing(base, output):
    refused(base, output, SeaExportError, "edit", 1, edits={EDITED[0]: scaled(1 + 1e-6)})


def test_tensors_that_stay_the_same_are_told_from_those_that_change(base, output):
    report = write_checkpoint(base, output, {EDITED[0]: scaled(2.0), EDITED[1]: torch.clone})
    assert report.edited == (EDITED[0],)
    assert report.unchanged == (EDITED[1],)


def test_existing_file_is_not_overwritten(base, output):
    (output / base.weight_files[0]).write_text("mine")
    refused(base, output, SeaExportError, base.weight_files[0], "File exists", edits={EDITED[0]: scaled(2.0)})
    assert (output / base.weight_files[0]).read_text() == "mine"


def test_base_that_becomes_shorter_on_the_way(tmp_path, output):
    base = Checkpoint.open(write_single(tmp_path / "base", {"a": torch.ones(10), "b": torch.ones(300_000)}))

    def truncates(tensor: torch.Tensor) -> torch.Tensor:
        os.truncate(base.directory / "model.safetensors", base.tensors["b"].start + 500_000)
        return 2 * tensor

    refused(base, output, SeaExportError, base.directory / "model.safetensors", edits={"a": truncates})


def test_base_that_is_written_to_on_the_way(base, output):
    path = base.directory / base.tensors[EDITED[0]].file

    def appends(tensor: torch.Tensor) -> torch.Tensor:
        with open(path, "ab") as stream:
            stream.write(b"more")
        return 2 * tensor

    refused(base, output, SeaExportError, path, edits={EDITED[0]: appends})


def test_full_disk_is_told_in_a_sentence(base, output, monkeypatch):
    def fails(copy: streaming.FileCopy, view: memoryview, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming.FileCopy, "_write", fails)
    refused(base, output, SeaExportError, "No space left on device", edits={EDITED[0]: scaled(2.0)})


def test_memory_stays_small(tmp_path, output):
    """What is alive at once is one edited tensor, not the file: each earlier one is gone when the next is edited."""
    tensors = {f"w{index}": torch.full((1000,), float(index + 1)) for index in range(8)}
    base = Checkpoint.open(write_single(tmp_path / "base", tensors))
    alive: list[int] = []

    references: list[weakref.ref] = []

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in references))
        result = 2 * tensor
        references.extend([weakref.ref(tensor), weakref.ref(result)])
        return result

    write_checkpoint(base, output, dict.fromkeys(tensors, watched))
    assert len(alive) == 8
    assert max(alive) == 0


MEASURED_RUN = """
import re, sys
from pathlib import Path
from sea_export.model.checkpoint import Checkpoint
from sea_export.export.merged.merge_writer import write_checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

base = Checkpoint.open(sys.argv[1])
before = peak()
write_checkpoint(base, Path(sys.argv[2]), dict.fromkeys(base.tensors, lambda tensor: 2 * tensor))
print((peak() - before) // 1000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_checkpoint(tmp_path, output):
    """Editing 60 tensors of 4 MB takes far less than the 240 MB that they have together."""
    tensors = {f"w{index}": torch.full((1000, 2000), float(index + 1), dtype=torch.bfloat16) for index in range(60)}
    write_sharded(tmp_path / "base", tensors)
    command = [sys.executable, "-c", MEASURED_RUN, str(tmp_path / "base"), str(output)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 120
    assert load_file(output / "model-00001-of-00003.safetensors")["w3"][0, 0] == 8
