"""From demonstrations to an edit: statistics are collected, and the method makes layer edits from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.capture.layerwise import LayerSource, ModelInMemory, layer_source
from sea_export.capture.progress_callback import ProgressCallback, progress_of
from sea_export.demonstrations.demonstration import Demonstration, demonstrations_record
from sea_export.demonstrations.load import DemonstrationData, demonstrations_of
from sea_export.edit.edited_layers import EditedLayers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.fitting.collect import collect_statistics
from sea_export.fitting.distributed import ALONE, Processes
from sea_export.fitting.edit_method import FinishedStatistics, edit_method
from sea_export.model.architecture import OutputProjection
from sea_export.model.layer_list import kept_by_signature
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, EditOptions, FitOptions
from sea_export.text import dtype_name
from sea_export.versions import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Fit",
    "computation_record",
    "edit_from_statistics",
    "fit",
    "fit_any_strength",
]


def fit(
    model: PreTrainedModel | LayerSource,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: DemonstrationData,
    *,
    method: str = FitOptions.method,
    form: str = FitOptions.form,
    rank: int = FitOptions.rank,
    damping: float | None = None,
    layers: str | Sequence[int] = FitOptions.layers,
    target: str = FitOptions.target,
    center: str = FitOptions.center,
    feature_function: str = FitOptions.feature_function,
    length_scale: float = FitOptions.length_scale,
    template: str = FitOptions.template,
    sequential: bool = FitOptions.sequential,
    explained_variance: float = EditOptions.explained_variance,
    positive_variance: float | None = None,
    negative_variance: float | None = None,
    positive_rank: int | None = None,
    negative_rank: int | None = None,
    projections: str = EditOptions.projections,
    strength: float = EditOptions.strength,
    normalization: str = EditOptions.normalization,
    site: str = CaptureOptions.site,
    position: str = CaptureOptions.position,
    neutral: str = CaptureOptions.neutral,
    neutral_tokens: int = CaptureOptions.neutral_tokens,
    batch_tokens: int = CaptureOptions.batch_tokens,
    seed: int = CaptureOptions.seed,
    cache: Path | str | None = None,
    progress: ProgressCallback | None = None,
) -> SpectralEdit:
    """Fits a spectral edit (Qiu et al. 2024, arXiv 2405.09719). The words are those of the command line.

    Args:
        model: a causal language model, as `AutoModelForCausalLM` loads it, or one that has a single layer in memory
            at a time (`sea_export.open_layerwise`).
        tokenizer: its tokenizer.
        demonstrations: at least two: `Demonstration` objects; rows with prompt, positive and negative, as a list of
            mappings, a `datasets.Dataset` or a data frame; or what `load_demonstrations` reads, such as
            `builtin:truthfulness`.
        method: `spectral`, `gradient`, `natural-gradient`, `mean-difference` or `erasure`.
        form: of a gradient method: `bias`, `linear` or `low-rank`.
        rank: of `form="low-rank"`.
        damping: λ of `natural-gradient`, in units of the mean diagonal of the curvature; None for its default.
        layers: `all`, `last:K`, `first:K`, `signature:K`, a list such as `last:6,10-20,25`, or numbers of layers.
        target: `mlp`, `attention` or `both`.
        center: `off`, `affine`, `linear`, or `auto`: `linear`, but `off` for a non-linear edit.
        feature_function: φ of a non-linear edit: `identity`, `squared-exponential`, `tanh` or `elu`.
        length_scale: σ of the squared exponential.
        template: `qa`, `primer`, `chat` or `none`.
        sequential: read each layer with the edits of the earlier layers applied.
        explained_variance: share of either squared spectrum that the kept or dropped directions explain, in (0, 1].
        positive_variance: the share for the kept directions (of Ω+) alone.
        negative_variance: the share for the dropped directions (of Ω-) alone.
        positive_rank: number of directions kept, instead of a share.
        negative_rank: number of directions dropped, instead of a share.
        projections: `both`, `positive`, `negative` or `reversed`.
        strength: s in I + s (M - I).
        normalization: `none`, `average`, `calibrated`, `token` or `sequence`.
        site: `target` or `residual`: where activations are read.
        position: `last`, `mean` or `random`.
        neutral: `prompt` or `generated`.
        neutral_tokens: length of generated continuations, in tokens.
        batch_tokens: about how many tokens a forward pass computes.
        seed: seed of `position="random"`.
        cache: a directory that keeps captured activations, and statistics of gradients. A fit of layers that are in it
            already runs no pass. Its truncation, strength, normalization, centring, rank and damping may differ.
        progress: told a stage, how much of it is done, and how much there is to do.

    Returns:
        The edit. Its tensors are float32, on the CPU.

    Raises:
        InputError: an option, a demonstration or the architecture does not allow the fit.
    """
    options = FitOptions(
        method=method,
        form=form,
        rank=rank,
        damping=damping,
        layers=layers if isinstance(layers, str) else ",".join(map(str, layers)),
        target=target,
        center=center,
        feature_function=feature_function,
        length_scale=length_scale,
        template=template,
        sequential=sequential,
        capture=CaptureOptions(
            site=site,
            position=position,
            neutral=neutral,
            neutral_tokens=neutral_tokens,
            batch_tokens=batch_tokens,
            seed=seed,
        ),
        edit=EditOptions(
            explained_variance=explained_variance,
            positive_variance=positive_variance,
            negative_variance=negative_variance,
            positive_rank=positive_rank,
            negative_rank=negative_rank,
            projections=projections,
            strength=strength,
            normalization=normalization,
        ),
    )
    read = demonstrations_of(demonstrations)
    with progress_of(progress)("Reading demonstrations", len(read)) as advance:
        fitted = fit_any_strength(model, tokenizer, read, options, advance, cache=cache)
    return fitted.edit()


@dataclass(frozen=True)
class Fit:
    """A finished fit, from which edits of every strength follow."""

    statistics: Mapping[Target, FinishedStatistics]
    options: FitOptions
    provenance: Mapping[str, Any]

    def edit(self, strength: float | None = None) -> SpectralEdit:
        """The edit of a strength; None for the one in the options.

        Raises:
            InputError: see `edit_from_statistics`.
        """
        if strength is None or strength == self.options.edit.strength:
            return self._own_edit
        return self._made(strength)

    def trial_edit(self, strength: float) -> SpectralEdit:
        """The edit of a strength, but for rounding in float32; made from another one where that is quicker."""
        layers = [layer for edits in self._own_edit.layers.values() for layer in edits]
        if self.options.edit.strength == 0 or any(layer.scale is not None for layer in layers):
            return self._made(strength)
        scaled = {
            target: tuple(layer.with_strength(strength) for layer in edits)
            for target, edits in self._own_edit.layers.items()
        }
        return SpectralEdit(EditedLayers(scaled))

    @cached_property
    def _own_edit(self) -> SpectralEdit:
        return self._made(self.options.edit.strength)

    def _made(self, strength: float) -> SpectralEdit:
        options = replace(self.options, edit=replace(self.options.edit, strength=strength))
        return edit_from_statistics(self.statistics, options, {**self.provenance, "options": asdict(options)})


def fit_any_strength(
    model: PreTrainedModel | LayerSource,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
    *,
    projections: Sequence[OutputProjection] | None = None,
    cache: Path | str | None = None,
    processes: Processes = ALONE,
) -> Fit:
    """`fit` with its options as one object. Several processes may share it, and all of them get the result.

    Args:
        model: see `fit`.
        tokenizer: see `fit`.
        demonstrations: see `fit`.
        options: all options of the fit.
        progress: told the number of demonstrations that each batch has finished.
        projections: the output projections of the targets that `options` choose; they are searched for if None.
        cache: see `fit`.
        processes: those that share the demonstrations.

    Raises:
        InputError: see `fit`.
        SeaExportError: another process has ended.
    """
    statistics = collect_statistics(
        model,
        tokenizer,
        demonstrations,
        options,
        progress,
        projections=projections,
        cache=cache,
        processes=processes,
    )
    provenance = {
        "base": {"name": _public_name(layer_source(model).model.config._name_or_path)},
        "demonstrations": demonstrations_record(demonstrations),
        "computation": computation_record(layer_source(model), processes),
        "versions": library_versions(),
    }
    return Fit(statistics, options, provenance)


def edit_from_statistics(
    statistics: Mapping[Target, FinishedStatistics],
    options: FitOptions,
    provenance: Mapping[str, Any] | None = None,
) -> SpectralEdit:
    """Makes the edit of a model; for `signature:K`, of the K layers with the highest signature.

    Args:
        statistics: finished statistics of all candidate layers.
        options: those of the fit. `layers`, `center` and `edit` decide what is made from the statistics.
        provenance: where the edit comes from, as plain JSON data.

    Raises:
        InputError: see `sea_export.fitting.edit_method.EditMethod.layer_edits`.
    """
    layers = sorted({target.layer for target in statistics})
    keep = kept_by_signature(options.layers, len(layers))
    if keep is not None:
        signatures = {
            layer: sum(one.signature for target, one in statistics.items() if target.layer == layer) for layer in layers
        }
        layers = sorted(layers, key=lambda layer: signatures[layer], reverse=True)[:keep]
    kept = {target: one for target, one in sorted(statistics.items()) if target.layer in layers}
    edits = edit_method(options.method).layer_edits(kept, options)
    return SpectralEdit(EditedLayers({target: (edit,) for target, edit in edits.items()}), dict(provenance or {}))


def computation_record(source: LayerSource, processes: Processes = ALONE) -> dict[str, Any]:
    """How a fit computes, as plain JSON data: what may change the last digits of its results.

    Args:
        source: the model, or where its layers come from.
        processes: those that share the demonstrations.
    """
    return {
        "dtype": dtype_name(source.model.dtype),
        "device": source.device.type,
        "layerwise": not isinstance(source, ModelInMemory),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }


def _public_name(name: str) -> str:
    """A Hub id as it is; of a local path only the last component, so that no path is ever published."""
    return Path(name).name if os.path.exists(name) or Path(name).is_absolute() else name
