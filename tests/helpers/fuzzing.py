"""Valid files, changed at random where it matters, and what must hold of whatever reads them.

Each property takes a changed file and holds if the reader gives a result that is what the file says, or refuses the
file with an `InputError`. `PROPERTIES` names all of them, for the tests and for `scripts/fuzz`.
"""

from __future__ import annotations

import copy
import functools
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import yaml
from click.testing import CliRunner
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from sea_export.capture.cache import ActivationCache
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cards.description import update_description
from sea_export.cli import main as program
from sea_export.demonstrations.chat_template import chat_texts
from sea_export.demonstrations.demonstration import Demonstration, DemonstrationOrigin
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.stored_edit import DESCRIPTION_FILE, TENSORS_FILE
from sea_export.edit.weight_fold import fold_changes
from sea_export.errors import InputError, SeaExportError
from sea_export.export.manifest import read_manifest
from sea_export.files.digests import file_digests
from sea_export.files.reading import read_json
from sea_export.fitting.layer_choice import choose_targets
from sea_export.importing.import_edit import imported_edit, read_source
from sea_export.importing.import_options import ImportOptions
from sea_export.importing.source_file import read_source_file
from sea_export.importing.source_vectors import source_vectors
from sea_export.model.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of_adapter, check_adapter_files
from sea_export.model.base import open_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.gguf_header import read_gguf_header
from sea_export.model.load_model import choose_device, dtype_named
from sea_export.model.pickled_weights import load_pickled_weights
from sea_export.model.pretrained import put_adapter_on
from sea_export.model.run_options import MOST_THREADS
from sea_export.model.safetensors_header import read_header
from sea_export.model.targets import Target
from sea_export.options import FORMATS, ExportOptions, FitOptions
from sea_export.patches.apply_patch import apply_patch
from sea_export.saving import locate_fit, save_checkpoint
from sea_export.verification.recorded_run import RecordedRun
from tests.helpers.changed_files import changed_bytes, changed_json, changed_safetensors, changed_text, text_of
from tests.helpers.changed_gguf import changed_gguf
from tests.helpers.checkpoint_files import INDEX, tensors_of_many_dtypes
from tests.helpers.fuzzed_gguf_adapter import GGUF_ADAPTER_PROPERTIES
from tests.helpers.fuzzed_hub import HUB_PROPERTIES
from tests.helpers.gguf_files import write_gguf
from tests.helpers.patch_files import description_of, patch_bytes, with_description
from tests.helpers.template_folders import Kind, scratch_folder, template_folder
from tests.helpers.tiny_edits import spectral_edit
from tests.helpers.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.helpers.vector_files import VECTOR_LAYERS, VECTOR_SIZE, vector_file

# Files


@functools.cache
def _header_file() -> bytes:
    return save(tensors_of_many_dtypes(), metadata={"format": "pt"})


Property = Callable[[bytes], None]


def is_read(holds: Property, contents: bytes) -> bool:
    """Whether a file is read; False if it is refused, with a sentence that can be shown."""
    try:
        holds(contents)
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert 10 < len(message) < 1200
        return False
    return True


# Properties


def header_is_read_as_safetensors_reads_it(contents: bytes) -> None:
    with scratch_folder() as folder:
        file = folder / "w.safetensors"
        file.write_bytes(contents)
        header = read_header(file)
        with safe_open(file, framework="pt") as stored:
            assert sorted(stored.keys()) == sorted(tensor.name for tensor in header.tensors)
            for tensor in header.tensors:
                part = stored.get_slice(tensor.name)
                assert tuple(part.get_shape()) == tensor.shape
                data = stored.get_tensor(tensor.name).contiguous().reshape(-1).view(torch.uint8)
                assert bytes(data.tolist()) == contents[tensor.start : tensor.end]


def index_is_read_or_refused(text: bytes) -> None:
    with scratch_folder("checkpoint") as folder:
        (folder / INDEX).write_bytes(text)
        checkpoint = Checkpoint.open(folder)
        assert {tensor.file for tensor in checkpoint.tensors.values()} <= {path.name for path in folder.iterdir()}


def edit_of_any_description_is_read_or_refused(text: bytes) -> None:
    with scratch_folder("edit") as folder:
        (folder / "sea_edit.json").write_bytes(text)
        _use(SpectralEdit.load(folder))


