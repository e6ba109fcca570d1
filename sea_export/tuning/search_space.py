"""The settings that a search tries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sea_export.options import CENTERS, SITES, TARGETS, FitOptions

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["SearchSpace"]

# The divergence grows about with the square of the strength. These have about 1, 1/2, 1/4 and 1/16 of it.
_STARTING_STRENGTHS = (1.0, 0.7, 0.5, 0.25)
_NORMALIZATIONS = ("none", "average", "calibrated")


@dataclass(frozen=True)
class SearchSpace:
    """The settings that are tried."""

    layer_count: int
    targets: tuple[str, ...] = TARGETS
    sites: tuple[str, ...] = SITES
    centers: tuple[str, ...] = CENTERS

    def suggest(self, trial: Trial, start: FitOptions) -> FitOptions:
        """The settings of a trial. Settings that are not searched are those of `start`."""
        kind = trial.suggest_categorical("layers", ("last", "first", "signature"))
        count = trial.suggest_int("count", 1, self.layer_count)
        # The unexplained share is searched on a logarithmic scale: 0.99 and 0.999 differ as much as 0.9 and 0.99.
        kept = trial.suggest_float("positive_remainder", 1e-5, 0.5, log=True)
        dropped = trial.suggest_float("negative_remainder", 1e-5, 0.5, log=True)
        return replace(
            start,
            layers=f"{kind}:{count}",
            target=trial.suggest_categorical("target", self.targets),
            center=trial.suggest_categorical("center", self.centers),
            capture=replace(start.capture, site=trial.suggest_categorical("site", self.sites)),
            edit=replace(
                start.edit,
                positive_variance=round(1 - kept, 6),
                negative_variance=round(1 - dropped, 6),
                strength=round(trial.suggest_float("strength", 0.05, 2.0, step=0.05), 2),
                normalization=trial.suggest_categorical("normalization", _NORMALIZATIONS),
            ),
        )

    def starts(self, start: FitOptions) -> list[dict[str, Any]]:
        """Optuna's parameters of what is tried first: the default edit if it is in the space, and weaker edits."""
        tried = [self._parameters(start)]
        for strength in _STARTING_STRENGTHS:
            for target in self.targets:
                edit = replace(start.edit, strength=strength)
                tried.append(self._parameters(replace(start, target=target, edit=edit)))
        known = [parameters for parameters in tried if parameters is not None]
        return [one for index, one in enumerate(known) if one not in known[:index]]

    def contains(self, options: FitOptions) -> bool:
        """Whether the default edit `options` is in the space."""
        return self._parameters(options) is not None

    def _parameters(self, options: FitOptions) -> dict[str, Any] | None:
        """The parameters for which `suggest` gives `options`, a variant of the default edit; None if there are none."""
        kind, _, count = options.layers.partition(":")
        chosen = {"target": options.target, "center": options.center, "site": options.capture.site}
        allowed = {"target": self.targets, "center": self.centers, "site": self.sites}
        if any(value not in allowed[name] for name, value in chosen.items()):
            return None
        return {
            **chosen,
            "layers": kind,
            "count": int(count),
            "positive_remainder": 1 - options.edit.variance("positive"),
            "negative_remainder": 1 - options.edit.variance("negative"),
            "strength": options.edit.strength,
            "normalization": options.edit.normalization,
        }
