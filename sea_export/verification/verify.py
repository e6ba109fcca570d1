"""Verification: whether an export is the edit that it should be.

Cheap checks come first, and end the verification where they find a problem:

- Files: the output has the files of its manifest and no others, each with the digest that it had when it was written.
  The base has the digests that the manifest names.
- Tensors: in a merged checkpoint exactly the intended tensors differ from the base, each only by the fold, to the last
  bit, and all other bytes are the same. An adapter gives exactly the edited weights. A custom-code export holds the
  tensors of the base and those of the edit.

Then two errors of the predictions are measured separately:

- Fold error: the run-time edit is compared with what the export computes in memory (folded weights, or the adapter on
  the base), both in float32 on the weights of the base.
- Rounding error: the run-time edit is compared with the stored export, loaded by another process, which knows nothing
  of sea-export. For a merged checkpoint it includes the rounding of edited weights to the stored dtype, or to their
  quantized storage. What computing in that dtype changes in the unedited base is measured too; of a quantized storage,
  what moving the same weights at random within its rounding changes. A GGUF adapter, which transformers does not load,
  is read from its files and put on the base in memory.

An adapter of capped rank is an approximation. Its distance from the edit is reported, and it is checked that it is the
best approximation of its rank. A quantized base is computed as it is, in its own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.capture.progress_callback import ProgressCallback, waiting_of
from sea_export.edit.stored_edit import StoredEdit, read_stored_edit
from sea_export.errors import InputError
from sea_export.export.fetch import fetch_output
from sea_export.export.formats import EditNeeds, ExportFormat, export_format
from sea_export.export.listed_files import check_files
from sea_export.export.manifest import check_base, read_manifest
from sea_export.model.checkpoint import CARD
from sea_export.model.location import ModelLocation, is_hub_id, locate_model
from sea_export.options import ExportOptions
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.verification import Verification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SoundOutput", "check_output_files", "verify"]


@dataclass(frozen=True)
class SoundOutput:
    """An output whose files are those of its manifest. Whether it is the edit of its base is still to be seen.

    Attributes:
        directory: the output.
        manifest: its manifest.
        edit: the edit in it.
        base: where its base is.
        unchecked: what no digest vouches for, each as a noun phrase.
        trust_remote_code: whether code may run that sea-export does not write.
    """

    directory: Path
    manifest: Mapping[str, Any]
    edit: StoredEdit
    base: ModelLocation
    unchecked: tuple[str, ...]
    trust_remote_code: bool

    @property
    def format(self) -> ExportFormat[Any, Any]:
        """Its format."""
        return export_format(self.manifest["format"])

    def verify(self, process: CleanProcess, *, layerwise: bool | None = None) -> Verification:
        """Verifies its tensors and its predictions.

        Args:
            process: the one in which plain transformers loads it.
            layerwise: whether only one layer of the base at a time is in memory; None decides by the free memory.

        Raises:
            InputError: the base is another one, or code is not trusted.
            SeaExportError: plain transformers cannot load the checkpoint.
        """
        import torch  # seconds, as the following modules

        from sea_export.edit.spectral_edit import SpectralEdit
        from sea_export.model.base import open_base
        from sea_export.verification.verify_export import (
            base_to_verify,
            model_to_verify,
            unrounded_model,
            verify_export,
        )

        directory, named, edit = self.directory, self.manifest["base"], SpectralEdit.from_stored(self.edit)
        format = self.format
        options = ExportOptions(
            format=format.name,
            adapter_rank=self.manifest.get("adapter", {}).get("rank_cap"),
            adapter_padding=self.manifest.get("export", {}).get("adapter_padding", ExportOptions.adapter_padding),
            gguf_type=self.manifest.get("export", {}).get("gguf_type", ExportOptions.gguf_type),
            requantize=self.manifest.get("export", {}).get("requantize", False),
            compatible_config=self.manifest.get("export", {}).get("compatible_config", False),
        )
        # A copy of the base may have another name: messages about its files use it, and the plan the recorded one.
        recorded = replace(self.base, name=named["name"], revision=named["revision"])
        with open_base(
            recorded,
            dtype=getattr(torch, named["dtype"]),
            dequantize=named["dequantized"],
            trust_remote_code=self.trust_remote_code,
        ) as opened:
            check_base(replace(opened, name=self.base.name), named["files"])
            located = format.locate(opened, edit.targets, EditNeeds.of_edit(edit), options)
            model: PreTrainedModel | None = None

            def load() -> PreTrainedModel:
                nonlocal model
                model = model or unrounded_model(opened, None)
                return model

            plan = format.plan(edit, opened, located, options, load)
            format.check_before_loading(directory, plan, trust_remote_code=self.trust_remote_code)
            with base_to_verify(opened, format) as exact:
                known = model if exact is opened else None
                verified = model_to_verify(exact, layerwise, known, directory.resolve().parent)
                found = verify_export(directory, exact, edit, format, plan, verified, process)
            return replace(found, unchecked=(*self.unchecked, *found.unchecked))


def verify(
    output: str | Path,
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    layerwise: bool | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Verification:
    """Verifies a checkpoint that sea-export wrote: all its files, its tensors, and its predictions.

    Args:
        output: the checkpoint: a directory, or `REPO_ID` or `REPO_ID@REVISION` on the Hub.
        base: the base model; None for the one in the manifest, if that is a Hub id.
        revision: the revision of the base on the Hub; None for the one in the manifest.
        trust_remote_code: whether code may run that comes with the base, or that is in the output and is not what this
            version of sea-export writes.
        layerwise: whether only one layer of the base at a time is in memory; None decides by the free memory.
        threads: how many threads torch computes with from now on; None for as many as before.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: sea-export did not write the output, the base is not available or another one, or code is not
            trusted.
        SeaExportError: plain transformers cannot load the checkpoint.
    """
    waiting = waiting_of(progress)
    with waiting("Comparing files"):
        found = check_output_files(output, base, revision=revision, trust_remote_code=trust_remote_code)
    if isinstance(found, Verification):
        return found
    with CleanProcess() as process, waiting("Verifying"):
        if found.format.loads_in_transformers:
            process.begin()  # it imports what it needs while the base is compared with the manifest
        if threads is not None:
            from sea_export.model.threads import use_threads  # torch takes seconds to import

            use_threads(threads)
        return found.verify(process, layerwise=layerwise)


def check_output_files(
    output: str | Path, base: str | Path | None, *, revision: str | None, trust_remote_code: bool
) -> SoundOutput | Verification:
    """The part of a verification that compares files only, without torch.

    Args:
        output: see `verify`.
        base: see `verify`.
        revision: see `verify`.
        trust_remote_code: see `verify`.

    Returns:
        What is to be verified further, or the verification, if files are not as they should be.

    Raises:
        InputError: sea-export did not write the output, or the base is not available.
    """
    directory = fetch_output(output)
    manifest = read_manifest(directory)
    not_fetched = frozenset({CARD}) if directory != Path(output) else frozenset()
    files = check_files(directory, manifest["files"], not_fetched=not_fetched)
    if files.problems:
        return Verification(manifest["base"]["dtype"], files.problems, (*files.unchecked, "tensors", "predictions"))
    named = manifest["base"]
    base = base or export_format(manifest["format"]).base_of(directory)
    if base is None and not is_hub_id(named["name"]):
        raise InputError(f"{output}: it was made from the local model {named['name']}. Say where it is with --base.")
    edit = read_stored_edit(directory)
    location = locate_model(str(base or named["name"]), revision or named["revision"])
    return SoundOutput(directory, manifest, edit, location, files.unchecked, trust_remote_code)
