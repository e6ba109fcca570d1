"""Spectra of all layers for every way to read and to centre activations, captured once, for fitting many edits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sea_export.capture.activations import Activations
from sea_export.capture.in_memory import capture_batches
from sea_export.demonstrations.demonstration import Demonstration, demonstrations_record
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.features import FeatureFunction
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.fitting.collect import source_of
from sea_export.fitting.fit import computation_record, edit_from_statistics
from sea_export.fitting.layer_choice import LayerChoice
from sea_export.fitting.spectrum import LayerSpectrum, SpectrumFitter
from sea_export.model.architecture import decoder_layers, find_output_projections
from sea_export.model.targets import COMPONENTS, Target
from sea_export.options import FitOptions
from sea_export.versions import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["StatisticsBank"]


class StatisticsBank:
    """What edits with any layers, target, site, centring and truncation are fitted from, without a forward pass.

    A site is captured in one pass over the demonstrations, whose activations of all layers are kept in memory. A
    spectrum is taken when an edit first needs it, and kept.
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
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Captures activations of all layers.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.
            demonstrations: at least two.
            options: template, feature function and capture options, but for the site; nothing else is looked at.
            sites: where activations are read.
            targets: what edits may be of: `mlp`, `attention` or `both`.
            progress: told the number of demonstrations that each batch has finished; each counts once a site.

        Raises:
            InputError: see `sea_export.fitting.collect.collect_statistics`.
        """
        if len(demonstrations) < 2:
            raise InputError(f"{len(demonstrations)} demonstrations: a fit needs at least 2")
        self.layer_count = len(decoder_layers(model)[1])
        components = [one for one in COMPONENTS if one in targets or "both" in targets]
        places = [Target(layer, component) for layer in range(self.layer_count) for component in components]
        find_output_projections(model, places)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        tokenized = tokenize(demonstrations, tokenizer, template=options.template, context_length=context)
        self._feature = FeatureFunction(options.feature_function, options.length_scale)
        self._activations: dict[tuple[str, Target], list[Activations]] = {}
        self._spectra: dict[tuple[str, Target, str], LayerSpectrum] = {}
        for site in sites:
            # At the residual site both components of a layer read the same vector.
            read = places if site == "target" else [place for place in places if place.component == components[0]]
            capture = replace(options.capture, site=site)
            for _, batch in capture_batches(model, tokenized, read, capture, progress):
                for place, activations in batch.items():
                    kinds = (activations.neutral, activations.positive, activations.negative)
                    on_cpu = Activations(*(rows.cpu() for rows in kinds))
                    self._activations.setdefault((site, place), []).append(on_cpu)
        self._residual_component = components[0]
        self._provenance = {
            "demonstrations": demonstrations_record(demonstrations),
            "computation": computation_record(source_of(model)),
            "versions": library_versions(),
        }

    def edit(self, options: FitOptions) -> SpectralEdit:
        """The edit that `sea_export.fitting.fit.fit_edit` gives for these options.

        Args:
            options: of a site and a target that were asked for; template, feature function and capture as
                they were.

        Raises:
            InputError: see `sea_export.fitting.fit.edit_from_statistics`.
        """
        choice = LayerChoice.parse(options.layers, self.layer_count)
        components = COMPONENTS if options.target == "both" else (options.target,)
        places = [Target(layer, component) for layer in choice.candidates for component in components]
        spectra = {place: self._spectrum(options.capture.site, place, options.center) for place in places}
        return edit_from_statistics(spectra, options, {**self._provenance, "options": asdict(options)})

    def _spectrum(self, site: str, place: Target, center: str) -> LayerSpectrum:
        read = place if site == "target" else Target(place.layer, self._residual_component)
        # Centred spectra are the same for an `affine` and for a `linear` edit, but for the reader of the latter.
        kind = "off" if center == "off" else "linear"
        key = (site, read, kind)
        if key not in self._spectra:
            fitter = SpectrumFitter(kind, self._feature)
            try:
                for batch in self._activations[site, read]:
                    fitter.update(batch)
            except InputError as error:
                raise InputError(f"layer {read.layer}, {read.component}: {error}") from error
            self._spectra[key] = fitter.finish()
        spectrum = self._spectra[key]
        return replace(spectrum, center="affine", reader=None, reader_error=None) if center == "affine" else spectrum
