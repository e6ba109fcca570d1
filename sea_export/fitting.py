"""From demonstrations to an edit: capture, spectra, truncation."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.activations import capture_batches
from sea_export.architecture import decoder_layers, find_writers, layers_with
from sea_export.demonstrations import Demonstration, TokenizedDemonstration, demonstrations_digest, tokenize
from sea_export.edit import COMPONENTS, SpectralEdit, Target, build_layer_edit
from sea_export.errors import InputError
from sea_export.features import FeatureFunction
from sea_export.options import CaptureOptions, EditOptions, FitOptions
from sea_export.spectral import LayerSpectrum, SpectrumFitter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LayerChoice",
    "edit_from_spectra",
    "fit",
    "fit_edit",
    "fit_spectra",
    "no_op_warning",
    "passed_over_note",
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
    listed: bool = field(default=False, compare=False)
    """Whether every layer was asked for by its number."""

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
        return cls(tuple(sorted(chosen)), None, listed=True)


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    *,
    layers: str = FitOptions.layers,
    target: str = FitOptions.target,
    center: str = FitOptions.center,
    feature_function: str = FitOptions.feature_function,
    length_scale: float = FitOptions.length_scale,
    template: str = FitOptions.template,
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
        model: a causal language model, as `AutoModelForCausalLM` loads it.
        tokenizer: its tokenizer.
        demonstrations: at least two.
        layers: `all`, `last:K`, `first:K`, `signature:K`, or a list such as `10-20,25`.
        target: `mlp`, `attention` or `both`.
        center: `off`, `affine`, `linear`, or `auto`: `linear`, but `off` for a non-linear edit.
        feature_function: φ of a non-linear edit: `identity`, `squared-exponential`, `tanh` or `elu`.
        length_scale: σ of the squared exponential.
        template: `qa`, `chat` or `none`.
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
) -> SpectralEdit:
    """`fit`, with its options as one object."""
    spectra = fit_spectra(model, tokenizer, demonstrations, options, progress)
    provenance = {
        "base": {"name": _public_name(model.config._name_or_path)},
        "demonstrations": {
            "count": len(demonstrations),
            "sha256": demonstrations_digest(demonstrations),
        },
        "options": asdict(options),
        "versions": library_versions(),
    }
    return edit_from_spectra(spectra, options, provenance)


def fit_spectra(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
) -> dict[Target, LayerSpectrum]:
    """The spectra of all layers that `options.layers` names (all of them, for `signature:K`).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        demonstrations: at least two.
        options: only `edit` is not looked at.
        progress: told the number of demonstrations that each batch has finished.

    Raises:
        InputError: see `fit`.
    """
    if len(demonstrations) < 2:
        raise InputError(f"{len(demonstrations)} demonstrations: a fit needs at least 2")
    targets = choose_targets(model, options)
    find_writers(model, targets)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokenized = tokenize(demonstrations, tokenizer, template=options.template, context_length=context)
    if options.capture.neutral == "generated" and context is not None:
        _check_room(tokenized, options.capture.neutral_tokens, context)
    feature = FeatureFunction(options.feature_function, options.length_scale)
    fitters = {target: SpectrumFitter(options.center, feature) for target in targets}
    for _, batch in capture_batches(model, tokenized, targets, options.capture, progress):
        for target, activations in batch.items():
            try:
                fitters[target].update(activations)
            except InputError as error:
                raise InputError(f"layer {target.layer}, {target.component}: {error}") from error
    return {target: fitter.spectrum() for target, fitter in fitters.items()}


def _check_room(tokenized: Sequence[TokenizedDemonstration], new_tokens: int, context: int) -> None:
    """Raises InputError if a prompt and the continuation to be generated are longer than the model's context."""
    for one in tokenized:
        if len(one.prompt) + new_tokens > context:
            raise InputError(
                f"{one.source}: its prompt has {len(one.prompt)} tokens and leaves no room for a continuation of "
                f"{new_tokens} in a context of {context}. Lower --neutral-tokens, shorten the prompt or remove the row."
            )


def choose_targets(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
    """The places whose activations `options.layers` and `options.target` ask for.

    In a hybrid model some layers have no attention block, or no MLP. Where layers were asked for as a range of the
    model (`all`, `last:K`, `first:K`, `signature:K`), those are passed over; a layer that was listed is not.

    Raises:
        InputError: no layer of the range has such a block, or the layers are not understood.
    """
    wanted = _wanted_places(model, options)
    if LayerChoice.parse(options.layers, len(decoder_layers(model)[1])).listed:
        return wanted
    found = tuple(target for target in wanted if target.layer in layers_with(model, target.component))
    if not found:
        raise InputError(
            f"none of the layers {options.layers} of {type(model).__name__} has what --target {options.target} edits: "
            "choose others"
        )
    return found


def passed_over_note(model: PreTrainedModel, options: FitOptions) -> str | None:
    """What to tell the user about layers that `choose_targets` passes over, or None if there are none."""
    passed = sorted(set(_wanted_places(model, options)) - set(choose_targets(model, options)))
    if not passed:
        return None
    places = ", ".join(map(str, passed))
    return f"layers without the block that is to be edited are passed over: {places}"


def _wanted_places(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
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
    if by_signature := re.fullmatch(r"signature:(\d+)", options.layers):
        signatures = {
            layer: sum(spectrum.signature for target, spectrum in spectra.items() if target.layer == layer)
            for layer in layers
        }
        layers = sorted(layers, key=lambda layer: signatures[layer], reverse=True)
        layers = layers[: int(by_signature[1])]
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
