"""How far the predictions of an export agree with those of the run-time edit, and how far they have to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.formats import BaseMoved, EditInMemory, Loading
from sea_export.model.architecture import OutputProjection
from sea_export.model.precision import products_in_float32
from sea_export.model.threads import half_of_the_threads, processors
from sea_export.text import dtype_name
from sea_export.verification.clean_process import CleanProcess

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "COMPARED_TOKENS",
    "PROMPTS",
    "SEQUENCE_TOKENS",
    "Agreement",
    "agreements",
    "compare",
    "compared",
    "compared_logits",
    "comparison_problems",
    "fixed_sequences",
    "is_quantized",
    "logits_in_subprocess",
]

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
"""The text of the comparison."""

COMPARED_TOKENS = 32
"""The number of tokens at the end of each sequence whose predictions are compared."""

SEQUENCE_TOKENS = 40
"""The length of all sequences in tokens. Equal lengths need no padding, which would cause rounding too."""

_AT_ONCE_IN_HALF_PRECISION = 2

# The largest mean KL divergence (nats) and the smallest top-1 agreement that rounding may cause.
_TOLERANCES = {
    torch.float32: (1e-8, 1.0),
    torch.float64: (1e-8, 1.0),
    torch.float16: (1e-4, 0.99),
    torch.bfloat16: (1e-3, 0.99),
}
# The same for quantized weights. Their kernels compute in half precision, and some of them with activations of 8 bits.
# So the divergence may also be this many times that which rounding causes in the same model.
_QUANTIZED_TOLERANCE = (1e-3, 0.95)
_TIMES_ROUNDING = 4
_FOLD_TOLERANCE = 1e-4
# Below this mean KL divergence between base and edit (nats) the edit has no visible effect.
_NO_OP_DIVERGENCE = 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far the next-token predictions of two models agree on the same tokens."""

    max_logit_difference: float
    """Largest absolute difference of any logit."""
    relative_logit_difference: float
    """The same, relative to the largest absolute logit of the first model."""
    mean_divergence: float
    """Mean Kullback-Leibler divergence of the second model's distribution from the first model's, in nats."""
    top1_agreement: float
    """Share of positions at which both models choose the same token."""

    @classmethod
    def between(cls, reference: Tensor, other: Tensor) -> Agreement:
        """Compares the logits of two models at the same positions.

        Args:
            reference: (..., vocabulary) of the first model.
            other: (..., vocabulary) of the second model.
        """
        difference, divergence, equal = torch.zeros((), dtype=torch.float64), 0.0, 0
        # A few positions at a time, because all of them in float64 could be larger than the model.
        pairs = zip(reference.flatten(0, -2).split(32), other.flatten(0, -2).split(32), strict=True)
        for expected, actual in pairs:
            p, q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
            difference = difference.maximum((expected.double() - actual.double()).abs().max())  # NaN if any is
            divergence += float((p.exp() * (p - q)).sum())
            equal += int((expected.argmax(-1) == actual.argmax(-1)).sum())
        positions = reference[..., 0].numel()
        return cls(
            max_logit_difference=float(difference),
            relative_logit_difference=float(difference / reference.abs().max()),
            mean_divergence=max(divergence / positions, 0.0),
            top1_agreement=equal / positions,
        )


@torch.inference_mode()
def compare(
    directory: Path,
    edit: SpectralEdit,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    *,
    projections: Sequence[OutputProjection],
    export_in_memory: EditInMemory | None,
    loading: Loading | None,
    process: CleanProcess,
    exact: bool = True,
    base_moved: BaseMoved | None = None,
) -> dict[str, Agreement]:
    """Compares an export with the run-time edit.

    Args:
        directory: the export.
        edit: the edit that it should hold.
        model: the base in memory. It may have another dtype afterwards.
        tokenizer: the tokenizer of the base.
        dtype: the dtype in which the base stores the edited tensors.
        projections: the output projections of the edit's targets in the base.
        export_in_memory: makes the model in memory compute what the export computes, without rounding; None if the
            stored export rounds nothing, and is used itself.
        loading: how plain transformers loads the export; None if it does not, so that only the export in memory, which
            is read from its files, is compared.
        process: the one in which it does.
        exact: whether the export should be the edit, and not only an approximation of it.
        base_moved: moves requantized weights of the base within what their storage rounds; None if there are none.

    Returns:
        `fold_error`, `rounding_error`, `base_rounding` and `effect`: see
        `sea_export.verification.verification.Verification`.

    Raises:
        SeaExportError: plain transformers cannot load the export, or its tokenizer is not the base's.
    """
    quantized = is_quantized(model)
    if not quantized:
        model.float()
    sequences = fixed_sequences(tokenizer)
    with nullcontext(0) if loading is None else half_of_the_threads() as for_other:
        wait_for_stored: Callable[[], Tensor] | None = None
        if loading is not None:
            wait_for_stored = logits_in_subprocess(
                process, directory, sequences, tokenizer, loading=loading, dtype=model.dtype, threads=for_other
            )
            if processors() == 1:  # both would only wait for each other
                wait_for_stored()
        with edit.apply(model, projections):
            run_time = compared_logits(model, sequences)
        in_memory = None
        if export_in_memory is not None:
            with export_in_memory(model, edit, projections):
                in_memory = compared_logits(model, sequences)
        unedited = compared_logits(model, sequences)
        if base_moved is not None or quantized:
            with _rounded_otherwise(model, projections) if base_moved is None else base_moved(model, projections):
                rounded = compared_logits(model, sequences)
        else:
            nn.Module.to(model, dtype)
            with products_in_float32(dtype):
                rounded = compared_logits(model, sequences)
        stored = None if wait_for_stored is None else wait_for_stored()
    return agreements(run_time, in_memory, stored, unedited, rounded, exact=exact)


