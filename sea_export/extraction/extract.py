"""From two checkpoints of one architecture to the edit of low rank between them, where there is one.

The files are compared tensor by tensor, and no model is loaded. What differs in the output projections is sought as an
edit of their outputs (`sea_export.extraction.writer_change`). Everything else that differs is named: no edit makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_export.capture.progress_callback import Progress, ProgressCallback, no_progress, progress_of
from sea_export.edit.edited_layers import EditedLayers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.fold_check import check_fold
from sea_export.export.stored_layout import StoredLayout, stored_layout
from sea_export.extraction.writer_change import Writer, WriterChange, change_of
from sea_export.model.architecture import OutputProjection, layers_with
from sea_export.model.base import Base, open_base
from sea_export.model.bias_switch import BIAS_SWITCHES
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import CheckpointDifference, compare_checkpoints
from sea_export.model.targets import COMPONENTS, EMBEDDING, Target
from sea_export.model.threads import use_threads
from sea_export.model.tied_head import tied_head
from sea_export.versions import library_versions

__all__ = ["Extraction", "extract", "extract_from_bases"]

logger = logging.getLogger(__name__)

_NAMED = 3
_NOT_COMPARED = (
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    "tie_word_embeddings",
    *(switch for switches in BIAS_SWITCHES.values() for switch in switches),
)
"""Entries of config.json that say nothing of what is computed, or that an edit turns on."""


@dataclass(frozen=True)
class Extraction:
    """What lies between two checkpoints.

    Attributes:
        a: the name of the first, the base of the edit.
        b: the name of the second.
        writers: what lies between the output projections that differ, sorted by target.
        others: the tensors that differ and that no edit of outputs makes: name -> ‖B - A‖ / ‖A‖ in the Frobenius norm,
            or None where only one of the checkpoints has it, or in another form.
        provenance: where the edit comes from, as plain JSON data.
    """

    a: str
    b: str
    writers: tuple[WriterChange, ...]
    others: Mapping[str, float | None]
    provenance: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the edit and its provenance, as plain JSON data."""
        return {
            "a": self.a,
            "b": self.b,
            "writers": [one.to_dict() for one in self.writers],
            "others": dict(self.others),
            "problem": self.problem,
        }

    @property
    def problem(self) -> str | None:
        """Why there is no edit of low rank between the two, as a clause; None if there is one."""
        problems = [f"{one.target}: {one.problem}" for one in self.writers if one.problem]
        if self.others:
            named = _listed(self.others)
            problems.insert(0, f"{len(self.others)} tensors differ that no edit of outputs changes ({named})")
        return _listed(problems, "; ") if problems else None

    @property
    def edit(self) -> SpectralEdit:
        """The edit.

        Raises:
            SeaExportError: there is none. The message says why.
        """
        if self.problem:
            raise SeaExportError(
                f"{self.b}: there is no edit of low rank between {self.a} and it, because {self.problem}. Give a "
                "checkpoint that differs from its base by an edit alone."
            )
        found = {one.target: (one.edit,) for one in self.writers if one.edit is not None}
        return SpectralEdit(EditedLayers(found), self.provenance)


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return separator.join([*names[:_NAMED], *more])


def extract(
    a: str | Path,
    b: str | Path,
    *,
    trust_remote_code: bool = False,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Extraction:
    """Finds the edit of low rank between two checkpoints of one architecture, where there is one.

    Sought are, for each output projection that differs, a map D of low rank and a constant c with W_B = (I + D) W_A and
    b_B = (I + D) b_A + c. What is found is folded into the weights of A, and compared with those of B: it is an edit
    only if rounding explains what is left.

    Args:
        a: the base: a Hub id, a local directory, or a `.gguf` file.
        b: the checkpoint made from it.
        trust_remote_code: whether code that comes with `a` may run.
        threads: how many threads torch computes with from now on; None for as many as before.
        progress: told a stage, how much of it is done, and how much there is to do.

    Returns:
        What was found, with the singular values. Its attribute `edit` is the edit, and raises an error that says why
        if there is none.

    Raises:
        InputError: one of them is no model, they are not of one architecture, or they hold the same weights.
        SeaExportError: a file changed while it was read.
    """
    if threads is not None:
        use_threads(threads)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(open_base(str(one), trust_remote_code=trust_remote_code)) for one in (a, b)
        )
        return extract_from_bases(first, second, progress_of(progress))


