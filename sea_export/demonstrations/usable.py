"""Which demonstrations a model can read, found out before it reads any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sea_export.demonstrations.bad_rows import BadRows, UnusableRow
from sea_export.demonstrations.demonstration import Demonstration, without
from sea_export.demonstrations.tokenize import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["usable_demonstrations"]


def usable_demonstrations(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    context_length: int | None,
    skip: bool,
) -> Sequence[Demonstration]:
    """The demonstrations that `sea_export.demonstrations.tokenize.tokenize` takes.

    Args:
        demonstrations: as they were loaded.
        tokenizer: the tokenizer of the model.
        template: see `tokenize`.
        context_length: see `tokenize`.
        skip: whether those that cannot be used are left out, with a warning. Their origin then tells which.

    Raises:
        InputError: see `tokenize`; or fewer than two remain.
    """
    try:
        if demonstrations:
            tokens_of(demonstrations, tokenizer, template, context_length)
        return demonstrations
    except UnusableRow:
        bad, left_out = BadRows(skip=skip), []
    for position, one in enumerate(demonstrations):
        try:
            tokens_of([one], tokenizer, template, context_length)
        except UnusableRow as error:
            bad.add(error)
            left_out.append(position)
    bad.tell("demonstrations", len(demonstrations))
    if len(demonstrations) - len(left_out) < 2:
        bad.fail("demonstrations")
    return without(demonstrations, left_out)
