"""Which values of a metric are better, and whether a model is better than its base."""

from __future__ import annotations

import pytest

from sea_export.evaluation.verdicts import aim_of, verdict_of


@pytest.mark.parametrize(
    ("unit", "best", "values", "aim"),
    [
        ("%", 1.0, (0.5, 0.4, 0.6), "higher"),
        ("nats", float("inf"), (0.5, -0.4, 0.6), "higher"),
        ("nats", None, (0.5, -0.4, 0.6), "higher"),
        ("nats", 0.0, (2.5, 2.4, 2.6), "lower"),
        ("", 1.0, (9.5, 9.4, 9.6), "lower"),
        ("%", 0.0, (0.05, -0.01, 0.1), "nearer 0"),
        ("%", 0.5, (0.55, 0.45, 0.65), "nearer 50"),
        ("%", 0.5, (0.75, 0.65, 0.85), "nearer 50"),
        ("tokens", 0.0, (20.0, 19.0, 21.0), ""),
    ],
)
def test_the_better_direction(unit: str, best: float | None, values: tuple[float, ...], aim: str) -> None:
    assert aim_of(unit, best, values) == aim


@pytest.mark.parametrize(
    ("unit", "best", "value", "base", "difference", "p_value", "verdict"),
    [
        ("%", 1.0, 0.6, 0.5, (0.1, 0.02, 0.2), 0.01, "better"),
        ("%", 1.0, 0.4, 0.5, (-0.1, -0.2, -0.02), 0.01, "worse"),
        ("%", 1.0, 0.6, 0.5, (0.1, -0.02, 0.2), 0.2, "no measurable gain"),
        ("%", 1.0, 0.6, 0.5, (0.1, 0.02, 0.2), 0.06, "no measurable gain"),
        ("%", 1.0, 0.6, 0.5, (0.1, -0.02, 0.2), 0.04, "no measurable gain"),
        ("%", 1.0, 0.5, 0.5, (0.0, 0.0, 0.0), 1.0, "no measurable gain"),
        ("nats", 0.0, 2.4, 2.5, (-0.1, -0.2, -0.02), 0.01, "better"),
        ("nats", float("inf"), 2.4, 2.5, (-0.1, -0.2, -0.02), 0.01, "worse"),
        ("%", 0.5, 0.55, 0.65, (-0.1, -0.2, -0.02), 0.01, "better"),
        ("%", 0.5, 0.35, 0.45, (-0.1, -0.2, -0.02), 0.01, "worse"),
        ("%", 1.0, 0.6, 0.5, (float("nan"),) * 3, 0.01, "no measurable gain"),
        ("tokens", 0.0, 20.0, 30.0, (-10.0, -12.0, -8.0), 0.01, ""),
    ],
)
def test_the_verdict(
    unit: str, best: float, value: float, base: float, difference: tuple[float, ...], p_value: float, verdict: str
) -> None:
    assert verdict_of(unit, best, (value,) * 3, (base,) * 3, difference, p_value) == verdict
    assert verdict_of(unit, best, (value,) * 3, None, None, None) == ""
