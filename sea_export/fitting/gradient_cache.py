"""Statistics of gradients in a cache directory, so that another fit with the same gradients runs no pass.

What decides them is the model, and the demonstrations as tokens, or the neutral text and the seed of its labels. A part
holds the statistics of some targets. Statistics for linear maps serve a fit of constants as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from sea_export.capture.cache import tokens_digest
from sea_export.capture.cache_folder import CacheFolder, reading_part
from sea_export.capture.layerwise import LayerSource
from sea_export.demonstrations.neutral_text import curvature_questions
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.fitting.collect_gradients import (
    curvature_items,
    curvature_prose,
    margin_statistics,
    neutral_statistics,
)
from sea_export.fitting.gradient_statistics import FOLDS, MarginStatistics, NeutralStatistics
from sea_export.fitting.linear_edit import OutputMoments
from sea_export.model.architecture import OutputProjection
from sea_export.model.safetensors_header import read_header
from sea_export.model.targets import Target
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["GradientCache"]

_FORMAT_VERSION = 1
Statistics = TypeVar("Statistics", MarginStatistics, NeutralStatistics)


class GradientCache:
    """Collects statistics of gradients, but for those that a cache directory has."""

    def __init__(self, directory: Path | None, model: Mapping[str, Any]) -> None:
        """Reads nothing yet.

        Args:
            directory: the cache directory; None to keep nothing.
            model: what identifies the model and the dtype in which it computes.
        """
        self._directory, self._model = directory, dict(model)

    @classmethod
    def of(cls, directory: Path | str | None, source: LayerSource) -> GradientCache:
        """The cache for a model.

        Args:
            directory: the cache directory; None to keep nothing, for which the model need not be identified.
            source: the model.
        """
        return cls(None, {}) if directory is None else cls(Path(directory), source.identity())

    def margins(
        self,
        model: PreTrainedModel,
        demonstrations: Sequence[TokenizedDemonstration],
        projections: Sequence[OutputProjection],
        options: FitOptions,
        progress: Callable[[int], None] | None = None,
    ) -> dict[Target, MarginStatistics]:
        """See `sea_export.fitting.collect_gradients.margin_statistics`.

        Args:
            model: see there.
            demonstrations: see there.
            projections: see there.
            options: see there.
            progress: see there. Demonstrations whose gradients are in the cache are finished at once.

        Raises:
            InputError: see there; or the directory cannot be used, or a part in it is damaged.
            SeaExportError: a part cannot be written.
        """
        key = {"gradients of": "demonstrations", "demonstrations": tokens_digest(demonstrations)}

        def collect(lacking: Sequence[OutputProjection]) -> dict[Target, MarginStatistics]:
            return margin_statistics(model, demonstrations, lacking, options, progress)

        def nothing() -> None:
            if progress is not None:
                progress(len(demonstrations))

        return self._filled(MarginStatistics, key, projections, options, collect, nothing)

    def neutrals(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        projections: Sequence[OutputProjection],
        options: FitOptions,
    ) -> dict[Target, NeutralStatistics]:
        """See `sea_export.fitting.collect_gradients.neutral_statistics`.

        Args:
            model: see there.
            tokenizer: its tokenizer.
            projections: see there.
            options: see there.

        Raises:
            InputError: see there; or the directory cannot be used, or a part in it is damaged.
            SeaExportError: a part cannot be written.
        """
        prose = [[one.prompt, *one.completions] for one in curvature_prose(tokenizer)]
        # The model's answers to the questions are not known yet, but they follow from the model.
        text = json.dumps([prose, prompt_tokens(tokenizer, curvature_questions())])
        key = {
            "gradients of": "neutral text",
            "text": hashlib.sha256(text.encode()).hexdigest(),
            "seed": options.capture.seed,
        }

        def collect(lacking: Sequence[OutputProjection]) -> dict[Target, NeutralStatistics]:
            return neutral_statistics(model, curvature_items(model, tokenizer), lacking, options)

        return self._filled(NeutralStatistics, key, projections, options, collect, lambda: None)

    def _filled(
        self,
        kind: type[Statistics],
        key: Mapping[str, Any],
        projections: Sequence[OutputProjection],
        options: FitOptions,
        collect: Callable[[Sequence[OutputProjection]], dict[Target, Statistics]],
        nothing: Callable[[], None],
    ) -> dict[Target, Statistics]:
        """The statistics of all targets: from the cache, or collected and then kept. Calls `nothing` for none to do."""
        if self._directory is None:
            return collect(projections)
        maps = options.form != "bias"
        key = {"format_version": _FORMAT_VERSION, "model": self._model, **key}
        own = CacheFolder(self._directory, {**key, "maps": maps})
        fuller = None if maps else CacheFolder.existing(self._directory, {**key, "maps": True})
        found: dict[Target, Statistics] = {}
        for folder, with_maps in ((own, maps), (fuller, True)):
            for file in [] if folder is None else folder.parts:
                wanted = {one.target for one in projections} - found.keys()
                found.update(_read_part(kind, file, wanted, projections[0].size, with_maps=with_maps))
        lacking = [one for one in projections if one.target not in found]
        if lacking:
            collected = collect(lacking)
            own.add(_tensors(collected), "statistics of gradients")
            found.update(collected)
        else:
            nothing()
        return {one.target: found[one.target] if maps else _without_map(found[one.target]) for one in projections}


def _without_map(statistics: Statistics) -> Statistics:
    vectors, _ = _NAMES[type(statistics)]
    return type(statistics)(getattr(statistics, vectors), None, statistics.moments)


def _tensors(statistics: Mapping[Target, MarginStatistics] | Mapping[Target, NeutralStatistics]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {}
    for target, one in statistics.items():
        vectors, matrix = _NAMES[type(one)]
        tensors[f"{target} {vectors}"] = getattr(one, vectors)
        tensors[f"{target} {matrix}"] = getattr(one, matrix)
        for name in _MOMENTS:
            tensors[f"{target} {name}"] = getattr(one.moments, name)
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


_NAMES: Mapping[type, tuple[str, str]] = {
    MarginStatistics: ("gradient", "map_gradient"),
    NeutralStatistics: ("samples", "curvature"),
}
"""Of either kind of statistics: its vectors, and its matrix, which it has only for maps."""
_MOMENTS = ("products", "sums", "counts")


def _read_part(
    kind: type[Statistics], file: Path, wanted: Set[Target], size: int, *, with_maps: bool
) -> dict[Target, Statistics]:
    """The statistics of those wanted targets that a part has."""
    vectors, matrix = _NAMES[kind]
    shapes: dict[str, tuple[int, ...]] = {
        "products": (FOLDS, size, size),
        "sums": (FOLDS, size),
        "counts": (FOLDS,),
        **({matrix: (size, size)} if with_maps else {}),
    }
    with reading_part(file):
        names: dict[Target, set[str]] = {}
        for stored in read_header(file).tensors:
            target, _, name = stored.name.partition(" ")
            shape = stored.shape if name in shapes else stored.shape[-1:]
            if stored.dtype != torch.float64 or shape != shapes.get(name, (size,)):
                raise ValueError(f"{stored.name} is not of the dtype or the shape of such statistics")
            names.setdefault(Target.parse(target), set()).add(name)
        if not names or any(own != {vectors, *shapes} for own in names.values()):
            raise ValueError("it has not all statistics of its targets")
        with safe_open(file, framework="pt") as opened:
            return {
                target: _statistics(kind, {name: opened.get_tensor(f"{target} {name}") for name in names[target]})
                for target in wanted & names.keys()
            }


def _statistics(kind: type[Statistics], tensors: Mapping[str, Tensor]) -> Statistics:
    vectors, matrix = _NAMES[kind]
    moments = OutputMoments(*(tensors[name] for name in _MOMENTS))
    return kind(tensors[vectors], tensors.get(matrix), moments)
