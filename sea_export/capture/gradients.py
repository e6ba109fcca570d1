"""Gradients of log-likelihoods with respect to the outputs of edited modules, by one backward pass.

For a text and a weight w the objective is w Σ log p(label | tokens before it), over the scored positions. Its gradient
with respect to the output z of a module is read at every token: that is also the gradient with respect to a bias that
is added to z there. No two texts share a row, so that a batch gives the gradient of each text.

Only what lies above the lowest edited module has a graph. All of it is kept until the backward pass if that takes less
memory than the weights. Otherwise decoder layers are checkpointed: of each layer only its input is kept, and the rest
is computed again, which takes a third longer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sea_export.capture.batching import takes_positions
from sea_export.capture.forward import input_device
from sea_export.capture.scored_texts import ScoredRows, ScoredText, row_batches
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Labels", "OutputGradients", "own_labels", "read_gradients"]

# Relative differences of log-probabilities: more than rounding gives, and far less than a wrong context gives.
_TOLERANCE = 1e-3
_HALF_PRECISION_TOLERANCE = 0.1


@dataclass(frozen=True)
class OutputGradients:
    """What a backward pass gives for one target and some texts.

    Attributes:
        texts: (rows,) indices of the texts. A text may have several rows, all of them in one batch.
        mask: (rows, tokens) bool: the tokens of the texts, a prompt in one of its rows only.
        outputs: (rows, tokens, d) the outputs z of the module, float32.
        gradients: (rows, tokens, d) the gradients of the objective with respect to them, float32; 0 at padding.
    """

    texts: tuple[int, ...]
    mask: Tensor
    outputs: Tensor
    gradients: Tensor


Labels = Callable[[Tensor], Tensor]
"""Gives the labels (n,) of n scored positions, from their log-probabilities (n, vocabulary)."""


def read_gradients(
    model: PreTrainedModel,
    texts: Sequence[ScoredText],
    projections: Sequence[OutputProjection],
    observe: Callable[[Target, OutputGradients], None],
    *,
    batch_tokens: int,
    labels: Labels | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Runs all texts forward and backward, in batches of about equal length.

    Args:
        model: a causal language model. It is put into evaluation mode, and its parameters get no gradients.
        texts: what is scored.
        projections: the output projections of the targets.
        observe: is given the gradients of each target and batch, as soon as they are known.
        batch_tokens: about how many tokens a pass computes.
        labels: gives the labels; None for the texts' own tokens.
        progress: told the number of texts that a batch has finished.
    """
    model.eval()
    device = input_device(model)
    reader = _Reader(observe)
    head = _ScoredPositions()
    packed = _packs(model, texts)
    first = min(one.target.layer for one in projections)
    upper = list(decoder_layers(model)[1])[first:]
    checkpointed = upper if _graph_bytes(model, len(upper), batch_tokens) > _weight_bytes(model) else ()
    with _without_parameter_gradients(model), _checkpointed(checkpointed), ExitStack() as hooks:
        hooks.callback(model.get_output_embeddings().register_forward_pre_hook(head.select).remove)
        for one in projections:
            module = model.get_submodule(one.module_name)
            hooks.callback(module.register_forward_hook(reader.hook(one.target)).remove)
        for batch in row_batches(texts, batch_tokens, packed=packed):
            reader.start(batch, device)
            rows, columns, tokens, weights = batch.scored()
            head.positions = rows, columns
            with torch.enable_grad():
                logits = model(**batch.inputs(device, model.dtype), use_cache=False).logits
                log_probabilities = logits[0].float().log_softmax(-1)
                tokens, weights = tokens.to(logits.device), weights.to(logits.device)
                chosen = tokens if labels is None else labels(log_probabilities.detach())
                (weights * log_probabilities.gather(1, chosen[:, None])[:, 0]).sum().backward()
            reader.end()
            if progress is not None:
                progress(batch.finished)


