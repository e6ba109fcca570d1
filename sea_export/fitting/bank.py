"""Statistics of all layers for every method, and every way to read and to centre activations, for fitting many edits.

They are collected once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sea_export.capture.activations import Activations
from sea_export.capture.in_memory import capture_batches
from sea_export.capture.layerwise import layer_source
from sea_export.demonstrations.demonstration import Demonstration, demonstrations_record
from sea_export.demonstrations.tokenize import tokenize
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.collect import check_enough
from sea_export.fitting.collect_gradients import curvature_items, margin_statistics, neutral_statistics
from sea_export.fitting.edit_method import FinishedStatistics, activation_method, edit_method, errors_of
from sea_export.fitting.fit import Fit, computation_record
from sea_export.fitting.gradient_statistics import GradientStatistics, MarginStatistics, NeutralStatistics
from sea_export.model.architecture import context_length, decoder_layers, find_output_projections
from sea_export.model.layer_list import LayerChoice
from sea_export.model.targets import COMPONENTS, Target
from sea_export.options import FitOptions
from sea_export.versions import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["StatisticsBank"]


class StatisticsBank:
    """What edits with any method, layers, target, site, centring and edit options are made from, without another pass.

    Each site is captured in one pass over the demonstrations, and its activations of all layers are kept in memory.
    Statistics are finished when an edit first needs them, and kept. Gradients are of no site.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        demonstrations: Sequence[Demonstration],
        options: FitOptions,
        *,
        sites: Collection[str],
        targets: Collection[str],
        gradients: FitOptions | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Captures activations of all layers, and collects gradients.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.
            demonstrations: at least two.
            options: `template` and `capture` are used, the latter without its site.
            sites: where activations are read; empty if no method reads any.
            targets: what edits may be of: `mlp`, `attention` or `both`.
            gradients: the method and the form that need most of all gradient methods and forms to come; None for none.
            progress: told the number of demonstrations that each batch has finished; each counts once a site, and once
                for gradients.

        Raises:
            InputError: see `sea_export.fitting.collect.collect_statistics`.
        """
        check_enough(demonstrations)
        self.layer_count = len(decoder_layers(model)[1])
        components = [one for one in COMPONENTS if one in targets or "both" in targets]
        read_targets = [Target(layer, one) for layer in range(self.layer_count) for one in components]
        projections = find_output_projections(model, read_targets)
        context = context_length(model.config)
        tokenized = tokenize(demonstrations, tokenizer, template=options.template, context_length=context)
        self._activations: dict[tuple[str, Target], list[Activations]] = {}
        self._finished: dict[tuple[Target, FitOptions], FinishedStatistics] = {}
        for site in sites:
            # At the residual site both components of a layer read the same vector.
            first = [one for one in projections if one.target.component == components[0]]
            read = projections if site == "target" else first
            capture = replace(options.capture, site=site)
            for _, batch in capture_batches(model, tokenized, read, capture, progress):
                for target, activations in batch.items():
                    kinds = (activations.neutral, activations.positive, activations.negative)
                    on_cpu = Activations(*(rows.cpu() for rows in kinds))
                    self._activations.setdefault((site, target), []).append(on_cpu)
        self._residual_component = components[0]
        self._margins: dict[Target, MarginStatistics] = {}
        self._neutrals: dict[Target, NeutralStatistics] = {}
        if gradients is not None:
            self._margins = margin_statistics(model, tokenized, projections, gradients, progress)
            if _needs(gradients, Statistic.NEUTRAL_GRADIENTS):
                texts = curvature_items(model, tokenizer)
                self._neutrals = neutral_statistics(model, texts, projections, gradients)
        self._provenance = {
            "demonstrations": demonstrations_record(demonstrations),
            "computation": computation_record(layer_source(model)),
            "versions": library_versions(),
        }

    def fit(self, options: FitOptions) -> Fit:
        """What `sea_export.fitting.fit.fit_any_strength` gives for these options.

        Args:
            options: the method, the form, the site and the target must be among those of the bank; `template` and the
                rest of `capture` must be the bank's own.
        """
        choice = LayerChoice.parse(options.layers, self.layer_count)
        components = COMPONENTS if options.target == "both" else (options.target,)
        targets = [Target(layer, component) for layer in choice.candidates for component in components]
        statistics = {target: self._statistics(target, options) for target in targets}
        return Fit(statistics, options, {**self._provenance, "options": asdict(options)})

    def _statistics(self, target: Target, options: FitOptions) -> FinishedStatistics:
        if _needs(options, Statistic.MARGIN_GRADIENTS):
            natural = _needs(options, Statistic.NEUTRAL_GRADIENTS)
            return GradientStatistics.of(self._margins[target], self._neutrals[target] if natural else None)
        site = options.capture.site
        read = target if site == "target" else Target(target.layer, self._residual_component)
        method = activation_method(options.method)
        collected = method.statistics_options(options)
        if (read, collected) not in self._finished:
            accumulator = method.accumulator(collected)
            for batch in self._activations[site, read]:
                with errors_of(read):
                    accumulator.update(batch)
            self._finished[read, collected] = accumulator.finish()
        return self._finished[read, collected]


def _needs(options: FitOptions, statistic: Statistic) -> bool:
    return statistic in edit_method(options.method).needed_statistics(options)
