"""What a manifest says about the run that wrote it. It is enough to repeat it, or an error says what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sea_export.demonstrations.demonstration import (
    DemonstrationOrigin,
    LoadedDemonstrations,
    demonstrations_digest,
    without,
)
from sea_export.demonstrations.hold_out import hold_out
from sea_export.demonstrations.load import load_demonstrations
from sea_export.demonstrations.tables import is_file_name
from sea_export.errors import InputError
from sea_export.export.manifest import MANIFEST, fits_of
from sea_export.files.records import from_record
from sea_export.model.run_options import MOST_THREADS
from sea_export.options import ExportOptions, FitOptions
from sea_export.versions import library_versions

__all__ = ["RecordedFit", "RecordedRun"]


@dataclass(frozen=True)
class RecordedFit:
    """One fit: on what, and how."""

    options: FitOptions
    origin: DemonstrationOrigin | None
    """Where the demonstrations were read; None if they were changed after reading."""
    digest: str
    """SHA-256 of the texts of the demonstrations."""
    tuning: Mapping[str, Any] | None = None
    """How `tune` found the options; None if they were given."""
    effect: Mapping[str, Any] | None = None
    """What was measured of the edit; None if nothing was."""
    fitted_strength: float | None = None
    """The strength that was fitted; None for the one in `options`."""
    examples: Mapping[str, Any] | None = None
    """What the model answered before and after; None if it was not asked."""

    @property
    def fitted_options(self) -> FitOptions:
        """The options of the fit itself."""
        if self.fitted_strength is None:
            return self.options
        return replace(self.options, edit=replace(self.options.edit, strength=self.fitted_strength))

    @property
    def needs_file(self) -> bool:
        """Whether the user has to say where the demonstrations are."""
        return self.origin is None or is_file_name(self.origin.source)

    def demonstrations(self, file: str | None) -> LoadedDemonstrations:
        """The demonstrations that the fit used.

        Args:
            file: where they are now; None if they are where they were.

        Raises:
            InputError: they cannot be read, or they are other ones.
        """
        origin = self.origin or DemonstrationOrigin("")
        loaded = load_demonstrations(
            file or origin.source,
            prompt_field=origin.prompt_field,
            positive_field=origin.positive_field,
            negative_field=origin.negative_field,
            limit=origin.limit,
            seed=origin.seed,
            skip_bad_rows=origin.skip_bad_rows,
        )
        fitted = hold_out(without(loaded, _positions(origin.left_out)), origin.held_out, origin.seed).fitted
        if demonstrations_digest(fitted) != self.digest:
            raise InputError(
                f"--demonstrations: {file or origin.source} does not hold those that the manifest names (SHA-256 "
                f"{self.digest[:12]}…). They were changed, or it is another file. Give the ones of the run."
            )
        return LoadedDemonstrations(fitted, origin) if self.origin else loaded


@dataclass(frozen=True)
class RecordedRun:
    """A whole run."""

    fits: tuple[RecordedFit, ...]
    """The fits of which the baked edit was made, in the order of their records."""
    edit: Mapping[str, Any]
    """The record of the baked edit, which says how it was made of them."""
    base: Mapping[str, Any]
    """What the manifest says about the base."""
    export: ExportOptions
    """How the product was baked."""
    trust_remote_code: bool
    """Whether code that came with the base could run."""
    computation: Mapping[str, Any]
    """See `sea_export.fitting.fit.computation_record`. It is the same for all fits."""
    versions: Mapping[str, frozenset[str]]
    """For each library, the versions that fitted and saved."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> RecordedRun:
        """The run that wrote a manifest.

        Raises:
            InputError: the manifest does not say enough, or the run cannot be repeated.
        """
        try:
            return cls._of(manifest)
        except KeyError as error:
            raise InputError(
                f"{MANIFEST}: it lacks {error}, without which the run cannot be repeated. Give the manifest as it was "
                "written."
            ) from error

    @classmethod
    def _of(cls, manifest: Mapping[str, Any]) -> RecordedRun:
        members = list(fits_of(manifest["edit"]))
        if (manifest["edit"].get("base") or {}).get("fitted_on"):
            raise InputError(
                f"{MANIFEST}: the edit was fitted on another base than it was baked into (--force), and the manifest "
                "does not name that one, so that the run cannot be repeated. Fit the edit again."
            )
        if imported := next((member["imported"] for member in members if "imported" in member), None):
            adapter = imported["meaning"] == "adapter"
            norm = f" and --keep-norm {imported['keep_norm']}" if "keep_norm" in imported else ""
            raise InputError(
                f"{MANIFEST}: the edit was imported from {imported['source']} (SHA-256 {imported['sha256'][:12]}…"
                f"{' of its weights' if adapter else ''}), and not fitted. Import that "
                f"{'adapter' if adapter else 'file'} again, {'' if adapter else 'as ' + imported['meaning'] + ' '}with "
                f"coefficient {imported['coefficient']:g}{norm}, and bake it with sea-export save."
            )
        if not all({"options", "demonstrations", "computation"} <= member.keys() for member in members):
            raise InputError(
                f"{MANIFEST}: it does not say how the edit was fitted. Bake the edit again with sea-export save "
                "instead."
            )
        computations = [member["computation"] for member in members]
        if any(one != computations[0] for one in computations):
            raise InputError(
                f"{MANIFEST}: its {len(members)} edits were fitted in different ways (dtype, device or threads). Fit "
                "each of them again, and bake them with sea-export save."
            )
        if not 1 <= computations[0]["threads"] <= MOST_THREADS:
            raise InputError(
                f"{MANIFEST}: it says that the fit computed with {computations[0]['threads']} threads. Give the "
                "manifest as it was written."
            )
        recorded: Mapping[str, Any] = manifest["export"]
        export = ExportOptions(
            format=manifest["format"],
            adapter_rank=recorded["adapter_rank"],
            adapter_padding=recorded.get("adapter_padding", ExportOptions.adapter_padding),
            gguf_type=recorded.get("gguf_type", ExportOptions.gguf_type),
            verify=recorded["verify"],
            requantize=recorded.get("requantize", False),
            compatible_config=recorded.get("compatible_config", False),
            base_id=recorded.get("base_id"),
        )
        records = [manifest["versions"], *(member["versions"] for member in members)]
        versions = {name: frozenset(record[name] for record in records) for name in manifest["versions"]}
        fits = tuple(_fit(member) for member in members)
        return cls(
            fits, manifest["edit"], manifest["base"], export, recorded["trust_remote_code"], computations[0], versions
        )

    def export_options(self, *, overwrite: bool) -> ExportOptions:
        """How the repeated run is baked: as the first one, but for whether an existing output is replaced."""
        return replace(self.export, overwrite=overwrite)

    def demonstrations(self, files: Sequence[str]) -> list[LoadedDemonstrations]:
        """The demonstrations of all fits.

        Args:
            files: where they are, for each fit whose demonstrations were a local file, in order.

        Raises:
            InputError: there are too few or too many files, or their demonstrations are other ones.
        """
        wanting = [fit for fit in self.fits if fit.needs_file]
        if len(files) != len(wanting):
            names = ", ".join(fit.origin.source if fit.origin else "a list in memory" for fit in wanting)
            raise InputError(
                f"--demonstrations: those of the run came from {names}. Say where each is with --demonstrations."
                if wanting
                else "--demonstrations: the manifest says where the demonstrations are. Leave the option out."
            )
        given = iter(files)
        return [fit.demonstrations(next(given) if fit.needs_file else None) for fit in self.fits]

    def changed_versions(self) -> list[str]:
        """The libraries that have other versions now, one line each."""
        now = library_versions()
        return [
            f"{name} {' and '.join(sorted(then))} then, {now.get(name, 'not installed')} now"
            for name, then in self.versions.items()
            if then != {now.get(name)}
        ]


def _positions(left_out: str) -> list[int]:
    """See `sea_export.demonstrations.demonstration.DemonstrationOrigin.left_out`."""
    try:
        return [int(position) for position in left_out.split(",") if position]
    except ValueError as error:
        raise InputError(
            f"{MANIFEST}: its left_out is not a list of positions. Give the manifest as it was written."
        ) from error


def _fit(member: Mapping[str, Any]) -> RecordedFit:
    options, demonstrations = from_record(FitOptions, member["options"]), member["demonstrations"]
    origin = demonstrations.get("origin")
    return RecordedFit(
        options,
        None if origin is None else from_record(DemonstrationOrigin, origin),
        demonstrations["sha256"],
        member.get("tuning"),
        member.get("effect"),
        member.get("fitted_strength"),
        member.get("examples"),
    )
