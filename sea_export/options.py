"""Every option of a fit and of an export, defined once: its name, default, choices and help.

The Python API has the same words. The command line, the manifest and `reproduce` are made from these classes. Options
of single commands stand beside the code that they are for, and are declared with the same functions. Nothing here is
heavy to import, so that `--help` is instant. Wrong values are refused on construction.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields
from typing import Any, cast

from sea_export.errors import InputError

__all__ = [
    "CaptureOptions",
    "EditOptions",
    "ExportOptions",
    "FitOptions",
    "check_choice",
    "check_length_scale",
    "check_values",
    "option",
    "option_name",
    "same_option",
    "seed_option",
]

TARGETS = ("mlp", "attention", "both")
CENTERS = ("off", "affine", "linear")
TEMPLATES = ("qa", "primer", "chat", "none")
SITES = ("target", "residual")
POSITIONS = ("last", "mean", "random")
NEUTRALS = ("prompt", "generated")
PROJECTIONS = ("both", "positive", "negative", "reversed")
RUN_TIME_NORMALIZATIONS = ("token", "sequence")
NORMALIZATIONS = ("none", "average", "calibrated", *RUN_TIME_NORMALIZATIONS)
FEATURE_FUNCTIONS = ("identity", "squared-exponential", "tanh", "elu")
FORMS = ("bias", "linear", "low-rank")
GGUF_TYPES = ("auto", "same", "Q8_0", "F16", "BF16", "F32")

_LARGEST_STRENGTH = 1e30
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

FORMATS = {
    "merged": "sea_export.export.merged.merged_format",
    "adapter": "sea_export.export.adapter.adapter_format",
    "custom-code": "sea_export.export.custom_code.code_format",
    "gguf": "sea_export.export.gguf_file.gguf_format",
    "gguf-adapter": "sea_export.export.gguf_adapter.gguf_adapter_format",
}
"""The registry of export formats: name -> the module whose FORMAT is the `ExportFormat` of that name."""

GRADIENT_METHODS = ("gradient", "natural-gradient")
"""The methods whose statistics are of gradients, which have several forms."""

METHODS = {
    "spectral": "sea_export.fitting.spectral",
    "gradient": "sea_export.fitting.gradient",
    "natural-gradient": "sea_export.fitting.natural_gradient",
    "mean-difference": "sea_export.fitting.mean_difference",
    "erasure": "sea_export.fitting.erasure",
}
"""The registry of methods: name -> the module whose METHOD is the `EditMethod` of that name."""


def option(
    default: Any,
    help: str,
    choices: Collection[str] | None = None,
    *,
    name: str | None = None,
    metavar: str | None = None,
    minimum: int | None = None,
    maximum: int | None = None,
    path: str | None = None,
    format: str | None = None,
) -> Any:
    """A field of a dataclass that is an option of the command line.

    Args:
        default: its default; `dataclasses.MISSING` for an option that must be given.
        help: its help text.
        choices: the values that it may have; None for any of its type.
        name: its name on the command line, without the leading hyphens; the name of the field if None.
        metavar: the name of its value in the help text.
        minimum: the lowest number that it may be.
        maximum: the highest number that it may be.
        path: for a path, whether it is of a `file` or a `directory`; None for either.
        format: the only export format that has it.
    """
    details = {"help": help, "choices": choices and tuple(choices), "name": name, "metavar": metavar}
    limits = {"minimum": minimum, "maximum": maximum}
    return field(default=default, metadata={**details, **limits, "path": path, "format": format})


def seed_option(help: str) -> Any:
    """The option `--seed`, a number that every library takes, also where others are added to it.

    Args:
        help: its help text.
    """
    return option(0, help, minimum=0, maximum=2**31 - 1)


def same_option(options: type, name: str) -> Any:
    """The option that another class declares as its field `name`, for a class that has the same option."""
    declared = next(item for item in fields(cast(Any, options)) if item.name == name)
    return field(default=declared.default, metadata=declared.metadata)


def option_name(item: Field[Any]) -> str:
    """The name of an option on the command line: `--explained-variance`."""
    return f"--{item.metadata['name'] or item.name.replace('_', '-')}"


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError, naming the command-line option, unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"--{option}: {value!r} is no choice. Choose one of {', '.join(choices)}.")


def check_length_scale(value: float) -> None:
    """Raises InputError unless a length scale is one that float32 arithmetic can use."""
    if not 1e-6 <= value <= 1e6:
        raise InputError(f"--length-scale: {value} is out of range. Give a number between 1e-6 and 1e6.")


def check_strength(value: float) -> None:
    """Raises InputError unless a strength is one whose products with weights are finite in float32."""
    if not abs(value) <= _LARGEST_STRENGTH:
        raise InputError(
            f"--strength: {value} is out of range. Give a number between {-_LARGEST_STRENGTH:g} and "
            f"{_LARGEST_STRENGTH:g}."
        )


def check_values(options: Any) -> None:
    """Raises InputError, naming the option, for a value that is no choice of its option, or beyond its limits."""
    for item in (one for one in fields(options) if "help" in one.metadata):
        value, choices = getattr(options, item.name), item.metadata["choices"]
        minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            if choices is not None:
                check_choice(option_name(item)[2:], one, choices)
            if minimum is not None and one < minimum:
                raise InputError(f"{option_name(item)}: {one} is too low. Give at least {minimum}.")
            if maximum is not None and one > maximum:
                raise InputError(f"{option_name(item)}: {one} is too high. Give at most {maximum}.")


@dataclass(frozen=True)
class CaptureOptions:
    """Which activations are read, and how."""

    site: str = option(
        "target", "Read the very output that is edited, or the decoder block's output (residual).", SITES
    )
    position: str = option("last", "Read the last token, the mean over the span, or one random token of it.", POSITIONS)
    neutral: str = option(
        "prompt", "Neutral activations: of the prompt, or of the model's own greedy continuation of it.", NEUTRALS
    )
    neutral_tokens: int = option(20, "Length in tokens of the continuation that --neutral generated makes.", minimum=1)
    batch_tokens: int = option(2048, "About how many tokens a forward pass computes.", minimum=1)
    seed: int = seed_option("Seed of everything random: --position random and --limit.")

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class EditOptions:
    """How a spectrum becomes an edit. Changing any of these never needs another forward pass."""

    explained_variance: float = option(
        0.95, "Share of the squared spectrum that the kept and the dropped directions explain, in (0, 1]."
    )
    positive_variance: float | None = option(None, "The share for the kept directions alone.")
    negative_variance: float | None = option(None, "The share for the dropped directions alone.")
    positive_rank: int | None = option(None, "Number of kept directions, instead of a share.", minimum=0)
    negative_rank: int | None = option(None, "Number of dropped directions, instead of a share.", minimum=0)
    projections: str = option(
        "both",
        "Which projections make the edit: M = P+ + P-, P+, P-, or both with their roles swapped.",
        PROJECTIONS,
    )
    strength: float = 1.0
    """s in I + s (M - I). Commands take it from `sea_export.effect.effect_options.EffectOptions`, or search it."""
    normalization: str = option(
        "none",
        "What follows M: nothing, division by 2 (by 2 to the power of --strength), per-feature scales measured on the "
        "demonstrations, or the norms of each token or (published run-time form, not causal) of each feature over all "
        "tokens.",
        NORMALIZATIONS,
    )

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("explained_variance", "positive_variance", "negative_variance"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(
                    f"--{name.replace('_', '-')}: {value} is no share. Give a number above 0 and at most 1."
                )
        check_strength(self.strength)

    def variance(self, kind: str) -> float:
        """The share that holds for the `positive` or the `negative` directions."""
        own: float | None = getattr(self, f"{kind}_variance")
        return self.explained_variance if own is None else own


@dataclass(frozen=True)
class FitOptions:
    """Everything that decides a fit, besides the model and the demonstrations."""

    method: str = option(
        "spectral",
        "What makes the edit: spectra of the activations, gradients of the demonstrations' margin (gradient, "
        "natural-gradient), the difference of means, or the erasure of its direction.",
        METHODS,
    )
    form: str = option(
        "bias",
        "Of a gradient method: a constant, a linear map of the output, or the map's nearest one of rank --rank.",
        FORMS,
    )
    rank: int = option(16, "Rank of --form low-rank.", minimum=1)
    damping: float | None = option(
        None,
        "λ of --method natural-gradient: how much is added to the curvature, in units of its mean diagonal; by default "
        "10 for a constant and 1 for a map.",
    )
    layers: str = option(
        "last:60%",
        "Decoder layers to edit, counted from 0: all, last:K, first:K, signature:K (K a number or a share, 60%), or a "
        "list: last:6,10-20,25.",
    )
    target: str = option("mlp", "Whose output is edited: the MLP's, the attention's, or both.", TARGETS)
    center: str = option(
        "auto",
        "Edit activations as they are (off), or about their mean, with a bias (affine) or with one more rank (linear); "
        "auto: linear, but off with a --feature-function.",
        ("auto", *CENTERS),
    )
    feature_function: str = option(
        "identity",
        "φ of a non-linear edit: activations are mapped by it, fitted and edited, and mapped back.",
        FEATURE_FUNCTIONS,
    )
    length_scale: float = option(1.0, "σ of --feature-function squared-exponential.")
    template: str = option(
        "qa",
        "How a prompt becomes text: 'Q: …\\nA:'; the same after the six answered questions of TruthfulQA; the chat "
        "template; or as it is.",
        TEMPLATES,
    )
    sequential: bool = option(
        False,
        "Read each layer with the edits of earlier layers applied, not yet rounded by a format, so that they agree.",
    )
    capture: CaptureOptions = field(default_factory=CaptureOptions)
    edit: EditOptions = field(default_factory=EditOptions)

    def __post_init__(self) -> None:
        check_values(self)
        check_length_scale(self.length_scale)
        self._check_form()
        if self.method != "spectral":
            self._check_method()
        if self.center == "auto":  # settled here, so that everything after, the manifest too, sees what was chosen
            object.__setattr__(self, "center", self._best_center())
        if self.center != "off" and self.feature_function != "identity":
            raise InputError(
                f"--center: {self.center} goes with --feature-function identity only, because the mean of activations "
                f"is not that of their features ({self.feature_function}). Choose --center off."
            )
        if self.sequential:
            self._check_sequential()

    def _best_center(self) -> str:
        if self.method == "spectral":
            return "linear" if self.feature_function == "identity" else "off"
        return "affine" if self.form == "bias" else "off"

    def _check_form(self) -> None:
        """Refuses a form that the method does not have, and a rank that the form does not have."""
        if self.form != "bias" and self.method not in GRADIENT_METHODS:
            raise InputError(
                f"--form: {self.form} goes with the gradient methods, not with {self.method}. Leave it out."
            )
        if self.rank != FitOptions.rank and self.form != "low-rank":
            raise InputError(f"--rank: it goes with --form low-rank, not with {self.form}. Leave it out.")
        if self.damping is not None and self.method != "natural-gradient":
            raise InputError(
                f"--damping: it goes with --method natural-gradient, not with {self.method}. Leave it out."
            )
        if self.damping is not None and not 0 < self.damping < float("inf"):
            raise InputError(f"--damping: {self.damping} is no damping. Give a number above 0.")

    def _check_method(self) -> None:
        """Refuses what only spectral edits have."""
        spectral = {
            "--feature-function": self.feature_function != "identity",
            "--sequential": self.sequential,
            "--normalization": self.edit.normalization != "none",
            "--projections": self.edit.projections != "both",
        }
        for option, given in spectral.items():
            if given:
                raise InputError(f"{option}: it goes with --method spectral, not with {self.method}. Leave it out.")
        if self.form == "bias" and self.center == "off" and self.method != "erasure":
            raise InputError(f"--center: off leaves nothing of a constant ({self.method}). Choose affine or linear.")
        if self.form != "bias" and self.center not in ("auto", "off"):
            raise InputError(f"--center: {self.center} goes with --form bias, not with {self.form}. Leave it out.")

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

    format: str = option(
        "merged",
        "Form of the output: a plain checkpoint, a PEFT adapter beside the base, the base with code of its own, the "
        ".gguf file that the base is, or a LoRA and a control vector that llama.cpp puts on the base.",
        FORMATS,
    )
    adapter_rank: int | None = option(
        None,
        "Largest rank of an adapter: plain LoRA, the nearest of that rank instead of the exact one; for servers that "
        "cap the rank or lack DoRA.",
        minimum=1,
        format="adapter",
    )
    adapter_padding: bool = option(
        True,
        "Fill the factors of an adapter with zeros up to one rank: some programs know one rank for all modules.",
        format="adapter",
    )
    gguf_type: str = option(
        "auto",
        "How a .gguf file stores edited weights: Q8_0 where they were quantized and as they were elsewhere (auto), as "
        "they were (same), or in this type.",
        GGUF_TYPES,
        format="gguf",
    )
    overwrite: bool = option(False, "Replace a checkpoint that sea-export wrote before.")
    force: bool = option(False, "Accept a base other than the one that the edit was fitted on.")
    verify: bool = option(True, "Verify before the output appears: what fails is not kept.")
    link: bool = option(
        False,
        "Link the weight files of the base instead of copying them: no room is needed, and the output changes when the "
        "base is changed in place.",
        format="custom-code",
    )
    requantize: bool = option(
        False,
        "Fold into quantized weights of the base in their own storage (FP8 in blocks, MXFP4); every other byte stays.",
        format="merged",
    )
    compatible_config: bool = option(
        False,
        "Add rope_theta and rope_scaling to config.json, for transformers 4, CTranslate2, mlx-lm and mistral.rs.",
        format="merged",
    )
    base_id: str | None = option(
        None,
        "The Hub id of which a local base is a copy, for the model card; by default as the files of the base tell it.",
        metavar="ORG/NAME",
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.base_id is not None and not _HUB_ID.fullmatch(self.base_id):
            raise InputError(f"--base-id: {self.base_id!r} is no Hub id. Give ORG/NAME.")
        for item in fields(self):
            format, value = item.metadata["format"], getattr(self, item.name)
            if format not in (None, self.format) and value != item.default:
                raise InputError(
                    f"{option_name(item)}: it goes with --format {format}, not with {self.format}. Leave it out."
                )
