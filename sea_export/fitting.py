"""From demonstrations to an edit: capture, spectra, truncation."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sea_export.activations import capture_batches
from sea_export.architecture import decoder_layers, find_writers
from sea_export.demonstrations import Demonstration, TokenizedDemonstration, demonstrations_digest, tokenize
from sea_export.edit import COMPONENTS, LayerEdit, SpectralEdit, Target, build_layer_edit
from sea_export.errors import InputError
from sea_export.features import FeatureFunction
from sea_export.layerwise import LayerSource, ModelInMemory, capture_by_layer
from sea_export.options import CaptureOptions, EditOptions, FitOptions
from sea_export.spectral import Activations, LayerSpectrum, SpectrumFitter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LayerChoice",
    "edit_from_spectra",
    "fit",
    "fit_edit",
    "fit_spectra",
    "no_op_warning",
    "sequence_warning",
]

# An edit that changes no layer's neutral activations by more than this share does next to nothing.
_NO_OP_CHANGE = 0.01


@dataclass(frozen=True)
class LayerChoice:
    """Which decoder layers are edited: what `--layers` says, read against the number of layers."""

    candidates: tuple[int, ...]
    """Layers to capture."""
    keep: int | None
    """How many of them to keep, by signature; None for all."""

    @classmethod
    def parse(cls, text: str, count: int) -> LayerChoice:
        """Reads `all`, `last:K`, `first:K`, `signature:K`, or ranges and lists such as `10-20,25`.

        Args:
            text: what the user wrote.
            count: the model's number of layers.

        Raises:
            InputError: it is none of these forms, or names a layer that does not exist.
        """
        everything = tuple(range(count))
        if text == "all":
            return cls(everything, None)
        if match := re.fullmatch(r"(last|first|signature):(\d+)", text):
            number = int(match[2])
            if not 1 <= number <= count:
                raise InputError(f"--layers {text}: the model has {count} layers, so choose 1 to {count}")
            if match[1] == "signature":
                return cls(everything, number)
            return cls(everything[-number:] if match[1] == "last" else everything[:number], None)
        chosen: set[int] = set()
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if not match or int(match[2] or match[1]) < int(match[1]):
                raise InputError(
                    f"--layers {text!r} is not understood at {part!r}: "
                    "write all, last:K, first:K, signature:K, or a list such as 10-20,25"
                )
            last = int(match[2] or match[1])
            if last >= count:
                raise InputError(f"--layers {text}: layer {last} does not exist, the model has layers 0 to {count - 1}")
            chosen.update(range(int(match[1]), last + 1))
        return cls(tuple(sorted(chosen)), None)


def fit(
    model: PreTrainedModel | LayerSource,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    *,
    layers: str = FitOptions.layers,
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
    progress: Callable[[int], None] | None = None,
) -> SpectralEdit:
    """Fits a spectral edit (Qiu et al. 2024, arXiv 2405.09719). The words are those of the command line.

    Args:
        model: a causal language model, as `AutoModelForCausalLM` loads it, or one of which a layer at a time is in
            memory (`sea_export.open_layerwise`).
        tokenizer: its tokenizer.
        demonstrations: at least two.
        layers: `all`, `last:K`, `first:K`, `signature:K`, or a list such as `10-20,25`.
        target: `mlp`, `attention` or `both`.
        center: `off`, `affine`, `linear`, or `auto`: `linear`, but `off` for a non-linear edit.
        feature_function: φ of a non-linear edit: `identity`, `squared-exponential`, `tanh` or `elu`.
        length_scale: σ of the squared exponential.
        template: `qa`, `chat` or `none`.
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
        progress: told the number of demonstrations that each batch has finished.

    Returns:
        The edit. Its tensors are float32, on the CPU.

    Raises:
        InputError: an option, a demonstration or the architecture does not allow the fit.
    """
    options = FitOptions(
        layers=layers,
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
    return fit_edit(model, tokenizer, demonstrations, options, progress)


def fit_edit(
    model: PreTrainedModel | LayerSource,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
) -> SpectralEdit:
    """`fit`, with its options as one object."""
    spectra = fit_spectra(model, tokenizer, demonstrations, options, progress)
    provenance = {
        "base": {"name": _public_name(_source_of(model).model.config._name_or_path)},
        "demonstrations": {
            "count": len(demonstrations),
            "sha256": demonstrations_digest(demonstrations),
        },
        "options": asdict(options),
        "versions": library_versions(),
    }
    return edit_from_spectra(spectra, options, provenance)


def fit_spectra(
    model: PreTrainedModel | LayerSource,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
) -> dict[Target, LayerSpectrum]:
    """The spectra of all layers that `options.layers` names (all of them, for `signature:K`).

    Args:
        model: see `fit`.
        tokenizer: its tokenizer.
        demonstrations: at least two.
        options: `edit` is looked at only by a sequential fit.
        progress: told the number of demonstrations that each batch has finished.

    Raises:
        InputError: see `fit`.
    """
    if len(demonstrations) < 2:
        raise InputError(f"{len(demonstrations)} demonstrations: a fit needs at least 2")
    source = _source_of(model)
    in_memory = isinstance(source, ModelInMemory)
    if options.capture.neutral == "generated" and not in_memory:
        raise InputError(
            "--neutral generated needs all layers for every token, and they are not in memory together: choose "
            "--neutral prompt"
        )
    targets = choose_targets(source.model, options)
    find_writers(source.model, targets)
    tokenized = _tokenized(source.model, tokenizer, demonstrations, options)
    fitters = _Fitters(targets, options)
    if in_memory and not options.sequential:
        for _, batch in capture_batches(source.model, tokenized, targets, options.capture, progress):
            for target, activations in batch.items():
                fitters.update(target, activations)
        return {target: fitters.spectrum(target) for target in targets}
    capture_by_layer(
        source,
        tokenized,
        targets,
        options.capture,
        fitters.settle,
        sequential=options.sequential,
        progress=progress,
    )
    return fitters.settled


class _Fitters:
    """What turns the activations of each target into its spectrum."""

    def __init__(self, targets: Sequence[Target], options: FitOptions) -> None:
        feature = FeatureFunction(options.feature_function, options.length_scale)
        self.settled: dict[Target, LayerSpectrum] = {}
        self._options = options
        self._fitters = {target: SpectrumFitter(options.center, feature) for target in targets}

    def update(self, target: Target, activations: Activations) -> None:
        try:
            self._fitters[target].update(activations)
        except InputError as error:
            raise InputError(f"layer {target.layer}, {target.component}: {error}") from error

    def spectrum(self, target: Target) -> LayerSpectrum:
        """The spectrum of what `target` was updated with, which is then forgotten."""
        return self._fitters.pop(target).spectrum()

    def settle(self, target: Target, batches: Iterable[Activations]) -> LayerEdit | None:
        """Makes the spectrum of a target, and the edit that later ones are captured with in a sequential fit."""
        for activations in batches:
            self.update(target, activations)
        self.settled[target] = self.spectrum(target)
        return build_layer_edit(self.settled[target], self._options.edit) if self._options.sequential else None


def _source_of(model: PreTrainedModel | LayerSource) -> LayerSource:
    """A model in memory is one source of layers among others."""
    return ModelInMemory(model) if isinstance(model, nn.Module) else model


def _tokenized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
) -> tuple[TokenizedDemonstration, ...]:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokenized = tokenize(demonstrations, tokenizer, template=options.template, context_length=context)
    if options.capture.neutral == "generated" and context is not None:
        _check_room(tokenized, options.capture.neutral_tokens, context)
    return tokenized


def _check_room(tokenized: Sequence[TokenizedDemonstration], new_tokens: int, context: int) -> None:
    """Raises InputError if a prompt and the continuation to be generated are longer than the model's context."""
    for one in tokenized:
        if len(one.prompt) + new_tokens > context:
            raise InputError(
                f"{one.source}: its prompt has {len(one.prompt)} tokens and leaves no room for a continuation of "
                f"{new_tokens} in a context of {context}. Lower --neutral-tokens, shorten the prompt or remove the row."
            )


