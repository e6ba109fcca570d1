"""What a layer edit may be besides its tensors."""

from __future__ import annotations

from sea_export.options import FEATURE_FUNCTIONS, RUN_TIME_NORMALIZATIONS, check_choice, check_length_scale

__all__ = ["check_form", "why_unfoldable"]


def check_form(*, projections: str, normalization: str, feature_function: str, length_scale: float) -> None:
    """Raises InputError if no layer edit has such a form.

    Args:
        projections: which of P+ and P- make the edit.
        normalization: what is normalized at run time.
        feature_function: the name of φ.
        length_scale: σ of φ.
    """
    check_choice("projections", projections, ("both", "positive", "negative"))
    check_choice("normalization", normalization, ("none", *RUN_TIME_NORMALIZATIONS))
    check_choice("feature-function", feature_function, FEATURE_FUNCTIONS)
    check_length_scale(length_scale)


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
