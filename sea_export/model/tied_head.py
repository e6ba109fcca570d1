"""The head of a language model that has the weight of its embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["tied_head"]


def tied_head(model: PreTrainedModel) -> str | None:
    """The name of the weight of the head, if it is that of the embedding; None if the head has its own.

    Args:
        model: the model, on any device (`meta` included).

    Raises:
        InputError: something else than the head shares the weight of the embedding, or the head has no weight.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    parameters = list(model.named_parameters(remove_duplicate=False))
    own = [name for name, parameter in parameters if parameter is embedding.weight]
    heads = [name for name, parameter in parameters if head is not None and parameter is getattr(head, "weight", None)]
    names = {name for name, module in model.named_modules() if module is embedding}
    shared = [name for name in own if name.rpartition(".")[0] not in names]
    if not set(shared) <= set(heads) or len(shared) > 1:
        raise InputError(
            f"{shared[0]}: it shares the weight of the embedding, and an edit of one would edit both. Leave the "
            "embedding out of the edit."
        )
    return shared[0] if shared else None
