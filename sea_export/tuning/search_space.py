"""The settings that a search tries."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.options import CENTERS, FORMS, GRADIENT_METHODS, METHODS, SITES, TARGETS, FitOptions

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["Candidate", "Kind", "SearchSpace", "kinds_of"]

_SHARES = (1.0, 0.5, 0.25)
"""Of the damage budget."""
_NORMALIZATIONS = ("none", "calibrated")
_RANKS, _DAMPINGS = (1, 64), (0.1, 1000.0)
_USUAL_DAMPING = {"bias": 10.0, "linear": 1.0, "low-rank": 1.0}


@dataclass(frozen=True)
class Candidate:
    """The settings of a trial. The strength follows from the budget."""

    options: FitOptions
    budget: float
    """The largest mean KL from the base, in nats per token."""

    def at(self, strength: float) -> FitOptions:
        """The options of the edit with that strength."""
        return replace(self.options, edit=replace(self.options.edit, strength=strength))


@dataclass(frozen=True)
class Kind:
    """A method in one of its forms, and how it may be centred."""

    method: str
    form: str
    centers: tuple[str, ...]

    @property
    def is_spectral(self) -> bool:
        """Whether the edit is of spectra."""
        return self.method == "spectral"

    @property
    def reads_activations(self) -> bool:
        """Whether it depends on where activations are read."""
        return self.method not in GRADIENT_METHODS


def kinds_of(
    methods: Collection[str] = METHODS, forms: Collection[str] = FORMS, centers: Collection[str] = CENTERS
) -> tuple[Kind, ...]:
    """The kinds of edits that there are of some methods.

    Args:
        methods: their names.
        forms: which forms of gradient methods. Other methods have one form.
        centers: how edits with a constant may be centred. Maps have none.

    Raises:
        InputError: there are none.
    """
    found = []
    for method in methods:
        for form in forms if method in GRADIENT_METHODS else ("bias",):
            asked = centers if form == "bias" else ("off",)
            allowed = tuple(center for center in asked if _exists(method, form, center))
            if allowed:
                found.append(Kind(method, form, allowed))
    if not found:
        raise InputError(
            f"--method: {', '.join(methods)} cannot be centred as --center {', '.join(centers)} asks. Choose others."
        )
    return tuple(found)


def _exists(method: str, form: str, center: str) -> bool:
    try:
        FitOptions(method=method, form=form, center=center)
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class SearchSpace:
    """The settings that are tried."""

    layer_count: int
    max_kl: float
    """The damage budget, of which trials use all or a share."""
    kinds: tuple[Kind, ...] = kinds_of()
    targets: tuple[str, ...] = TARGETS
    sites: tuple[str, ...] = SITES

    def suggest(self, trial: Trial, start: FitOptions) -> Candidate:
        """The settings of a trial. Settings that are not searched are those of `start`."""
        kind = self._suggested_kind(trial)
        layers = trial.suggest_categorical("layers", ("last", "first", "signature"))
        count = trial.suggest_int("count", 1, self.layer_count)
        target = trial.suggest_categorical("target", self.targets)
        center = trial.suggest_categorical(f"center of {kind.method} {kind.form}", kind.centers)
        budget = self.max_kl * trial.suggest_categorical("share of the budget", _SHARES)
        rank, damping, capture, edit = FitOptions.rank, None, start.capture, start.edit
        if kind.form == "low-rank":
            rank = trial.suggest_int("rank", *_RANKS, log=True)
        if kind.method == "natural-gradient":
            damping = float(f"{trial.suggest_float(f'damping of {kind.form}', *_DAMPINGS, log=True):.3g}")
        if kind.reads_activations:
            capture = replace(capture, site=trial.suggest_categorical("site", self.sites))
        if kind.is_spectral:
            # The unexplained share is searched on a logarithmic scale: 0.99 and 0.999 differ as much as 0.9 and 0.99.
            edit = replace(
                edit,
                positive_variance=round(1 - trial.suggest_float("positive_remainder", 1e-5, 0.5, log=True), 6),
                negative_variance=round(1 - trial.suggest_float("negative_remainder", 1e-5, 0.5, log=True), 6),
                normalization=trial.suggest_categorical("normalization", _NORMALIZATIONS),
            )
        options = replace(
            start,
            method=kind.method,
            form=kind.form,
            rank=rank,
            damping=damping,
            layers=f"{layers}:{count}",
            target=target,
            center=center,
            capture=capture,
            edit=edit,
        )
        return Candidate(options, budget)

    def starts(self, start: FitOptions) -> list[dict[str, Any]]:
        """Optuna's parameters of what is tried first: the default edit, and then every other kind with its defaults."""
        tried = [self._parameters(start)]
        for kind in self.kinds:
            usual = FitOptions(method=kind.method, form=kind.form).center
            options = replace(
                start,
                method=kind.method,
                form=kind.form,
                damping=_USUAL_DAMPING[kind.form] if kind.method == "natural-gradient" else None,
                center=usual if usual in kind.centers else kind.centers[0],
                target=start.target if start.target in self.targets else self.targets[0],
            )
            tried.append(self._parameters(options))
        known = [parameters for parameters in tried if parameters is not None]
        return [one for index, one in enumerate(known) if one not in known[:index]]

    def contains(self, options: FitOptions) -> bool:
        """Whether the default edit `options` is in the space."""
        return self._parameters(options) is not None

    def _suggested_kind(self, trial: Trial) -> Kind:
        methods = tuple(dict.fromkeys(kind.method for kind in self.kinds))
        method = trial.suggest_categorical("method", methods)
        kinds = {kind.form: kind for kind in self.kinds if kind.method == method}
        return kinds[trial.suggest_categorical(f"form of {method}", tuple(kinds))]

    def _parameters(self, options: FitOptions) -> dict[str, Any] | None:
        """The parameters for which `suggest` gives `options` with the whole budget; None if there are none."""
        kinds = [one for one in self.kinds if (one.method, one.form) == (options.method, options.form)]
        if not kinds or options.center not in kinds[0].centers or options.target not in self.targets:
            return None
        (kind,) = kinds
        layers, _, count = options.layers.partition(":")
        parameters = {
            "method": kind.method,
            f"form of {kind.method}": kind.form,
            "layers": layers,
            "count": int(count),
            "target": options.target,
            f"center of {kind.method} {kind.form}": options.center,
            "share of the budget": _SHARES[0],
        }
        if kind.form == "low-rank":
            parameters["rank"] = options.rank
        if kind.method == "natural-gradient":
            parameters[f"damping of {kind.form}"] = options.damping
        if kind.reads_activations:
            if options.capture.site not in self.sites:
                return None
            parameters["site"] = options.capture.site
        if kind.is_spectral:
            parameters["positive_remainder"] = 1 - options.edit.variance("positive")
            parameters["negative_remainder"] = 1 - options.edit.variance("negative")
            parameters["normalization"] = options.edit.normalization
        return parameters