def edit_of_weights_is_read_or_refused(contents: bytes, file: str) -> None:
    with scratch_folder(_OF_WEIGHTS) as folder:
        (folder / file).write_bytes(contents)
        _use(SpectralEdit.load(folder))


def edit_of_any_tensors_is_read_or_refused(contents: bytes) -> None:
    with scratch_folder("edit") as folder:
        (folder / "sea_edit.safetensors").write_bytes(contents)
        _use(SpectralEdit.load(folder))


def _use(edit: SpectralEdit) -> None:
    """An edit that was read can be applied, and saved and read again."""
    for layers in edit.layers.values():
        for layer in layers:
            layer.apply(torch.ones(2, layer.size))
    for changes in edit.weight_changes.values():
        for change in changes:
            outputs, inputs = change.shape
            assert change.of_output(torch.ones(2, inputs), torch.ones(2, outputs)).shape == (2, outputs)
            fold_changes(torch.ones(outputs, inputs), [change], -2)
    with scratch_folder() as folder:
        edit.save(folder)
        again = SpectralEdit.load(folder)
        assert again.targets == edit.targets
        assert list(again.weight_changes) == list(edit.weight_changes)


def adapter_is_applied_or_refused(contents: bytes, file: str) -> None:
    with scratch_folder("adapter") as folder:
        (folder / file).write_bytes(contents)
        check_adapter_files(folder)
        assert base_of_adapter(folder)
        adapted = put_adapter_on(copy.deepcopy(tiny_model("llama")), folder)
        with torch.inference_mode():
            assert adapted(torch.tensor([[7, 60, 31]])).logits.shape == (1, 3, VOCABULARY)


def adapter_is_imported_or_refused(contents: bytes, file: str) -> None:
    """One that is imported does what PEFT does with it."""
    with scratch_folder("adapter") as folder:
        (folder / file).write_bytes(contents)
        source = read_source(folder, ImportOptions())
        with open_base(str(template_folder("model"))) as base:
            edit = imported_edit(source, base, ImportOptions())
        model, tokens = tiny_model("llama"), torch.tensor([[7, 60, 31]])
        with torch.inference_mode():
            with edit.apply(model):
                found = model(tokens).logits
            expected = put_adapter_on(copy.deepcopy(model), folder)(tokens).logits
    if expected.isfinite().all():
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def manifest_is_read_or_refused(text: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "sea_export.json").write_bytes(text)
        manifest = read_manifest(folder)
        assert isinstance(getattr(torch, manifest["base"]["dtype"]), torch.dtype)
        assert isinstance(manifest["base"]["name"], str)


def patch_is_applied_or_refused(contents: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "p.safetensors").write_bytes(contents)
        try:
            apply_patch(template_folder("model"), folder / "p.safetensors", folder / "out")
        except InputError:
            assert {file.name for file in folder.iterdir()} == {"p.safetensors"}, "nothing is written"
            raise
        told = {name: file["sha256"] for name, file in description_of(contents)["files"].items()}
        assert file_digests(folder / "out") == told


def json_is_read_as_python_reads_it(text: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "a.json").write_bytes(text)
        value = read_json(folder / "a.json")
    assert json.dumps(value) == json.dumps(json.loads(text))


def pickle_is_read_or_refused(contents: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "w.bin").write_bytes(contents)
        for tensor in load_pickled_weights(folder / "w.bin").values():
            assert tensor.nbytes <= len(contents)


