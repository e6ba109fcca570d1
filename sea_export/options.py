"""Every option of a fit, of an export and of a run, defined once: its name, default, choices and help.

The Python API has the same words. The command line, the manifest and `reproduce` are made from these classes. Nothing
here is heavy to import, so that `--help` is instant. Wrong values are refused on construction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields
from typing import Any

from sea_export.errors import InputError

__all__ = [
    "CaptureOptions",
    "DemonstrationOptions",
    "EditOptions",
    "ExportOptions",
    "FitOptions",
    "RunOptions",
    "check_choice",
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
DTYPES = ("auto", "float32", "bfloat16", "float16")

FORMATS = {
    "merged": "sea_export.export.merged.merged_format",
    "adapter": "sea_export.export.adapter.adapter_format",
    "custom-code": "sea_export.export.custom_code.code_format",
}
"""The registry of export formats: name -> the module whose FORMAT is the `ExportFormat` of that name."""


def _option(default: Any, help: str, choices: Collection[str] | None = None, *, format: str | None = None) -> Any:
    """A field that is an option of the command line; `format` is the export format that alone has it."""
    return field(default=default, metadata={"help": help, "choices": choices and tuple(choices), "format": format})


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError, naming the command-line option, unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"--{option}: {value!r} is no choice. Choose one of {', '.join(choices)}.")


def check_length_scale(value: float) -> None:
    """Raises InputError unless a length scale is one that float32 arithmetic can use."""
    if not 1e-6 <= value <= 1e6:
        raise InputError(f"--length-scale: {value} is out of range. Give a number between 1e-6 and 1e6.")


def _check_choices(options: Any) -> None:
    declared: tuple[Field[Any], ...] = fields(options)
    for item in declared:
        value = getattr(options, item.name)
        if item.metadata.get("choices") and value is not None:
            check_choice(item.name.replace("_", "-"), value, item.metadata["choices"])


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
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is too low. Give at least 1.")


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
                raise InputError(
                    f"--{name.replace('_', '-')}: {value} is no share. Give a number above 0 and at most 1."
                )
        for name in ("positive_rank", "negative_rank"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"--{name.replace('_', '-')}: {value} is negative. Give 0 or more.")
        if not abs(self.strength) < float("inf"):
            raise InputError(f"--strength: {self.strength} is not finite. Give a finite number.")

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
                f"--center: {self.center} goes with --feature-function identity only, because the mean of activations "
                f"is not that of their features ({self.feature_function}). Choose --center off."
            )
        if self.sequential:
            self._check_sequential()

    def _check_sequential(self) -> None:
        if self.layers.startswith("signature:"):
            raise InputError(
                f"--sequential: it has to know the layers beforehand, and --layers {self.layers} chooses them by what "
                "all of them give. Name the layers."
            )
        if self.capture.site == "residual":
            raise InputError(
                "--sequential: it edits a layer before its block's output exists, which --site residual reads. Choose "
                "--site target."
            )
        if self.edit.normalization == "sequence":
            raise InputError(
                "--sequential: it applies edits in batches, and with --normalization sequence an edit "
                "depends on the batch. Choose another normalization."
            )


@dataclass(frozen=True)
class ExportOptions:
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
        format="adapter",
    )
    overwrite: bool = _option(False, "Replace a checkpoint that sea-export wrote before.")
    force: bool = _option(False, "Accept a base other than the one that the edit was fitted on.")
    verify: bool = _option(True, "Verify before the output appears: what fails is not kept.")

    def __post_init__(self) -> None:
        _check_choices(self)
        for item in fields(self):
            format, value = item.metadata["format"], getattr(self, item.name)
            if format not in (None, self.format) and value != item.default:
                option = item.name.replace("_", "-")
                raise InputError(f"--{option}: it goes with --format {format}, not with {self.format}. Leave it out.")
        if self.adapter_rank is not None and self.adapter_rank < 1:
            raise InputError(f"--adapter-rank: {self.adapter_rank} is too low. Give at least 1.")


@dataclass(frozen=True)
class RunOptions:
    """How the base is found, loaded and computed with."""

    revision: str | None = _option(None, "Revision of the model on the Hub.")
    layerwise: bool | None = _option(
        None, "Have one decoder layer at a time in memory, or all of them; by default all if they fit."
    )
    device_map: str | None = _option(
        None, "Spread the model over all GPUs, and over what else there is (accelerate).", ("auto",)
    )
    dequantize: bool = _option(False, "Make plain weights of a quantized model's.")
    dtype: str = _option(
        "auto",
        "What to compute in; auto: as stored. A .gguf or dequantized model is written out in it (auto: bfloat16).",
        DTYPES,
    )
    device: str = _option("auto", "cpu, cuda, cuda:1, mps; auto: a GPU if any.")
    trust_remote_code: bool = _option(False, "Run code that comes with the model.")

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.device_map is not None and self.layerwise:
            raise InputError(
                "--device-map: it has all layers in memory, and --layerwise has one at a time. Choose one of them."
            )


@dataclass(frozen=True)
class DemonstrationOptions:
    """Where demonstrations come from, and which of them are used."""

    demonstrations: str = _option(
        "builtin:truthfulness",
        "JSONL, JSON, CSV or Parquet file, Hub dataset id, builtin:truthfulness or builtin:fairness.",
    )
    prompt_field: str | None = _option(None, "Column of the prompt.")
    positive_field: str | None = _option(None, "Column of the good completion.")
    negative_field: str | None = _option(None, "Column of the bad completion.")
    limit: int | None = _option(None, "Use a seeded sample of that many demonstrations.")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise InputError(f"--limit: {self.limit} is too low. Give at least 2.")


def why_unfoldable(feature_function: str, normalization: str) -> str | None:
    """Why no weight can hold an edit with these settings, and the nearest settings that one can; None if it can."""
    if feature_function != "identity":
        return (
            f"--feature-function: {feature_function} makes the edit non-linear, and no weight can hold it. Choose "
            "--format custom-code, or --feature-function identity."
        )
    if normalization in RUN_TIME_NORMALIZATIONS:
        return (
            f"--normalization: {normalization} depends on the activations at run time, and no weight can hold it. "
            "Choose --format custom-code, or --normalization calibrated."
        )
    return None