@torch.no_grad()
def _packs(model: PreTrainedModel, texts: Sequence[ScoredText]) -> bool:
    """Whether completions of one prompt may share a row: tried with the longest text and the shortest one.

    It may not where a token depends on more than the mask and the positions say: in recurrent layers, where distance
    is counted by column, or where a window ends before the prompt does.
    """
    several = [text for text in texts if len(text.completions) > 1]
    if not several or not takes_positions(model):
        return False
    tried = [choose(several, key=lambda text: len(text.prompt) + text.scored_tokens) for choose in (max, min)]

    def log_probabilities(packed: bool) -> Tensor:
        found = {}
        for batch in row_batches(tried, 1, packed=packed):
            logits = model(**batch.inputs(input_device(model), model.dtype), use_cache=False).logits
            rows, columns, tokens, _ = (one.to(logits.device) for one in batch.scored())
            scored = logits[rows, columns].float().log_softmax(-1).gather(1, tokens[:, None])
            # Sorted, because rows of their own come in another order.
            found[batch.texts[0]] = scored.sort(0).values
        return torch.cat([found[index] for index in range(len(tried))])

    apart = log_probabilities(False)
    try:
        together = log_probabilities(True)
    except Exception:  # any architecture may fail in its own way on a mask that it does not expect
        return False
    tolerance = _HALF_PRECISION_TOLERANCE if torch.finfo(model.dtype).bits < 32 else _TOLERANCE
    return bool((together - apart).norm() <= tolerance * apart.norm())


def own_labels(generator: torch.Generator) -> Labels:
    """Labels that are drawn from the model's own distribution, as the Fisher information is defined by them.

    Args:
        generator: what draws them, on the CPU.
    """

    def draw(log_probabilities: Tensor) -> Tensor:
        # By the inverse of the distribution function: one random number a row, and not one for each token.
        cumulative = log_probabilities.exp().cumsum(-1)
        drawn = torch.rand(len(cumulative), 1, generator=generator).to(cumulative) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, drawn, right=True)[:, 0].clamp(max=cumulative.shape[1] - 1)

    return draw


class _ScoredPositions:
    """Has the head compute only the positions that predict a scored token: for a large vocabulary it is the dearest."""

    def __init__(self) -> None:
        self.positions: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def select(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(rows, tokens, d) hidden states become (1, scored, d)."""
        rows, columns = self.positions
        hidden = inputs[0]
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *inputs[1:])


class _Reader:
    """Reads outputs in the forward pass, and their gradients in the backward pass."""

    def __init__(self, observe: Callable[[Target, OutputGradients], None]) -> None:
        self._observe = observe
        self._texts: tuple[int, ...] = ()
        self._mask = self._distinct = torch.empty(0)
        self._anchor: Tensor | None = None

    def start(self, batch: ScoredRows, device: torch.device) -> None:
        """Begins a batch."""
        self._texts = batch.texts
        self._mask, self._distinct = batch.mask().to(device), batch.distinct().to(device)
        self._anchor = torch.zeros((), requires_grad=True)

    def end(self) -> None:
        """Ends a batch."""
        self._anchor = None

    def hook(self, target: Target) -> Callable[[nn.Module, Any, Any], Any]:
        """The forward hook of a target's module."""

        def read(module: nn.Module, inputs: Any, output: Any) -> Any:
            several = isinstance(output, (tuple, list))
            read_output = output[0] if several else output
            assert self._anchor is not None
            # The sum has a gradient even where nothing before it has one.
            z = read_output + self._anchor.to(read_output)
            z.register_hook(functools.partial(self._take, target, z.detach()))
            return type(output)((z, *output[1:])) if several else z

        return read

    def _take(self, target: Target, outputs: Tensor, gradients: Tensor) -> None:
        mask = self._mask.to(gradients.device)
        shape = (*mask.shape, gradients.shape[-1])  # experts see their tokens in one row
        gradients = gradients.float().reshape(shape) * mask[..., None]
        distinct = self._distinct.to(gradients.device)
        self._observe(target, OutputGradients(self._texts, distinct, outputs.float().reshape(shape), gradients))


def _graph_bytes(model: nn.Module, layers: int, tokens: int) -> int:
    """About what so many layers keep of so many tokens: their hidden size some ten times, and as much in the MLP."""
    parameter = next(model.parameters())
    return 20 * layers * tokens * cast("Any", model).config.get_text_config().hidden_size * parameter.element_size()


def _weight_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@contextmanager
def _without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


@contextmanager
def _checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Each call of a layer keeps its inputs only, and is repeated in the backward pass."""
    with ExitStack() as restore:
        for layer in layers:
            restore.callback(layer.__dict__.pop, "forward", None)
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        yield
