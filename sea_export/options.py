"""Every option of a fit and of a save, defined once: its name, default, choices and help.

The Python API has the same words, and the command line is made from these classes. Nothing here is heavy to
import, so that `--help` is instant. Wrong values are refused on construction.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

from sea_export.errors import InputError

__all__ = [
    "CaptureOptions",
    "EditOptions",
    "FitOptions",
    "SaveOptions",
    "check_choice",
    "check_format",
    "check_length_scale",
    "why_unfoldable",
]

TARGETS = ("mlp", "attention", "both")
CENTERS = ("off", "affine", "linear")
TEMPLATES = ("qa", "chat", "none")
SITES = ("target", "residual")
POSITIONS = ("last", "mean", "random")
NEUTRALS = ("prompt", "generated")
PROJECTIONS = ("both", "positive", "negative", "reversed")
RUN_TIME_NORMALIZATIONS = ("token", "sequence")
NORMALIZATIONS = ("none", "average", "calibrated", *RUN_TIME_NORMALIZATIONS)
FEATURE_FUNCTIONS = ("identity", "squared-exponential", "tanh", "elu")
FORMATS = ("merged", "adapter", "custom-code")


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises InputError, naming the command-line option, unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"--{option} is {value!r}: choose one of {', '.join(choices)}")


def check_length_scale(value: float) -> None:
    """Raises InputError unless a length scale is one that float32 arithmetic can use."""
    if not 1e-6 <= value <= 1e6:
        raise InputError(f"--length-scale is {value}: it must be between 1e-6 and 1e6")


def _check_choices(options: Any) -> None:
    declared: tuple[Field[Any], ...] = fields(options)
    for item in declared:
        if item.metadata.get("choices"):
            check_choice(item.name.replace("_", "-"), getattr(options, item.name), item.metadata["choices"])


@dataclass(frozen=True)
class CaptureOptions:
    """Which activations are read, and how."""

    site: str = _option(
        "target", "Read the very output that is edited, or the decoder block's output (residual).", SITES
    )
    position: str = _option(
        "last", "Read the last token, the mean over the span, or one random token of it.", POSITIONS
    )
    neutral: str = _option(
        "prompt", "Neutral activations: of the prompt, or of the model's own greedy continuation of it.", NEUTRALS
    )
    neutral_tokens: int = _option(20, "Length in tokens of the continuation that --neutral generated makes.")
    batch_tokens: int = _option(2048, "About how many tokens a forward pass computes.")
    seed: int = _option(0, "Seed of everything random: --position random and --limit.")

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("neutral_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True)
class EditOptions:
    """How a spectrum becomes an edit. Changing any of these never needs another forward pass."""

    explained_variance: float = _option(
        0.95, "Share of the squared spectrum that the kept and the dropped directions explain, in (0, 1]."
    )
    positive_variance: float | None = _option(None, "The share for the kept directions alone.")
    negative_variance: float | None = _option(None, "The share for the dropped directions alone.")
    positive_rank: int | None = _option(None, "Number of kept directions, instead of a share.")
    negative_rank: int | None = _option(None, "Number of dropped directions, instead of a share.")
    projections: str = _option(
        "both",
        "Which projections make the edit: M = P+ + P-, P+, P-, or both with their roles swapped.",
        PROJECTIONS,
    )
    strength: float = _option(1.0, "s in I + s (M - I): 0 edits nothing, 1 is the method.")
    normalization: str = _option(
        "none",
        "What follows M: nothing, division by 2 (by 2 to the power of --strength), per-feature scales measured on the "
        "demonstrations, or the norms of each token or (published run-time form, not causal) of each feature over all "
        "tokens.",
        NORMALIZATIONS,
    )

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("explained_variance", "positive_variance", "negative_variance"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}: it must be above 0 and at most 1")
        for name in ("positive_rank", "negative_rank"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"--{name.replace('_', '-')} is {value}: it cannot be negative")
        if not abs(self.strength) < float("inf"):
            raise InputError(f"--strength is {self.strength}: it must be a finite number")

    def variance(self, kind: str) -> float:
        """The share that holds for the `positive` or the `negative` directions."""
        own: float | None = getattr(self, f"{kind}_variance")
        return self.explained_variance if own is None else own


@dataclass(frozen=True)
class FitOptions:
    """Everything that decides a fit, besides the model and the demonstrations."""

    layers: str = _option(
        "last:60%",
        "Decoder layers to edit, counted from 0: all, last:K, first:K, signature:K (K a number or a share, 60%), or a "
        "list: 10-20,25.",
    )
    target: str = _option("mlp", "Whose output is edited: the MLP's, the attention's, or both.", TARGETS)
    center: str = _option(
        "auto",
        "Edit activations as they are (off), or about their mean, with a bias (affine) or with one more rank (linear); "
        "auto: linear, but off with a --feature-function.",
        ("auto", *CENTERS),
    )
    feature_function: str = _option(
        "identity",
        "φ of a non-linear edit: activations are mapped by it, fitted and edited, and mapped back.",
        FEATURE_FUNCTIONS,
    )
    length_scale: float = _option(1.0, "σ of --feature-function squared-exponential.")
    template: str = _option("qa", "How a prompt becomes text: 'Q: …\\nA:', the chat template, or as it is.", TEMPLATES)
    sequential: bool = _option(
        False, "Read each layer with the edits of the earlier layers applied, so that the edits agree with one another."
    )
    capture: CaptureOptions = field(default_factory=CaptureOptions)
    edit: EditOptions = field(default_factory=EditOptions)

    def __post_init__(self) -> None:
        _check_choices(self)
        check_length_scale(self.length_scale)
        if self.center == "auto":  # settled here, so that everything after, the manifest too, sees what was chosen
            object.__setattr__(self, "center", "linear" if self.feature_function == "identity" else "off")
        if self.center != "off" and self.feature_function != "identity":
            raise InputError(
                f"--center {self.center} goes with --feature-function identity only: the mean of activations is not "
                f"that of their features ({self.feature_function}); choose --center off"
            )
        if self.sequential:
            self._check_sequential()

    def _check_sequential(self) -> None:
        if self.layers.startswith("signature:"):
            raise InputError(
                f"--sequential needs to know the layers beforehand, and --layers {self.layers} chooses them by what "
                "all of them give: name the layers"
            )
        if self.capture.site == "residual":
            raise InputError(
                "--sequential edits a layer before its block's output exists, which --site residual reads: choose "
                "--site target"
            )
        if self.edit.normalization == "sequence":
            raise InputError(
                "--sequential applies edits to demonstrations in batches, and with --normalization sequence an edit "
                "depends on the batch: choose another normalization"
            )


@dataclass(frozen=True)
class SaveOptions:
    """How an edit is baked."""

    format: str = _option(
        "merged",
        "Form of the output: a plain checkpoint, a PEFT adapter beside the base, or the base with code of its own.",
        FORMATS,
    )
    adapter_rank: int | None = _option(
        None,
        "Largest rank of an adapter: plain LoRA, the nearest of that rank instead of the exact one; for servers that "
        "cap the rank or lack DoRA.",
    )
    overwrite: bool = _option(False, "Replace a checkpoint that sea-export wrote before.")
    force: bool = _option(False, "Accept a base other than the one that the edit was fitted on.")
    verify: bool = _option(True, "Verify before the output appears: what fails is not kept.")
    trust_remote_code: bool = _option(False, "Run code that comes with the base model.")
    layerwise: bool | None = None
    """Whether one layer of the base at a time is in memory; None chooses by how much memory there is."""

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.adapter_rank is not None:
            if self.format != "adapter":
                raise InputError(f"--adapter-rank goes with --format adapter, not with {self.format}")
            if self.adapter_rank < 1:
                raise InputError(f"--adapter-rank is {self.adapter_rank}: it must be at least 1")


NO_EXACT_ADAPTER = (
    "--projections positive at strength 1 keeps nothing of the identity, so that an exact adapter would be larger than "
    "the weights: choose --format merged, or --adapter-rank for an approximation"
)


def why_unfoldable(feature_function: str, normalization: str) -> str | None:
    """Why no weight can hold an edit with these settings, and the nearest settings that one can; None if it can."""
    if feature_function != "identity":
        return (
            f"--feature-function {feature_function} makes the edit non-linear, and no weight can hold it: choose "
            "--format custom-code, or --feature-function identity"
        )
    if normalization in RUN_TIME_NORMALIZATIONS:
        return (
            f"--normalization {normalization} depends on the activations at run time, and no weight can hold it: "
            "choose --format custom-code, or --normalization calibrated"
        )
    return None


def check_format(fit: FitOptions, save: SaveOptions) -> None:
    """Raises InputError if the edit that a fit would make does not fit into the format, before any work is done."""
    reason = why_unfoldable(fit.feature_function, fit.edit.normalization)
    if save.format != "custom-code" and reason:
        raise InputError(reason)
    exact_adapter = save.format == "adapter" and save.adapter_rank is None
    if exact_adapter and fit.edit.projections == "positive" and fit.edit.strength == 1:
        raise InputError(NO_EXACT_ADAPTER)
