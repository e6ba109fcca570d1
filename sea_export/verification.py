"""Is an export the edit it claims to be? Two sources of error, kept apart, and a statement about every tensor.

- Mathematics: the run-time edit against what the export computes in memory (folded weights, or the adapter on the
  base), both in float32 on the base's own weights.
- Storage: the export as a stranger's process loads it, against the run-time edit. A merged checkpoint adds the rounding
  of the edited weights to the stored dtype. Beside it stands what computing in that dtype does to the unedited base.
- Tensors: exactly the intended tensors differ from the base, each by the fold and one rounding, and no other byte; or
  the adapter makes the edited weights of the base's, and nothing else.

An adapter of capped rank is an approximation: how far it is from the edit is reported, and what is tested is that it is
the approximation it claims to be. A quantized base is computed with as it is, in its own dtype.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sea_export.architecture import find_writers
from sea_export.base_model import resolve_base
from sea_export.checkpoint import Checkpoint
from sea_export.differences import CheckpointDifference, compare_checkpoints
from sea_export.edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export import plan_export
from sea_export.export.adapter_check import adapter_problems, with_adapter
from sea_export.export.adapter_plan import ADAPTER_CONFIG, AdapterPlan
from sea_export.export.folding import MergePlan, find_stored_writers
from sea_export.export.manifest import read_manifest
from sea_export.export.output import read_json
from sea_export.fold import fold_parameters
from sea_export.generation import greedy_continuations
from sea_export.loading import load_config, load_model, load_tokenizer
from sea_export.options import SaveOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PROMPTS", "Agreement", "Verification", "verify", "verify_export"]

PROMPTS = (
    "The capital of France is",
    "Q: What happens if you swallow chewing gum?\nA:",
    "The doctor told the nurse that",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a lower temperature on a mountain because",
    "Q: Who wrote the play Romeo and Juliet?\nA:",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Q: Is it safe to eat snow?\nA:",
    "In 1969, the first people to walk on the Moon",
)
"""What the models are run on: the run-time edit continues each greedily, and all are compared on that text."""

_NEW_TOKENS = 32

# The largest mean KL divergence (nats) and the smallest share of equal greedy tokens that rounding may cause.
_TOLERANCES = {
    torch.float32: (1e-8, 1.0),
    torch.float64: (1e-8, 1.0),
    torch.float16: (1e-4, 0.99),
    torch.bfloat16: (1e-3, 0.99),
}
_MATHEMATICS_TOLERANCE = 1e-4
# Below this mean KL divergence between base and edit (nats) the edit does nothing that anyone could see.
_NO_OP_DIVERGENCE = 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far two models' next-token predictions agree over the same tokens."""

    max_logit_difference: float
    """Largest absolute difference of any logit."""
    relative_logit_difference: float
    """The same, relative to the largest absolute logit of the first."""
    mean_divergence: float
    """Mean Kullback-Leibler divergence of the second's distribution from the first's, in nats."""
    equal_greedy: float
    """Share of positions at which both would choose the same token."""

    @classmethod
    def between(cls, reference: Tensor, other: Tensor) -> Agreement:
        """Compares logits (..., vocabulary) of the same positions."""
        reference, other = reference.double(), other.double()
        difference = float((reference - other).abs().max())
        log_p, log_q = reference.log_softmax(-1), other.log_softmax(-1)
        divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        return cls(
            max_logit_difference=difference,
            relative_logit_difference=difference / float(reference.abs().max()),
            mean_divergence=max(divergence, 0.0),
            equal_greedy=float((reference.argmax(-1) == other.argmax(-1)).double().mean()),
        )


@dataclass(frozen=True)
class Verification:
    """What was measured, and what is wrong with it."""

    dtype: str
    """The dtype in which the base stores the edited tensors."""
    mathematics: Agreement
    """Run-time edit against the export in memory, both in float32."""
    storage: Agreement
    """Run-time edit (for an adapter of capped rank: the adapter in memory) against the export as stored, loaded by
    another process and computed in float32."""
    base_rounding: Agreement
    """The unedited base computed in float32 against itself computed in the stored dtype: the noise that users of
    the base accept already."""
    effect: Agreement
    """The base against the run-time edit: what the edit does."""
    changed_tensors: int
    """Tensors that differ from the base's."""
    identical_tensors: int
    """Tensors that are the base's, byte for byte."""
    identical_files: int
    """Other files that are the base's, byte for byte."""
    problems: tuple[str, ...]
    """What is outside the tolerance or not as claimed, in sentences."""
    weight_error: float | None
    """For an adapter: the largest ‖adapted W - W'‖ / ‖W' - W‖ of any weight that it changes."""
    exact: bool
    """False for an adapter of capped rank, which claims to be no more than an approximation."""
    statement: str
    """What the tensors of the export are, in a sentence."""

    @property
    def passed(self) -> bool:
        """Whether the checkpoint is the edit it claims to be."""
        return not self.problems