@functools.cache
def _pickle_file(zipped: bool) -> bytes:
    stream = io.BytesIO()
    tensors = {name: tensor for name, tensor in tensors_of_many_dtypes().items() if tensor.numel()}
    torch.save(tensors, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def gguf_is_converted_and_edited_or_refused(contents: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "m.gguf").write_bytes(contents)
        with open_base(str(folder / "m.gguf"), dtype=torch.float32) as base:
            tensors = base.checkpoint.tensors.values()
            # 8-bit weights become four times as large, and an embedding may be stored for both ends of the model.
            assert sum(tensor.end - tensor.start for tensor in tensors) <= 8 * len(contents)
            edit = spectral_edit([Target(0, "mlp")], size=32)
            try:
                save_checkpoint(edit, base, folder / "out", ExportOptions(format="gguf", verify=False))
            except SeaExportError as error:
                assert {file.name for file in folder.iterdir()} == {"m.gguf"}, "nothing is half written"
                raise InputError(str(error)) from error  # of numbers that no type holds, too
            assert read_gguf_header(folder / "out" / "m.gguf").tensors


@functools.cache
def _gguf_file() -> bytes:
    with scratch_folder() as folder:
        write_gguf(folder / "m.gguf")
        return (folder / "m.gguf").read_bytes()


def vectors_are_read_or_refused(contents: bytes, file: str) -> None:
    with scratch_folder() as folder:
        (folder / file).write_bytes(contents)
        read = read_source_file(folder / file)
        assert all(array.dtype == torch.float64 for array in read.arrays.values())
        found = source_vectors(read, VECTOR_LAYERS, VECTOR_SIZE, ImportOptions())
        for rows in [found.alone] if found.by_layer is None else found.by_layer.values():
            assert rows is not None
            assert rows.shape[1] == VECTOR_SIZE


def run_is_repeatable_or_refused(text: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "sea_export.json").write_bytes(text)
        run = RecordedRun.of(read_manifest(folder))
        run.changed_versions()
        choose_device(run.computation["device"])
        dtype_named(run.computation["dtype"])
        assert 1 <= run.computation["threads"] <= MOST_THREADS
        assert run.export_options(overwrite=True).format in FORMATS
        assert all(isinstance(name, str) for name in run.base["files"])


def options_are_taken_or_refused(contents: bytes, file: str) -> None:
    with scratch_folder() as folder:
        (folder / file).write_bytes(contents)
        command = ["fit", "model", "edit", "--config", str(folder / file), "--print-config"]
        result = CliRunner().invoke(program, command)
        if result.exit_code == InputError.exit_code:
            raise InputError(result.stderr)
        assert result.exit_code == 0, result.output
        (folder / "again.yaml").write_text(result.stdout, encoding="utf-8")
        again = CliRunner().invoke(program, ["fit", "--config", str(folder / "again.yaml"), "--print-config"])
        assert again.stdout == result.stdout


def card_is_made_or_refused(text: bytes) -> None:
    with scratch_folder() as folder:
        (folder / "sea_export.json").write_bytes(text)
        update_description(folder, {"repository": "org/edited"})


def config_is_read_or_refused(text: bytes) -> None:
    with scratch_folder("model") as folder:
        (folder / "config.json").write_bytes(text)
        with open_base(str(folder)) as base:
            locate_fit(base, choose_targets(base.skeleton, FitOptions()), FitOptions(), ExportOptions())
            assert isinstance(base.model_class, str)


def tokenizer_is_read_or_refused(text: bytes, file: str) -> None:
    with scratch_folder("model") as folder:
        (folder / file).write_bytes(text)
        with open_base(str(folder)) as base:
            assert len(tokenize(_DEMONSTRATIONS, base.tokenizer)) == len(_DEMONSTRATIONS)


def template_is_rendered_or_refused(text: bytes) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = text.decode(errors="replace")
    (rendered,) = chat_texts(tokenizer, ["Is the sea made of water?"])
    rendered.encode()


def cache_is_read_or_refused(contents: bytes) -> None:
    with scratch_folder() as folder:
        part = ActivationCache(folder, {}, 4).folder / "part.safetensors"
        part.write_bytes(contents)
        cache = ActivationCache(folder, {}, 4)
        target = Target(0, "mlp")
        if not cache.missing([target], [0, 1])[0]:
            assert cache.read(target, [0, 1]).positive.shape == (2, 4)


def base_card_is_read(contents: bytes) -> None:
    with scratch_folder("model") as folder:
        (folder / "README.md").write_bytes(contents)
        with open_base(str(folder)) as base:
            metadata = base_metadata(base)
        json.dumps(metadata, allow_nan=False).encode()
        license_warning(base.name, metadata)


def card_of(metadata: Any) -> bytes:
    """A model card with metadata in JSON, which is YAML too."""
    return b"---\n" + text_of(metadata) + b"\n---\n# A model\n"


@functools.cache
def _cache_file() -> bytes:
    return save({"demonstrations": torch.arange(2), "0.mlp": torch.ones(3, 2, 4), "1.mlp": torch.ones(3, 2, 4)})


_CARD = b"""---
license: apache-2.0
license_link: LICENSE
language: [en, de]
pipeline_tag: text-generation
tags:
- tiny
---
# A model
"""
_CARD_METADATA = {
    "license": "other",
    "license_name": "mit-0",
    "license_link": "LICENSE",
    "language": ["en", "de"],
    "pipeline_tag": "text-generation",
    "tags": ["tiny"],
    "model-index": [{"name": "tiny", "results": []}],
}
_TEMPLATE = (
    b"{%- set system = 'Be kind.' -%}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    b"{% if loop.first and system %}{{ system | trim }}{% endif %}{{ message['content'][0:100] * 2 }}\n{% endfor %}"
    b"{% if add_generation_prompt %}{{ '<|assistant|>' ~ 3 * 5 }}{% else %}{{ raise_exception('no') }}{% endif %}"
)
_DEMONSTRATIONS = [Demonstration("Is the sea wet?", "Yes.", "No."), Demonstration("Is it dry?", "No, wet.", "Yes.")]
_MANIFEST = {
    "manifest_version": 1,
    "format": "merged",
    "base": {"name": "org/tiny", "revision": None, "dtype": "float32", "dequantized": False, "files": {"a": "0"}},
    "edit": {"options": {"layers": "last:2"}},
    "layers": [{"target": "1.mlp", "positive_rank": 2, "relative_change": 0.5}],
    "verification": None,
    "files": {"model.safetensors": "0"},
}

_OPTIONS = b"""# options
command: fit
layers: last:6,2  # and some others
limit: 30
explained-variance: 0.9
skip-bad-rows: true
template: 'chat'
"""
_RUN = {
    **_MANIFEST,
    "export": {"adapter_rank": None, "verify": True, "force": False, "trust_remote_code": False},
    "versions": {"sea-export": "0.1.0", "torch": "2.13.0"},
    "base": {**_MANIFEST["base"], "model_class": "AutoModelForCausalLM", "metadata": {"license": "mit"}},
    "edit": {
        "base": {"name": "org/tiny", "revision": None, "weights": {"model.safetensors": "0"}},
        "demonstrations": {"count": 2, "sha256": "0", "origin": asdict(DemonstrationOrigin("builtin:truthfulness"))},
        "options": asdict(FitOptions()),
        "computation": {"dtype": "float32", "device": "cpu", "layerwise": False, "threads": 1, "processes": 1},
        "versions": {"sea-export": "0.1.0", "torch": "2.13.0"},
    },
    "layers": [
        {
            "target": "1.mlp",
            "positive_rank": 2,
            "negative_rank": 3,
            "positive_variance": 0.5,
            "negative_variance": None,
            "map_rank": None,
            "strength": 1.0,
            "normalization": "none",
            "relative_change": 0.5,
        }
    ],
    "added_tensors": [],
    "evaluation": None,
}


def _of_model(file: str) -> Any:
    return json.loads((template_folder("model") / file).read_text(encoding="utf-8"))


_OF_WEIGHTS: Kind = "edit of weights"
_VECTORS = {
    ".gguf": changed_gguf(lambda: vector_file("v.gguf")),
    ".safetensors": changed_safetensors(lambda: vector_file("v.safetensors")),
    ".npy": st.deferred(lambda: changed_bytes(vector_file("v.npy"))),
    ".npz": st.deferred(lambda: changed_bytes(vector_file("v.npz"))),
    ".json": st.deferred(lambda: changed_text(json.loads(vector_file("v.json")))),
    ".pt": st.deferred(lambda: changed_bytes(vector_file("v.pt"))),
}

PROPERTIES: dict[str, tuple[Property, st.SearchStrategy[bytes]]] = {
    "safetensors header": (header_is_read_as_safetensors_reads_it, changed_safetensors(_header_file)),
    "shard index": (
        index_is_read_or_refused,
        st.deferred(lambda: changed_text(json.loads((template_folder("checkpoint") / INDEX).read_text()))),
    ),
    "description of an edit": (
        edit_of_any_description_is_read_or_refused,
        st.deferred(lambda: changed_text(json.loads((template_folder("edit") / "sea_edit.json").read_text()))),
    ),
    "tensors of an edit": (
        edit_of_any_tensors_is_read_or_refused,
        changed_safetensors(lambda: (template_folder("edit") / "sea_edit.safetensors").read_bytes()),
    ),
    "config of an adapter": (
        functools.partial(adapter_is_applied_or_refused, file=ADAPTER_CONFIG),
        st.deferred(lambda: changed_text(json.loads((template_folder("adapter") / ADAPTER_CONFIG).read_text()))),
    ),
    "tensors of an adapter": (
        functools.partial(adapter_is_applied_or_refused, file=ADAPTER_WEIGHTS),
        changed_safetensors(lambda: (template_folder("adapter") / ADAPTER_WEIGHTS).read_bytes()),
    ),
    "config of an imported adapter": (
        functools.partial(adapter_is_imported_or_refused, file=ADAPTER_CONFIG),
        st.deferred(lambda: changed_text(json.loads((template_folder("adapter") / ADAPTER_CONFIG).read_text()))),
    ),
    "tensors of an imported adapter": (
        functools.partial(adapter_is_imported_or_refused, file=ADAPTER_WEIGHTS),
        changed_safetensors(lambda: (template_folder("adapter") / ADAPTER_WEIGHTS).read_bytes()),
    ),
    "description of an edit of weights": (
        functools.partial(edit_of_weights_is_read_or_refused, file=DESCRIPTION_FILE),
        st.deferred(lambda: changed_text(json.loads((template_folder(_OF_WEIGHTS) / DESCRIPTION_FILE).read_text()))),
    ),
    "tensors of an edit of weights": (
        functools.partial(edit_of_weights_is_read_or_refused, file=TENSORS_FILE),
        changed_safetensors(lambda: (template_folder(_OF_WEIGHTS) / TENSORS_FILE).read_bytes()),
    ),
    "manifest": (manifest_is_read_or_refused, changed_text(_MANIFEST)),
    "JSON": (json_is_read_as_python_reads_it, changed_text(_MANIFEST) | st.binary(max_size=50)),
    "pickle": (
        pickle_is_read_or_refused,
        st.deferred(lambda: changed_bytes(_pickle_file(True)) | changed_bytes(_pickle_file(False))),
    ),
    "recorded run": (run_is_repeatable_or_refused, changed_text(_RUN)),
    "options of a recorded run": (
        functools.partial(options_are_taken_or_refused, file="sea_export.json"),
        changed_text(_RUN),
    ),
    "options": (
        functools.partial(options_are_taken_or_refused, file="options.yaml"),
        changed_bytes(_OPTIONS) | changed_text(yaml.safe_load(_OPTIONS)),
    ),
    "model card of a manifest": (card_is_made_or_refused, changed_text(_RUN)),
    "config": (config_is_read_or_refused, st.deferred(lambda: changed_text(_of_model("config.json")))),
    "tokenizer": (
        functools.partial(tokenizer_is_read_or_refused, file="tokenizer.json"),
        st.deferred(lambda: changed_text(_of_model("tokenizer.json"))),
    ),
    "config of a tokenizer": (
        functools.partial(tokenizer_is_read_or_refused, file="tokenizer_config.json"),
        st.deferred(lambda: changed_text(_of_model("tokenizer_config.json"))),
    ),
    "chat template": (template_is_rendered_or_refused, changed_bytes(_TEMPLATE)),
    "cache": (cache_is_read_or_refused, changed_safetensors(_cache_file)),
    "model card of a base": (base_card_is_read, changed_bytes(_CARD) | changed_json(_CARD_METADATA).map(card_of)),
    **{
        f"vectors in {form}": (functools.partial(vectors_are_read_or_refused, file=f"v{form}"), files)
        for form, files in _VECTORS.items()
    },
    "GGUF": (gguf_is_converted_and_edited_or_refused, changed_gguf(_gguf_file)),
    "patch": (patch_is_applied_or_refused, changed_safetensors(patch_bytes)),
    "description of a patch": (
        patch_is_applied_or_refused,
        st.deferred(
            lambda: changed_json(description_of(patch_bytes())).map(
                lambda changed: with_description(patch_bytes(), changed)
            )
        ),
    ),
    **GGUF_ADAPTER_PROPERTIES,
    **HUB_PROPERTIES,
}