def extract_from_bases(a: Base, b: Base, progress: Progress = no_progress) -> Extraction:
    """`extract` for two models that are open.

    Args:
        a: the base.
        b: the model made from it.
        progress: shows the progress of the output projections that differ.

    Raises:
        InputError: see `extract`.
        SeaExportError: see `extract`.
    """
    _check_alike(a, b)
    for one in (a, b):
        one.files.begin_digests(one.checkpoint.weight_files)
    difference = compare_checkpoints(a.checkpoint, b.checkpoint)
    zero = _zero_biases(b.checkpoint, difference)
    tied, untied = tied_head(a.skeleton), _untied_head(a, b, difference)
    added = set(difference.tensors_only_in_b) - zero - untied
    writers = _writers(a, difference, added, with_embedding=tied is None or bool(untied))
    others = _others(difference, zero.union(untied, *(writer.tensors for writer in writers)))
    if not writers and not others:
        raise InputError(
            f"{b.name}: it holds the weights of {a.name}, and nothing lies between them. Give another model."
        )
    with progress("Comparing output projections", len(writers)) as advance:
        changes = []
        for writer in writers:
            changes.append(change_of(writer, a.checkpoint, b.checkpoint))
            advance(1)
    for one in (a, b):
        one.files.check()
    return Extraction(a.name, b.name, tuple(changes), others, _provenance(a, b))


def _check_alike(a: Base, b: Base) -> None:
    for one in (a, b):
        if one.checkpoint.quantization_method is not None:
            raise InputError(
                f"{one.name}: it is quantized ({one.checkpoint.quantization_method}), and the rounding of its weights "
                "would hide an edit. Give the plain weights."
            )
    if a.config.model_type != b.config.model_type:
        raise InputError(
            f"{b.name}: it is of the architecture {b.config.model_type}, and {a.name} is of {a.config.model_type}. "
            "Give two checkpoints of one architecture."
        )
    first, second = (
        {key: value for key, value in base.checkpoint.config.items() if key not in _NOT_COMPARED} for base in (a, b)
    )
    differing = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    if differing:
        logger.warning(
            "%s: entries of its config.json differ from those of %s, and no edit holds them: %s.",
            b.name,
            a.name,
            ", ".join(differing),
        )


def _writers(a: Base, difference: CheckpointDifference, added: set[str], *, with_embedding: bool) -> list[Writer]:
    """The output projections whose tensors differ, after the numerical check that their fold edits their outputs.

    `added` are the tensors that only B has, and that are not zero. The embedding is one of them unless its head has the
    same weight in both.
    """
    differing = added | difference.tensors_changed.keys()
    missing = {*difference.tensors_only_in_a, *difference.tensors_of_other_form}
    targets = [Target(layer, component) for component in COMPONENTS for layer in layers_with(a.skeleton, component)]
    if with_embedding:
        targets.append(EMBEDDING)
    layout = stored_layout(a.skeleton, a.checkpoint)
    found = []
    for projection in a.output_projections(sorted(targets)):
        writer = _writer(projection, layout, added)
        if differing.intersection(writer.tensors) and not missing.intersection(writer.tensors):
            found.append((projection, writer))
    check_fold(a.skeleton, [projection for projection, _ in found])
    return [writer for _, writer in found]


def _writer(projection: OutputProjection, layout: StoredLayout, added: Iterable[str]) -> Writer:
    weights = tuple(layout.find(weight.name, weight.output_dim) for weight in projection.weights)
    biases = tuple(layout.find(weight.bias, -1) for weight in projection.weights if weight.bias is not None)
    missing = [weight.bias_name for weight in projection.weights if weight.bias is None and weight.bias_name]
    return Writer(
        target=projection.target,
        size=projection.size,
        weights=weights,
        biases=biases,
        new_biases=tuple(name for name in map(layout.new_bias_name, missing if added else ()) if name in added),
        is_mixture=len(weights) > 1 or any(weight.experts for weight in projection.weights),
    )


def _untied_head(a: Base, b: Base, difference: CheckpointDifference) -> set[str]:
    """The name of a head that only B stores, as the embedding that A's head shares; empty if there is none."""
    head = tied_head(a.skeleton)
    if head is None or head not in difference.tensors_only_in_b:
        return set()
    layout = stored_layout(a.skeleton, a.checkpoint)
    (projection,) = a.output_projections([EMBEDDING])
    (part,) = layout.find(projection.weights[0].name, -1).parts
    return {head} if b.checkpoint.read(head).equal(a.checkpoint.read(part)) else set()


def _zero_biases(b: Checkpoint, difference: CheckpointDifference) -> set[str]:
    """The biases that only B has, and that are zero: those of maps that share a switch with an edited one."""
    added = [name for name in difference.tensors_only_in_b if name.endswith(".bias")]
    return {name for name in added if not b.read(name).any()}


def _others(difference: CheckpointDifference, known: set[str]) -> dict[str, float | None]:
    changed = {name: change.relative for name, change in difference.tensors_changed.items()}
    one_sided = (*difference.tensors_only_in_a, *difference.tensors_only_in_b, *difference.tensors_of_other_form)
    return {name: change for name, change in {**changed, **dict.fromkeys(one_sided)}.items() if name not in known}


def _provenance(a: Base, b: Base) -> dict[str, Any]:
    named = [{"name": one.name, "revision": one.revision, "weights": dict(one.weight_digests)} for one in (a, b)]
    return {"base": named[0], "extracted": {"checkpoint": named[1]}, "versions": library_versions()}