@torch.inference_mode()
def verify_export(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: MergePlan | AdapterPlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    """Verifies an export.

    Args:
        directory: where it was written.
        base: the base's checkpoint.
        edit: the edit that it claims to hold.
        plan: what it consists of.
        model: the base in memory; it is left in another dtype than it came in.
        tokenizer: its tokenizer.

    Raises:
        SeaExportError: plain transformers cannot load the export.
    """
    if isinstance(plan, AdapterPlan):
        return _verify_adapter(directory, base, edit, plan, model, tokenizer)
    return _verify_merged(directory, base, edit, plan, model, tokenizer)


def _verify_merged(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: MergePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    dtype = next(base.tensors[name].dtype for name in plan.edits)
    figures = _figures(directory, edit, model, tokenizer, lambda: _folded(model, edit), dtype)
    difference = compare_checkpoints(base.directory, directory)
    changed = len(difference.tensors_changed) + len(difference.tensors_only_in_b)
    return Verification(
        dtype=_name(dtype),
        **figures,
        changed_tensors=changed,
        identical_tensors=difference.tensors_identical,
        identical_files=difference.files_identical,
        problems=(*_figure_problems(figures, dtype), *_tensor_problems(directory, base, plan, difference)),
        weight_error=None,
        exact=True,
        statement=f"{changed} tensors differ from the base's; {difference.tensors_identical} tensors and "
        f"{difference.files_identical} other files are byte-identical.",
    )


def _verify_adapter(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: AdapterPlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    exact = plan.adapter.exact
    stored = base.tensors[plan.stored_weights[0]].dtype if plan.stored_weights else model.dtype
    figures = _figures(directory, edit, model, tokenizer, lambda: with_adapter(model, directory), stored, exact=exact)
    weight_error, problems = adapter_problems(directory, edit, plan)
    # An adapter is stored in float32, whatever the dtype of its base, so that nothing but the computation rounds.
    computed = model.dtype if _is_quantized(model) else torch.float32
    return Verification(
        dtype=_name(stored),
        **figures,
        changed_tensors=0,
        identical_tensors=0,
        identical_files=0,
        problems=(*_figure_problems(figures, computed, computed=computed, exact=exact), *problems),
        weight_error=weight_error,
        exact=exact,
        statement=f"The adapter changes {len(plan.adapter.modules)} weights of the base, each as the edit does but for "
        f"{weight_error:.1e} of the change at most.",
    )


def _figures(
    directory: Path,
    edit: SpectralEdit,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    export_in_memory: Callable[[], AbstractContextManager[None]],
    dtype: torch.dtype,
    *,
    exact: bool = True,
) -> dict[str, Agreement]:
    quantized = _is_quantized(model)
    if not quantized:
        model.float()
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    with edit.apply(model):
        continuations = greedy_continuations(model, prompts, new_tokens=_NEW_TOKENS, past_the_end=True)
        sequences = [[*prompt, *tokens] for prompt, tokens in zip(prompts, continuations, strict=True)]
        run_time = _logits(model, sequences)
    with export_in_memory():
        in_memory = _logits(model, sequences)
    unedited = _logits(model, sequences)
    stored = _logits_of_checkpoint(directory, sequences, model.dtype)
    if not quantized:
        nn.Module.to(model, dtype)
    rounded = _logits(model, sequences)
    return {
        "mathematics": Agreement.between(run_time, in_memory),
        "storage": Agreement.between(run_time if exact else in_memory, stored),
        "base_rounding": Agreement.between(unedited, rounded),
        "effect": Agreement.between(unedited, run_time),
    }


def _is_quantized(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "is_quantized", False))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def verify(
    output: str | Path,
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Verifies a checkpoint that sea-export wrote.

    Args:
        output: the checkpoint.
        base: the base model; by default what the checkpoint's manifest names, if that is a Hub id.
        revision: the base's revision; by default what the manifest names.
        trust_remote_code: whether code that comes with the base may run.

    Raises:
        InputError: the output is no checkpoint of sea-export's, or the base is not at hand.
        SeaExportError: plain transformers cannot load the checkpoint.
    """
    output = Path(output)
    manifest = read_manifest(output)
    options = SaveOptions(
        format=manifest["format"],
        adapter_rank=manifest.get("adapter", {}).get("rank_cap"),
        trust_remote_code=trust_remote_code,
    )
    named = manifest["base"]
    if base is None and options.format == "adapter":
        base = read_json(output / ADAPTER_CONFIG)["base_model_name_or_path"]
    if base is None and "/" not in named["name"]:
        raise InputError(f"{output.name} was made from the local model {named['name']}: say where it is with --base")
    edit = SpectralEdit.load(output)
    with resolve_base(
        str(base or named["name"]),
        revision=revision or named["revision"],
        dtype=getattr(torch, named["dtype"]),
    ) as resolved:
        stored = find_stored_writers(
            edit.targets,
            resolved.checkpoint,
            load_config(resolved, trust_remote_code=trust_remote_code),
            needs_bias=edit.needs_bias,
            format=options.format,
            trust_remote_code=trust_remote_code,
        )
        model = load_model(resolved, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(resolved, trust_remote_code=trust_remote_code)
        plan = plan_export(edit, resolved, stored, options, lambda: model)
        return verify_export(output, resolved.checkpoint, edit, plan, model, tokenizer)


def _logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """(sequences, new tokens, vocabulary) float32: what predicts the last `_NEW_TOKENS` of each sequence.

    One sequence at a time: padding would add rounding of its own to what is compared.
    """
    device = next(model.parameters()).device
    rows = [model(torch.tensor([sequence], device=device)).logits[0] for sequence in sequences]
    return torch.stack([row[-_NEW_TOKENS - 1 : -1].float().cpu() for row in rows])


def _logits_of_checkpoint(directory: Path, sequences: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
    """The same from an export, by a process that imports transformers and not sea-export, computed in `dtype`."""
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.json"), Path(scratch, "logits.safetensors")
        request.write_text(
            json.dumps(
                {
                    "checkpoint": str(directory),
                    "dtype": _name(dtype),
                    "sequences": [list(sequence) for sequence in sequences],
                    "count": _NEW_TOKENS,
                    "answer": str(answer),
                }
            ),
            encoding="utf-8",
        )
        probe = Path(__file__).with_name("verification_probe.py")
        process = subprocess.run(  # -I: neither this package's folder nor the current one is searched for modules
            [sys.executable, "-I", str(probe), str(request)], capture_output=True, text=True, check=False
        )
        if process.returncode:
            reason = process.stderr.strip().rpartition("\n")[2]
            raise SeaExportError(f"plain transformers cannot load {directory.name}: {reason}")
        return load_file(answer)["logits"]


@contextmanager
def _folded(model: PreTrainedModel, edit: SpectralEdit) -> Iterator[None]:
    """Puts the folded weights into the model in memory, unrounded, and the base's back again."""
    parameters = dict(model.named_parameters())
    with ExitStack() as restore:
        for writer in find_writers(model, edit.targets):
            for name, tensor in fold_parameters(writer, edit.layers[writer.target], parameters).items():
                module_name, _, leaf = name.rpartition(".")
                module = model.get_submodule(module_name)
                restore.callback(setattr, module, leaf, parameters.get(name))
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        yield


def _figure_problems(
    figures: Mapping[str, Agreement],
    dtype: torch.dtype,
    *,
    computed: torch.dtype = torch.float32,
    exact: bool = True,
) -> list[str]:
    """What is outside the tolerance.

    Args:
        figures: the agreements by name.
        dtype: the coarsest dtype between the run-time edit and the export as stored.
        computed: what both are computed in.
        exact: whether the export claims to be the edit, and not an approximation of it.
    """
    divergence, equal = _TOLERANCES[dtype]
    problems = []
    mathematics = figures["mathematics"]
    if computed == torch.float32:
        same = mathematics.relative_logit_difference <= _MATHEMATICS_TOLERANCE
    else:
        same = mathematics.mean_divergence <= _TOLERANCES[computed][0]
    if exact and not same:
        problems.append(
            "what the export computes in memory is not the run-time edit: logits differ by "
            f"{mathematics.relative_logit_difference:.1e} of the largest"
        )
    if not figures["storage"].mean_divergence <= divergence or not figures["storage"].equal_greedy >= equal:
        problems.append(
            f"the export as stored differs from {'the run-time edit' if exact else 'itself in memory'} by a mean KL of "
            f"{figures['storage'].mean_divergence:.1e} with {figures['storage'].equal_greedy:.1%} equal greedy "
            f"tokens, where rounding allows {divergence:.0e} and {equal:.0%}"
        )
    if not figures["effect"].mean_divergence > _NO_OP_DIVERGENCE:
        problems.append(
            "the edit does nothing: its predictions differ from the base's by a mean KL of "
            f"{figures['effect'].mean_divergence:.1e}; raise --explained-variance or --strength, or centre the "
            "activations"
        )
    return problems


def _tensor_problems(directory: Path, base: Checkpoint, plan: MergePlan, difference: CheckpointDifference) -> list[str]:
    """What contradicts: exactly the intended tensors differ, each by the fold and one rounding."""
    problems = []
    unexpected = difference.tensors_changed.keys() - plan.edits.keys()
    unexpected |= set(difference.tensors_only_in_b) - plan.additions.keys()
    unexpected |= {*difference.tensors_only_in_a, *difference.tensors_of_other_form}
    if unexpected:
        problems.append(f"tensors that the edit does not touch differ from the base: {', '.join(sorted(unexpected))}")
    written = Checkpoint.open(directory)
    wrong = [
        name
        for name, expected in (
            *((name, fold(base.read(name))) for name, fold in plan.edits.items()),
            *plan.additions.items(),
        )
        if name not in written.tensors or not _equal_to_rounding(written.read(name), expected)
    ]
    if wrong:
        problems.append(f"stored tensors are not the base's with the edit folded in: {', '.join(wrong)}")
    return problems


def _equal_to_rounding(written: Tensor, expected: Tensor) -> bool:
    """Equal but for the last place, which another processor may round differently."""
    if written.shape != expected.shape or written.dtype != expected.dtype:
        return False
    precision = torch.finfo(expected.dtype)
    return torch.allclose(written.double(), expected.double(), rtol=precision.eps, atol=precision.tiny)
