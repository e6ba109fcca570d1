"""Outputs of `--format gguf-adapter`, changed at random, and what must hold of whatever reads them: see `fuzzing`."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import sea_export
from sea_export.cards.description import update_description
from sea_export.demonstrations.demonstration import DemonstrationOrigin
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.inspection import inspect
from sea_export.evaluation.loaded_model import check_loadable
from sea_export.export.formats import EditNeeds, export_format
from sea_export.export.manifest import read_manifest
from sea_export.files.digests import file_digest
from sea_export.model.base import Base, open_base
from sea_export.model.diff_models import diff
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions, FitOptions
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.recorded_run import RecordedRun
from sea_export.verification.reproduce import compare_runs
from sea_export.verification.verify import SoundOutput, check_output_files
from sea_export.versions import library_versions
from tests.helpers.changed_files import changed_bytes, changed_text
from tests.helpers.changed_gguf import changed_gguf
from tests.helpers.tampering import forged
from tests.helpers.template_folders import scratch_folder, template_folder
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit

__all__ = ["GGUF_ADAPTER_PROPERTIES", "gguf_adapter_outputs"]

LORA, CONTROL_VECTOR, MODELFILE, MANIFEST = "sea-lora.gguf", "sea-control-vector.gguf", "Modelfile", "sea_export.json"
_FORMAT = export_format("gguf-adapter")


def _provenance() -> dict[str, Any]:
    """What a fit on the model among the templates would say of itself."""
    weights = {"model.safetensors": file_digest(template_folder("model") / "model.safetensors")}
    return {
        "base": {"name": "org/tiny", "revision": None, "weights": weights},
        "demonstrations": {"count": 2, "sha256": "0", "origin": asdict(DemonstrationOrigin("builtin:truthfulness"))},
        "options": asdict(FitOptions()),
        "computation": {"dtype": "float32", "device": "cpu", "layerwise": False, "threads": 1, "processes": 1},
        "versions": library_versions(),
    }


def write_outputs(directory: Path) -> None:
    """Two adapters of the model among the templates.

    `affine` is a LoRA and a control vector, `linear` a LoRA and a Modelfile.
    """
    for center in ("affine", "off"):
        edit = replace(spectral_edit(MLP_TARGETS, center=center, normalization="none"), provenance=_provenance())
        output = directory / ("affine" if center == "affine" else "linear")
        sea_export.save(edit, template_folder("model"), output, format="gguf-adapter", verify=False)


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    write_outputs(Path(folder.name))
    return folder


def gguf_adapter_outputs() -> Path:
    """The directory of the two adapters. Read only."""
    return Path(_kept().name)


@functools.cache
def _planned(name: str) -> tuple[Base, SpectralEdit, Any]:
    """The base, which is closed again, the edit and the plan of an adapter: what its files have to be."""
    edit, options = SpectralEdit.load(gguf_adapter_outputs() / name), ExportOptions(format="gguf-adapter")
    with open_base(str(template_folder("model"))) as base:
        located = _FORMAT.locate(base, edit.targets, EditNeeds.of_edit(edit), options)
        return base, edit, _FORMAT.plan(edit, base, located, options, base.load_model)


@contextmanager
def _changed(name: str, file: str, contents: bytes) -> Iterator[Path]:
    """A copy of an adapter with other contents of one file."""
    with scratch_folder() as folder:
        shutil.copytree(gguf_adapter_outputs() / name, folder / "out")
        (folder / "out" / file).write_bytes(contents)
        yield folder / "out"


def _read_by_each(*readers: Callable[[], object]) -> None:
    """Has all readers read. Raises the first refusal of theirs after the last one."""
    refusals = []
    for read in readers:
        try:
            read()
        except InputError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]


# Properties


def file_is_that_of_the_edit_or_refused(contents: bytes, name: str, file: str) -> None:
    """Although the digests of the manifest were brought up to date, as somebody would who knows of them."""
    good = gguf_adapter_outputs() / name
    with _changed(name, file, contents) as output:
        forged(output)
        readers = [lambda: _check(output, name), lambda: _is_compared_with_a_repeated_run(output, name)]
        if file.endswith(".gguf"):
            readers.append(lambda: _differs_as_it_should(good / file, output / file))
        _read_by_each(*readers)
        if file == MODELFILE:
            assert contents == (good / file).read_bytes()
        else:
            header = next(one.header for one in _planned(name)[2].files if one.name == file)
            assert contents.startswith(header)
            stored, planned = (
                np.frombuffer(data, np.float32, offset=len(header)) for data in (contents, (good / file).read_bytes())
            )
            assert np.allclose(stored, planned, rtol=2e-7, atol=1e-9)


def _check(output: Path, name: str) -> None:
    """What `verify` does with an output before it computes predictions."""
    base, edit, plan = _planned(name)
    found = check_output_files(output, template_folder("model"), revision=None, trust_remote_code=False)
    assert isinstance(found, SoundOutput), "the digests are those of the files"
    _FORMAT.check_before_loading(output, plan, trust_remote_code=False)
    _refuse_problems(_FORMAT.check(output, base, edit, plan).problems)


def _refuse_problems(problems: Sequence[str]) -> None:
    if problems:
        raise InputError(f"the output: {'; '.join(problems)}.")


def _is_compared_with_a_repeated_run(output: Path, name: str) -> None:
    manifest = read_manifest(output)
    RecordedRun.of(manifest)
    found = compare_runs(manifest, output, gguf_adapter_outputs() / name)
    json.dumps(found.to_dict())
    _refuse_problems(found.problems)


def _differs_as_it_should(good: Path, changed: Path) -> None:
    difference = diff(good, changed)
    told = difference.to_dict()
    names = [one["name"] for one in (*told["tensors_changed"], *told["tensors_of_other_form"])]
    assert all(map(str.isprintable, (*names, *told["tensors_only_in_b"], *told["keys_only_in_b"])))
    assert difference.same_weights == (not names and not told["tensors_only_in_a"] and not told["tensors_only_in_b"])


def manifest_is_believed_or_refused(contents: bytes) -> None:
    with _changed("affine", MANIFEST, contents) as output:
        with pytest.raises(InputError):  # whatever it says, llama.cpp alone loads the files
            check_loadable(str(output), RunOptions())
        _read_by_each(
            lambda: _is_verified(output),
            lambda: inspect(output).to_dict(),
            lambda: _is_compared_with_a_repeated_run(output, "affine"),
            lambda: update_description(output, {"repository": "org/edited"}),
        )


def _is_verified(output: Path) -> None:
    found = check_output_files(output, template_folder("model"), revision=None, trust_remote_code=False)
    if isinstance(found, SoundOutput):
        with CleanProcess() as process:
            found = found.verify(process)
    json.dumps(found.to_dict())
    _refuse_problems(found.problems)


def _bytes_of(name: str, file: str) -> bytes:
    return (gguf_adapter_outputs() / name / file).read_bytes()


def _manifest() -> Any:
    return json.loads(_bytes_of("affine", MANIFEST))


GGUF_ADAPTER_PROPERTIES: dict[str, tuple[Callable[[bytes], None], st.SearchStrategy[bytes]]] = {
    "LoRA of a GGUF adapter": (
        functools.partial(file_is_that_of_the_edit_or_refused, name="affine", file=LORA),
        changed_gguf(lambda: _bytes_of("affine", LORA)),
    ),
    "control vector of a GGUF adapter": (
        functools.partial(file_is_that_of_the_edit_or_refused, name="affine", file=CONTROL_VECTOR),
        changed_gguf(lambda: _bytes_of("affine", CONTROL_VECTOR)),
    ),
    "Modelfile of a GGUF adapter": (
        functools.partial(file_is_that_of_the_edit_or_refused, name="linear", file=MODELFILE),
        st.deferred(lambda: changed_bytes(_bytes_of("linear", MODELFILE))),
    ),
    "manifest of a GGUF adapter": (manifest_is_believed_or_refused, st.deferred(lambda: changed_text(_manifest()))),
}
