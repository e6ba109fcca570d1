"""Gradients of log-likelihoods with respect to the outputs of edited modules, by one backward pass.

For a text and a weight w the objective is w Σ log p(label | tokens before it), over the scored positions. Its gradient
with respect to the output z of a module is read at every token: that is also the gradient with respect to a bias that
is added to z there. Texts stand in rows of their own, so that a batch gives the gradient of each text.

Only what lies above the lowest edited module has a graph. Decoder layers are checkpointed: of each layer only its input
is kept until the backward pass, and the rest is computed again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sea_export.capture.forward import input_device
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Labels", "OutputGradients", "ScoredText", "own_labels", "read_gradients"]


@dataclass(frozen=True)
class ScoredText:
    """A text, and which of its tokens count.

    Attributes:
        tokens: all of its tokens.
        start: the first token whose log-probability counts, at least 1.
        weight: the factor of the sum of its log-probabilities.
    """

    tokens: Sequence[int]
    start: int
    weight: float


@dataclass(frozen=True)
class OutputGradients:
    """What a backward pass gives for one target and some texts.

    Attributes:
        texts: (rows,) indices of the texts.
        mask: (rows, tokens) bool: which positions are tokens of the text.
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
    first = min(one.target.layer for one in projections)
    upper = list(decoder_layers(model)[1])[first:]
    head = _ScoredPositions()
    with _without_parameter_gradients(model), _checkpointed(upper), ExitStack() as hooks:
        hooks.callback(model.get_output_embeddings().register_forward_pre_hook(head.select).remove)
        for one in projections:
            module = model.get_submodule(one.module_name)
            hooks.callback(module.register_forward_hook(reader.hook(one.target)).remove)
        for indices in _batches(texts, batch_tokens):
            batch = [texts[index] for index in indices]
            ids, mask = _padded(batch)
            reader.start(indices, mask.to(device))
            rows, columns, tokens, weights = _scored(batch)
            head.positions = rows, columns
            with torch.enable_grad():
                logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False).logits
                log_probabilities = logits[0].float().log_softmax(-1)
                tokens, weights = tokens.to(logits.device), weights.to(logits.device)
                chosen = tokens if labels is None else labels(log_probabilities.detach())
                (weights * log_probabilities.gather(1, chosen[:, None])[:, 0]).sum().backward()
            reader.end()
            if progress is not None:
                progress(len(indices))


def own_labels(generator: torch.Generator) -> Labels:
    """Labels that are drawn from the model's own distribution, as the Fisher information is defined by them.

    Args:
        generator: what draws them, on the CPU.
    """

    def draw(log_probabilities: Tensor) -> Tensor:
        drawn = torch.multinomial(log_probabilities.exp().cpu(), 1, generator=generator)[:, 0]
        return drawn.to(log_probabilities.device)

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
        self._mask = torch.empty(0)
        self._anchor: Tensor | None = None

    def start(self, texts: tuple[int, ...], mask: Tensor) -> None:
        """Begins a batch: its texts, and (rows, tokens) which positions are tokens."""
        self._texts, self._mask = texts, mask
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
        self._observe(target, OutputGradients(self._texts, mask, outputs.float().reshape(shape), gradients))


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


def _batches(texts: Sequence[ScoredText], batch_tokens: int) -> Iterator[tuple[int, ...]]:
    """Indices of texts, the longest first, so that a padded batch has about `batch_tokens` tokens."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].tokens), reverse=True)
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // len(texts[order[start]].tokens))
        yield tuple(order[start : start + count])
        start += count


def _padded(texts: Sequence[ScoredText]) -> tuple[Tensor, Tensor]:
    """(rows, tokens) ids, padded on the right with 0, and which of them are tokens."""
    width = max(len(text.tokens) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text.tokens)] = torch.tensor(text.tokens)
        mask[row, : len(text.tokens)] = True
    return ids, mask


def _scored(texts: Sequence[ScoredText]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all scored tokens: the row and the column of the logits that predict it, the token, and the weight."""
    rows, columns, tokens, weights = [], [], [], []
    for row, text in enumerate(texts):
        for position in range(text.start, len(text.tokens)):
            rows.append(row)
            columns.append(position - 1)
            tokens.append(text.tokens[position])
            weights.append(text.weight)
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(tokens), torch.tensor(weights)
