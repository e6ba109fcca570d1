"""What a layer edit may be besides its tensors."""

from __future__ import annotations

from sea_export.options import FEATURE_FUNCTIONS, RUN_TIME_NORMALIZATIONS, check_choice, check_length_scale

__all__ = ["check_form"]


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
