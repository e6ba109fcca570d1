"""Valid files, changed at random where it matters, and what must hold of whatever reads them.

Each property takes a changed file and holds if the reader gives a result that is what the file says, or refuses the
file with an `InputError` that can be shown. `PROPERTIES` names all of them, for the tests and for `scripts/fuzz`.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from sea_export.capture.cache import ActivationCache
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cards.description import update_description
from sea_export.demonstrations.chat_template import chat_texts
from sea_export.demonstrations.demonstration import Demonstration, DemonstrationOrigin
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.manifest import read_manifest
from sea_export.files.reading import parse_json
from sea_export.fitting.layer_choice import choose_targets
from sea_export.model.base import Base, open_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.gguf_header import read_gguf_header
from sea_export.model.load_model import choose_device, dtype_named
from sea_export.model.pickled_weights import load_pickled_weights
from sea_export.model.safetensors_header import read_header
from sea_export.model.targets import Target
from sea_export.options import FORMATS, ExportOptions, FitOptions
from sea_export.saving import locate_fit, save_checkpoint
from sea_export.verification.recorded_run import RecordedRun
from tests.helpers.checkpoint_files import INDEX, join_file, split_file, tensors_of_many_dtypes, write_sharded
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit
from tests.helpers.tiny_models import tiny_model, tiny_tokenizer

# Values

_NUMBERS = (
    st.sampled_from(
        [0, -1, 1, 7, 8, 24, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64 - 1, 2**64, 10**300, 10**400, 0.5, 1e308]
    )
    | st.floats()
)
_TEXTS = (
    st.sampled_from(
        [
            "",
            "F32",
            "F64",
            "BF16",
            "U8",
            "F4",
            "__metadata__",
            "positive",
            "1.mlp",
            "../x",
            "/etc/passwd",
            "a/b",
            "\0",
            ".",
        ]
    )
    | st.text(max_size=20)
    | st.text(alphabet="\x1b\n\r\u202e\ud800", min_size=1, max_size=3)
)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.integers() | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=3), max_leaves=8
)


# Changes


@st.composite
def changed_json(draw: st.DrawFn, valid: Any) -> Any:
    """A parsed JSON text with one to three changes anywhere in it."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(_VALUES)
        container, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "nudge", "remove", "rename", "exchange", "wrap"]))
        if change == "nudge" and type(container[key]) is int:
            container[key] += draw(st.sampled_from([-8, -4, -1, 1, 4, 8]))
        elif change == "remove":
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[draw(_TEXTS)] = container.pop(key)
        elif change == "exchange":
            other, other_key = draw(st.sampled_from(places))
            one, two = copy.deepcopy((container[key], other[other_key]))
            container[key], other[other_key] = two, one
        elif change == "wrap":
            container[key] = [container[key]]
        else:
            container[key] = draw(_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes with some of them replaced, removed, repeated or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        # Near the beginning more often than not: that is where files say what they are.
        start = draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        count = draw(st.integers(0, 16) | st.integers(0, len(data)))
        change = draw(st.sampled_from(["replace", "remove", "repeat", "insert", "cut"]))
        if change == "replace":
            new = draw(st.binary(min_size=1, max_size=8))
            data[start : start + len(new)] = new
        elif change == "remove":
            del data[start : start + count]
        elif change == "repeat":
            data[start:start] = data[start : start + min(count, 4096)]
        elif change == "insert":
            data[start:start] = draw(st.binary(max_size=16))
        else:
            del data[start:]
    return bytes(data)


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def changed_text(valid: Any) -> st.SearchStrategy[bytes]:
    """A JSON text that is changed as what it says, or as bytes."""
    return changed_json(valid).map(text_of) | changed_bytes(text_of(valid))


# Files


@functools.cache
def _header_file() -> bytes:
    return save(tensors_of_many_dtypes(), metadata={"format": "pt"})


def changed_safetensors(valid: Callable[[], bytes]) -> st.SearchStrategy[bytes]:
    """A safetensors file with a changed header, or changed anywhere."""

    def strategy() -> st.SearchStrategy[bytes]:
        contents = valid()
        header, data = split_file(contents)
        return changed_json(header).map(lambda changed: join_file(changed, data)) | changed_bytes(contents)

    return st.deferred(strategy)


@functools.cache
def _template_folder(kind: str) -> tempfile.TemporaryDirectory[str]:
    """A valid sharded checkpoint or edit, made once a process and removed when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    directory = Path(folder.name)
    if kind == "checkpoint":
        write_sharded(directory, tensors_of_many_dtypes())
    elif kind == "model":
        tiny_model("llama").save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
    else:
        spectral_edit(MLP_TARGETS).save(directory)
    return folder


def _template(kind: str) -> Path:
    return Path(_template_folder(kind).name)


@contextmanager
def _scratch(kind: str | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if kind is not None:
            shutil.copytree(_template(kind), folder, dirs_exist_ok=True)
        yield Path(folder)


@contextmanager
def refused_or_done() -> Iterator[None]:
    """What is in it ends well, or with an InputError that can be shown."""
    message = "a whole sentence"
    try:
        yield
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    assert 10 < len(message) < 1200


# Properties


def header_is_read_as_safetensors_reads_it(contents: bytes) -> None:
    with _scratch() as folder, refused_or_done():
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
    with _scratch("checkpoint") as folder, refused_or_done():
        (folder / INDEX).write_bytes(text)
        checkpoint = Checkpoint.open(folder)
        assert {tensor.file for tensor in checkpoint.tensors.values()} <= {path.name for path in folder.iterdir()}


def edit_of_any_description_is_read_or_refused(text: bytes) -> None:
    with _scratch("edit") as folder, refused_or_done():
        (folder / "sea_edit.json").write_bytes(text)
        _use(SpectralEdit.load(folder))


def edit_of_any_tensors_is_read_or_refused(contents: bytes) -> None:
    with _scratch("edit") as folder, refused_or_done():
        (folder / "sea_edit.safetensors").write_bytes(contents)
        _use(SpectralEdit.load(folder))


def _use(edit: SpectralEdit) -> None:
    """An edit that was read can be applied, and saved and read again."""
    for layers in edit.layers.values():
        for layer in layers:
            layer.apply(torch.ones(2, layer.size))
    with _scratch() as folder:
        edit.save(folder)
        assert SpectralEdit.load(folder).targets == edit.targets


def manifest_is_read_or_refused(text: bytes) -> None:
    with _scratch() as folder, refused_or_done():
        (folder / "sea_export.json").write_bytes(text)
        manifest = read_manifest(folder)
        assert isinstance(getattr(torch, manifest["base"]["dtype"]), torch.dtype)
        assert isinstance(manifest["base"]["name"], str)


def json_is_parsed_as_python_parses_it(text: bytes) -> None:
    try:
        value = parse_json(text)
    except ValueError:
        return
    assert json.dumps(value) == json.dumps(json.loads(text))


def pickle_is_read_or_refused(contents: bytes) -> None:
    with _scratch() as folder, refused_or_done():
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
    with _scratch() as folder:
        (folder / "m.gguf").write_bytes(contents)
        with refused_or_done(), open_base(str(folder / "m.gguf"), dtype=torch.float32) as base:
            tensors = base.checkpoint.tensors.values()
            # 8-bit weights become four times as large, and an embedding may be stored for both ends of the model.
            assert sum(tensor.end - tensor.start for tensor in tensors) <= 8 * len(contents)
            _edit_gguf(base, folder / "out")
            assert read_gguf_header(folder / "out" / "m.gguf").tensors
        assert {file.name for file in folder.iterdir()} <= {"m.gguf", "out"}, "nothing is half written"


def _edit_gguf(base: Base, output: Path) -> None:
    edit = spectral_edit([Target(0, "mlp")], size=32)
    try:
        save_checkpoint(edit, base, output, ExportOptions(format="gguf", verify=False))
    except SeaExportError as error:  # numbers that no type holds
        raise InputError(str(error)) from error


@functools.cache
def _gguf_file() -> bytes:
    with _scratch() as folder:
        write_gguf(folder / "m.gguf")
        return (folder / "m.gguf").read_bytes()


def run_is_repeatable_or_refused(text: bytes) -> None:
    with _scratch() as folder, refused_or_done():
        (folder / "sea_export.json").write_bytes(text)
        run = RecordedRun.of(read_manifest(folder))
        run.changed_versions()
        choose_device(run.computation["device"])
        dtype_named(run.computation["dtype"])
        assert run.export_options(overwrite=True).format in FORMATS
        assert all(isinstance(name, str) for name in run.base["files"])


def card_is_made_or_refused(text: bytes) -> None:
    with _scratch() as folder, refused_or_done():
        (folder / "sea_export.json").write_bytes(text)
        update_description(folder, {"repository": "org/edited"})


def config_is_read_or_refused(text: bytes) -> None:
    with _scratch("model") as folder, refused_or_done():
        (folder / "config.json").write_bytes(text)
        with open_base(str(folder)) as base:
            locate_fit(base, choose_targets(base.skeleton, FitOptions()), FitOptions(), ExportOptions())
            assert isinstance(base.model_class, str)


def tokenizer_is_read_or_refused(text: bytes, file: str) -> None:
    with _scratch("model") as folder, refused_or_done():
        (folder / file).write_bytes(text)
        with open_base(str(folder)) as base:
            assert len(tokenize(_DEMONSTRATIONS, base.tokenizer)) == len(_DEMONSTRATIONS)


def template_is_rendered_or_refused(text: bytes) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = text.decode(errors="replace")
    with refused_or_done():
        (rendered,) = chat_texts(tokenizer, ["Is the sea made of water?"])
        rendered.encode()


def cache_is_read_or_refused(contents: bytes) -> None:
    with _scratch() as folder, refused_or_done():
        part = ActivationCache(folder, {}, 4).folder / "part.safetensors"
        part.write_bytes(contents)
        cache = ActivationCache(folder, {}, 4)
        target = Target(0, "mlp")
        if not cache.missing([target], [0, 1])[0]:
            assert cache.read(target, [0, 1]).positive.shape == (2, 4)


def base_card_is_read(contents: bytes) -> None:
    with _scratch("model") as folder:
        (folder / "README.md").write_bytes(contents)
        with open_base(str(folder)) as base:
            metadata = base_metadata(base)
        json.dumps(metadata, allow_nan=False).encode()
        license_warning(base.name, metadata)


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
    return json.loads((_template("model") / file).read_text(encoding="utf-8"))


Property = Callable[[bytes], None]

PROPERTIES: dict[str, tuple[Property, st.SearchStrategy[bytes]]] = {
    "safetensors header": (header_is_read_as_safetensors_reads_it, changed_safetensors(_header_file)),
    "shard index": (
        index_is_read_or_refused,
        st.deferred(lambda: changed_text(json.loads((_template("checkpoint") / INDEX).read_text()))),
    ),
    "description of an edit": (
        edit_of_any_description_is_read_or_refused,
        st.deferred(lambda: changed_text(json.loads((_template("edit") / "sea_edit.json").read_text()))),
    ),
    "tensors of an edit": (
        edit_of_any_tensors_is_read_or_refused,
        changed_safetensors(lambda: (_template("edit") / "sea_edit.safetensors").read_bytes()),
    ),
    "manifest": (manifest_is_read_or_refused, changed_text(_MANIFEST)),
    "JSON": (json_is_parsed_as_python_parses_it, changed_text(_MANIFEST) | st.binary(max_size=50)),
    "pickle": (
        pickle_is_read_or_refused,
        st.deferred(lambda: changed_bytes(_pickle_file(True)) | changed_bytes(_pickle_file(False))),
    ),
    "recorded run": (run_is_repeatable_or_refused, changed_text(_RUN)),
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
    "model card of a base": (base_card_is_read, changed_bytes(_CARD)),
    "GGUF": (gguf_is_converted_and_edited_or_refused, st.deferred(lambda: changed_bytes(_gguf_file()))),
}