def agreements(
    run_time: Tensor, in_memory: Tensor | None, stored: Tensor | None, unedited: Tensor, rounded: Tensor, *, exact: bool
) -> dict[str, Agreement]:
    """The metrics of a verification, from the logits of the models that are compared.

    Args:
        run_time: (sequences, tokens, vocabulary) of the run-time edit.
        in_memory: the same of the export in memory; None if it is not computed, because storing it rounds nothing.
        stored: the same of the export as stored; None if plain transformers does not load it. One of both is there, and
            stands for the other.
        unedited: the same of the base.
        rounded: the same of the base computed in the stored dtype.
        exact: whether the export should be the edit, and not only an approximation of it.

    Returns:
        What `compare` gives.
    """
    in_memory = stored if in_memory is None else in_memory
    stored = in_memory if stored is None else stored
    assert in_memory is not None, "there are no logits of the export"
    assert stored is not None
    return {
        "fold_error": Agreement.between(run_time, in_memory),
        "rounding_error": Agreement.between(run_time if exact else in_memory, stored),
        "base_rounding": Agreement.between(unedited, rounded),
        "effect": Agreement.between(unedited, run_time),
    }


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether a model computes with quantized weights.

    Args:
        model: the model in memory.
    """
    return bool(getattr(model, "is_quantized", False))


@contextmanager
def _rounded_otherwise(model: PreTrainedModel, projections: Sequence[OutputProjection]) -> Iterator[None]:
    """A context in which the outputs of edited modules change at random, by at most half a unit in the last place.

    This is as much as rounding may change them.
    """
    generator = torch.Generator().manual_seed(0)

    def move(module: nn.Module, inputs: object, output: Any) -> Any:
        rows = output[0] if isinstance(output, tuple) else output
        noise = torch.rand(rows.shape, generator=generator).to(rows.device) - 0.5
        moved = (rows.float() * (1 + torch.finfo(rows.dtype).eps * noise)).to(rows.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    with ExitStack() as hooks:
        for projection in projections:
            module = model.get_submodule(projection.module_name)
            hooks.callback(module.register_forward_hook(move).remove)
        yield


def fixed_sequences(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of the text of the comparison: of the prompts, each followed by the others, all cut to one length.

    Args:
        tokenizer: the tokenizer of the base.
    """
    texts = ["\n".join((*PROMPTS[start:], *PROMPTS[:start])) for start in range(len(PROMPTS))]
    tokens: list[list[int]] = [tokenizer(text).input_ids for text in texts]
    length = min(SEQUENCE_TOKENS, *map(len, tokens))
    return [sequence[:length] for sequence in tokens]


def compared_logits(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], *, in_one_batch: bool = False
) -> Tensor:
    """The logits of a model that are compared.

    Args:
        model: the model.
        sequences: token ids, all of one length. They are computed in one batch, but in half precision a few at a time:
            there a product with the whole vocabulary takes several times the memory of its result.
        in_one_batch: whether they are so in half precision too, for a model that is run once, layer by layer.

    Returns:
        (sequences, compared tokens, vocabulary), float32, on the CPU.
    """
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = COMPARED_TOKENS + 1
    at_once = len(sequences) if in_one_batch or model.dtype.itemsize >= 4 else _AT_ONCE_IN_HALF_PRECISION
    batches = torch.tensor(sequences, device=next(model.parameters()).device).split(at_once)
    return torch.cat([compared(model(batch, **options).logits) for batch in batches])


