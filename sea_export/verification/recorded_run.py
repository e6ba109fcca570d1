"""What a manifest tells of the run that wrote it: enough to repeat it, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sea_export.demonstrations.demonstration import DemonstrationOrigin, LoadedDemonstrations, demonstrations_digest
from sea_export.demonstrations.load import load_demonstrations
from sea_export.demonstrations.tables import is_file_name
from sea_export.errors import InputError
from sea_export.export.manifest import fits_of
from sea_export.files.digests import file_digest
from sea_export.model.base import Base
from sea_export.options import ExportOptions, FitOptions, recorded_options
from sea_export.versions import library_versions

__all__ = ["RecordedFit", "RecordedRun"]


@dataclass(frozen=True)
class RecordedFit:
    """One fit: what it was fitted on and how."""

    options: FitOptions
    origin: DemonstrationOrigin | None
    """None for demonstrations that were not used as they were read."""
    digest: str
    """SHA-256 of the demonstrations' texts."""
    tuning: Mapping[str, Any] | None = None
    """How `tune` came to the options; None if they were given."""

    @property
    def needs_file(self) -> bool:
        """Whether somebody has to say where the demonstrations are."""
        return self.origin is None or is_file_name(self.origin.source)

    def demonstrations(self, file: str | None) -> LoadedDemonstrations:
        """The demonstrations that the fit used.

        Args:
            file: where they are, if not where they were.

        Raises:
            InputError: they cannot be read, or are others.
        """
        origin = self.origin or DemonstrationOrigin("")
        loaded = load_demonstrations(
            file or origin.source,
            prompt_field=origin.prompt_field,
            positive_field=origin.positive_field,
            negative_field=origin.negative_field,
            limit=origin.limit,
            seed=origin.seed,
        )
        if demonstrations_digest(loaded) != self.digest:
            raise InputError(
                f"the demonstrations of {file or origin.source} are not those that the manifest tells of (SHA-256 "
                f"{self.digest[:12]}…): they were changed since, or others are meant"
            )
        return LoadedDemonstrations(loaded, origin) if self.origin else loaded


@dataclass(frozen=True)
class RecordedRun:
    """A whole run."""

    fits: tuple[RecordedFit, ...]
    """The fits whose product was baked, in the order in which they are applied."""
    base: Mapping[str, Any]
    """What the manifest says of the base."""
    saving: ExportOptions
    trust_remote_code: bool
    """Whether code that came with the base ran."""
    computation: Mapping[str, Any]
    """See `sea_export.fitting.fit.computation_record`; the same for all fits."""
    versions: Mapping[str, frozenset[str]]
    """For each library, the versions that fitted and saved."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> RecordedRun:
        """The run that wrote a manifest.

        Raises:
            InputError: the manifest does not tell enough, or the run cannot be repeated.
        """
        try:
            return cls._of(manifest)
        except KeyError as error:
            raise InputError(f"the manifest lacks {error}, without which the run cannot be repeated") from error

    @classmethod
    def _of(cls, manifest: Mapping[str, Any]) -> RecordedRun:
        members = list(fits_of(manifest["edit"]))
        if (manifest["edit"].get("base") or {}).get("fitted_on"):
            raise InputError(
                "the edit was fitted on another base than it was baked into (--force), and nothing keeps that one: the "
                "run cannot be repeated"
            )
        if not all({"options", "demonstrations", "computation"} <= member.keys() for member in members):
            raise InputError("the edit does not tell how it was fitted: bake it again with sea-export save instead")
        computations = [member["computation"] for member in members]
        if any(one != computations[0] for one in computations):
            raise InputError(
                f"the {len(members)} edits were fitted in different ways (dtype, device or threads): fit each again "
                "and bake them with sea-export save"
            )
        export: Mapping[str, Any] = manifest["export"]
        saving = ExportOptions(
            format=manifest["format"],
            adapter_rank=export["adapter_rank"],
            verify=export["verify"],
        )
        records = [manifest["versions"], *(member["versions"] for member in members)]
        versions = {name: frozenset(record[name] for record in records) for name in manifest["versions"]}
        fits = tuple(_fit(member) for member in members)
        return cls(fits, manifest["base"], saving, export["trust_remote_code"], computations[0], versions)

    def demonstrations(self, files: Sequence[str]) -> list[LoadedDemonstrations]:
        """The demonstrations of all fits.

        Args:
            files: for each fit whose demonstrations were a local file, in order, where they are.

        Raises:
            InputError: there are too few or too many files, or their demonstrations are others.
        """
        wanting = [fit for fit in self.fits if fit.needs_file]
        if len(files) != len(wanting):
            names = ", ".join(fit.origin.source if fit.origin else "a list in memory" for fit in wanting)
            raise InputError(
                f"the demonstrations came from {names}: say where each is with --demonstrations"
                if wanting
                else "the manifest tells where the demonstrations are: leave --demonstrations out"
            )
        given = iter(files)
        return [fit.demonstrations(next(given) if fit.needs_file else None) for fit in self.fits]

    def check_base(self, base: Base) -> None:
        """Raises InputError unless the base is the very one that was edited, file by file."""
        for file, digest in self.base["files"].items():
            path = base.checkpoint.directory / file
            if not path.is_file():
                raise InputError(f"{base.name} has no {file}, which the base of the manifest has: give that base")
            if file_digest(path) != digest:
                raise InputError(
                    f"{file} of {base.name} is not that of the manifest's base (SHA-256 {digest[:12]}…): the base was "
                    "changed since, or another one is meant"
                )

    def changed_versions(self) -> list[str]:
        """The libraries that have other versions now, each as a line."""
        now = library_versions()
        return [
            f"{name} {' and '.join(sorted(then))} then, {now.get(name, 'not installed')} now"
            for name, then in self.versions.items()
            if then != {now.get(name)}
        ]


def _fit(member: Mapping[str, Any]) -> RecordedFit:
    options, demonstrations = recorded_options(FitOptions, member["options"]), member["demonstrations"]
    origin = demonstrations.get("origin")
    return RecordedFit(
        options,
        None if origin is None else recorded_options(DemonstrationOrigin, origin),
        demonstrations["sha256"],
        member.get("tuning"),
    )
