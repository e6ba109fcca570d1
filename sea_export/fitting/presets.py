"""Settings of published edits, by name. A preset gives options other defaults; options that are given count more.

The source of both is Qiu et al., "Spectral Editing of Activations for Large Language Model Alignment", NeurIPS 2024
(arXiv 2405.09719), with its published code. Numbers of layers are those of a model of 32 layers, as a share. The
demonstrations are not in this package: HaluEval's question answering, and the disambiguated rows of BBQ.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PRESETS"]

_PUBLISHED: Mapping[str, str | float | int] = {
    "center": "off",
    "site": "residual",
    "normalization": "sequence",
    "neutral": "generated",
    "strength": 1.0,
    "format": "custom-code",
}

PRESETS: Mapping[str, Mapping[str, str | float | int]] = {
    "published-truthfulness": {
        **_PUBLISHED,
        "limit": 2000,
        "layers": "last:66%",
        "explained_variance": 0.998,
        "template": "primer",
    },
    "published-fairness": {
        **_PUBLISHED,
        "limit": 1000,
        "layers": "last:6%",
        "explained_variance": 0.9999,
        "feature_function": "squared-exponential",
    },
}
"""Name -> field of an option class -> value."""