def choose_targets(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
    """The places whose activations `options.layers` and `options.target` ask for."""
    choice = LayerChoice.parse(options.layers, len(decoder_layers(model)[1]))
    components = COMPONENTS if options.target == "both" else (options.target,)
    return tuple(Target(layer, component) for layer in choice.candidates for component in components)


def edit_from_spectra(
    spectra: Mapping[Target, LayerSpectrum], options: FitOptions, provenance: Mapping[str, Any] | None = None
) -> SpectralEdit:
    """Truncates spectra to an edit; for `signature:K`, of the K layers with the highest signature.

    Args:
        spectra: of all candidate layers.
        options: `layers` and `edit` are looked at.
        provenance: where the edit comes from, as plain JSON data.

    Raises:
        InputError: see `sea_export.edit.build_layer_edit`.
    """
    layers = sorted({target.layer for target in spectra})
    keep = LayerChoice.parse(options.layers, layers[-1] + 1).keep
    if keep is not None:
        signatures = {
            layer: sum(spectrum.signature for target, spectrum in spectra.items() if target.layer == layer)
            for layer in layers
        }
        layers = sorted(layers, key=lambda layer: signatures[layer], reverse=True)[:keep]
    edits = {
        target: (build_layer_edit(spectrum, options.edit),)
        for target, spectrum in sorted(spectra.items())
        if target.layer in layers
    }
    return SpectralEdit(layers=edits, provenance=dict(provenance or {}))


def no_op_warning(edit: SpectralEdit) -> str | None:
    """What to tell the user about an edit that changes next to nothing, or None for one that does something."""
    if edit.relative_change >= _NO_OP_CHANGE:
        return None
    shares = [
        float(layer.positive_values[0] ** 2 / layer.positive_values.square().sum())
        for layers in edit.layers.values()
        for layer in layers
        if layer.positive_values.numel()
    ]
    if not shares:
        return "this edit changes nothing: the demonstrations' activations are all alike, or zero"
    return (
        f"this edit changes next to nothing: at most {edit.relative_change:.2%} of any layer's activations. "
        f"The first direction alone explains up to {max(shares):.3%} of the spectrum: raise --explained-variance above "
        "that, or centre the activations (--center linear)"
    )


def sequence_warning(edit: SpectralEdit) -> str | None:
    """What to tell the user about an edit with `--normalization sequence`, or None for another."""
    if all(layer.normalization != "sequence" for layers in edit.layers.values() for layer in layers):
        return None
    return (
        "--normalization sequence takes norms over all tokens of a forward call: a token's edit depends on later "
        "tokens and on the batch, and generation with a cache differs from generation without. It reproduces "
        "published numbers; choose token or calibrated for everything else"
    )


def library_versions() -> dict[str, str]:
    """Versions of sea-export and of the libraries that decide its results."""
    names = ("sea-export", "torch", "transformers", "safetensors", "peft", "huggingface-hub")
    return {name: importlib.metadata.version(name) for name in names}


def _public_name(name: str) -> str:
    """A Hub id as it is; of a local path only the last component, so that no path is ever published."""
    return Path(name).name if os.path.exists(name) or Path(name).is_absolute() else name