def compared(logits: Tensor) -> Tensor:
    """The part (..., compared tokens, vocabulary) of logits that is compared, in float32 on the CPU.

    Args:
        logits: (..., tokens, vocabulary) of whole sequences.
    """
    return logits[..., -COMPARED_TOKENS - 1 : -1, :].float().cpu()


def logits_in_subprocess(
    process: CleanProcess,
    directory: Path,
    sequences: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    loading: Loading,
    dtype: torch.dtype,
    threads: int,
    memory: int | None = None,
) -> Callable[[], Tensor]:
    """Begins to compute the compared logits of an export in another process, which knows nothing of sea-export.

    Args:
        process: the other process.
        directory: the export.
        sequences: token ids, all of one length. They are computed in one batch.
        tokenizer: the tokenizer of the base. The tokenizer of an export with code must agree with it.
        loading: how plain transformers loads the export.
        dtype: what to compute in.
        threads: with how many threads.
        memory: the bytes of weights that may be in memory; None for all. Transformers keeps the others on the disk.

    Returns:
        What waits for them, and gives (sequences, compared tokens, vocabulary) float32. It raises SeaExportError if
        plain transformers cannot load the export, or its tokenizer is not the base's.
    """
    request = {
        "checkpoint": str(directory),
        "dtype": dtype_name(dtype),
        "threads": threads,
        "sequences": sequences,
        "count": COMPARED_TOKENS,
        "base": None if loading.base is None else str(loading.base),
        "trust_remote_code": loading.trust_remote_code,
        "auto_class": loading.auto_class,
        "tokenized": {prompt: tokenizer(prompt).input_ids for prompt in PROMPTS} if loading.has_code else {},
        "memory": memory,
        "arguments": _with_whole_path(loading.arguments, directory),
    }
    wait = process.ask(request, lean=memory is not None)
    return lambda: load_file(wait())["logits"]


def _with_whole_path(arguments: Mapping[str, str | bool], directory: Path) -> dict[str, str | bool]:
    """Arguments of `from_pretrained` with the whole path of a GGUF file. Of a mere name transformers takes the file in
    the current folder, if there is one, and that may be the base."""
    file = arguments.get("gguf_file")
    return dict(arguments) if file is None else {**arguments, "gguf_file": str((directory / str(file)).absolute())}


def comparison_problems(
    metrics: Mapping[str, Agreement],
    dtype: torch.dtype,
    *,
    exact: bool = True,
    quantized: bool = False,
    requantized: bool = False,
) -> list[str]:
    """What is outside the tolerance, each as a clause without a full stop.

    Args:
        metrics: what `compare` gave.
        dtype: the coarsest dtype of the run-time edit and the stored export.
        exact: whether the export should be the edit, and not only an approximation of it.
        quantized: whether the base is quantized, so that everything is computed with rounding.
        requantized: whether the stored export is quantized, and what it is compared with is not.
    """
    divergence, equal = _TOLERANCES[dtype]
    if quantized or requantized:
        divergence, equal = _QUANTIZED_TOLERANCE
        divergence = max(divergence, _TIMES_ROUNDING * metrics["base_rounding"].mean_divergence)
    if requantized:
        equal = min(equal, 1 - _TIMES_ROUNDING * (1 - metrics["base_rounding"].top1_agreement))
    problems = []
    fold_error = metrics["fold_error"]
    if quantized:
        same = fold_error.mean_divergence <= divergence
    else:
        same = fold_error.relative_logit_difference <= _FOLD_TOLERANCE
    if exact and not same:
        problems.append(
            "what the export computes in memory is not the run-time edit: logits differ by "
            f"{fold_error.relative_logit_difference:.1e} of the largest"
        )
    if (
        not metrics["rounding_error"].mean_divergence <= divergence
        or not metrics["rounding_error"].top1_agreement >= equal
    ):
        problems.append(
            f"the export as stored differs from {'the run-time edit' if exact else 'itself in memory'} by a mean KL of "
            f"{metrics['rounding_error'].mean_divergence:.1e} with {metrics['rounding_error'].top1_agreement:.1%} "
            f"top-1 agreement, where rounding allows {divergence:.1e} and {equal:.0%}"
        )
    if not metrics["effect"].mean_divergence > _NO_OP_DIVERGENCE:
        problems.append(
            "the edit does nothing: its predictions differ from the base's by a mean KL of "
            f"{metrics['effect'].mean_divergence:.1e}. Raise --explained-variance or --strength, or centre "
            "the activations"
        )
    return problems
