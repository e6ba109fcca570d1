"""Prompts and completions as token ids, so that the tokens of a prompt are the same whatever follows.

Demonstrations are put into a template first; benchmarks write their prompts themselves.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.demonstrations.bad_rows import UnusableRow
from sea_export.demonstrations.chat_template import chat_texts
from sea_export.demonstrations.primer import QA_PRIMER
from sea_export.errors import InputError, refused_by_library

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sea_export.demonstrations.demonstration import Demonstration

__all__ = [
    "TEMPLATES",
    "TokenizedDemonstration",
    "tokenize",
    "tokenize_completions",
    "tokenize_text",
    "tokens_of",
]

TEMPLATES = ("qa", "primer", "chat", "none")

_ADVICE = "Choose --template qa."

# Takes the position of a prompt while the chat template's own text around it is found. No template contains it, because
# its first and last character are of Unicode's private use area.
_PLACEHOLDER = "\ue000prompt\ue000"

# A pattern that finds nothing.
_NOTHING = re.compile(r"(?!)")

logger = logging.getLogger(__name__)

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class TokenizedDemonstration:
    """A demonstration as token ids: a model reads ``prompt + positive`` and ``prompt + negative``.

    Attributes:
        prompt: tokens of the prompt in its template; at least one.
        positive: tokens of the positive completion alone; at least one.
        negative: tokens of the negative completion alone; at least one.
        source: where the demonstration was read, for messages.
    """

    prompt: Tokens
    positive: Tokens
    negative: Tokens
    source: str


@dataclass(frozen=True)
class _Piece:
    """Text that is tokenized on its own. Only in markup is what is spelt like a special token one."""

    text: str
    markup: bool = False


Pieces = tuple[_Piece, ...]


def tokenize(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "qa",
    context_length: int | None = None,
) -> tuple[TokenizedDemonstration, ...]:
    """Puts demonstrations into a template and tokenizes them.

    Prompt and completion are tokenized as one text, and the completion is what comes after the tokens of the prompt. If
    the tokenizer merges characters of both into one token, the completion is tokenized on its own. Text of a
    demonstration that is spelt like a special token stays text.

    Args:
        demonstrations: the demonstrations.
        tokenizer: the tokenizer of the model.
        template: ``qa``: "Q: <prompt>", a new line, "A: <completion>"; ``primer``: the same after six answered
            questions (`QA_PRIMER`); ``chat``: the tokenizer's own chat template, up
            to where the assistant answers; ``none``: the prompt as it is. In ``qa`` and ``none`` a space comes before a
            completion unless there is whitespace already. The text begins with the special tokens that the tokenizer
            puts before a text, and it never ends with one.
        context_length: the longest text that the model reads, in tokens. A longer one loses the end of its completion.
            None means any length.

    Returns:
        The tokenized demonstrations, in the same order.

    Raises:
        InputError: the template is unknown, the tokenizer has no usable chat template, a prompt or a completion has no
            tokens, a prompt leaves no room for its completions, or two completions have equal tokens.
    """
    if not demonstrations:
        return ()
    whole, fitted = tokens_of(demonstrations, tokenizer, template, context_length)
    shortened = sum(one != before for one, before in zip(fitted, whole, strict=True))
    if shortened:
        message = "demonstrations: %d of %d do not fit into a context of %d tokens and lose the end of a completion."
        logger.warning(message, shortened, len(fitted), context_length)
    return fitted


def tokens_of(
    demonstrations: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    context_length: int | None,
) -> tuple[list[TokenizedDemonstration], tuple[TokenizedDemonstration, ...]]:
    """`tokenize` without a warning.

    Args:
        demonstrations: at least one.
        tokenizer: see `tokenize`.
        template: see `tokenize`.
        context_length: see `tokenize`.

    Returns:
        The tokenized demonstrations, as they are and cut to the context.

    Raises:
        UnusableRow: one of them cannot be used.
        InputError: see `tokenize`.
    """
    if template not in TEMPLATES:
        raise InputError(f"--template: {template!r} is unknown. Choose one of {', '.join(TEMPLATES)}.")
    special = _special_tokens(tokenizer)
    prompts = _in_template(tokenizer, template, demonstrations, special)
    prompt_tokens = _encode(tokenizer, prompts)
    leading = () if template == "chat" else _leading_tokens(tokenizer, prompts[0])

    def completion_tokens(completions: list[str]) -> list[Tokens]:
        if template != "chat":
            completions = [_separated(*pair) for pair in zip(prompts, completions, strict=True)]
        return _encode_completions(tokenizer, special, prompts, prompt_tokens, completions)

    positive = completion_tokens([one.positive for one in demonstrations])
    negative = completion_tokens([one.negative for one in demonstrations])
    tokens = zip(prompt_tokens, positive, negative, demonstrations, strict=True)
    whole = [TokenizedDemonstration(leading + prompt, yes, no, one.source) for prompt, yes, no, one in tokens]
    return whole, tuple(_fitted(one, context_length) for one in whole)


def _fitted(demonstration: TokenizedDemonstration, context_length: int | None) -> TokenizedDemonstration:
    """The demonstration, cut to the context length. Raises UnusableRow if it cannot be used then."""
    source, prompt = demonstration.source, demonstration.prompt
    if not (prompt and demonstration.positive and demonstration.negative):
        raise UnusableRow(
            f"{source}: its prompt or a completion has no tokens, because the tokenizer does not know its text. Change "
            "it or remove the row."
        )
    room = None if context_length is None else context_length - len(prompt)
    if room is not None and room < 1:
        raise UnusableRow(
            f"{source}: its prompt has {len(prompt)} tokens and leaves no room for a completion of "
            f"{len(demonstration.positive)} in a context of {context_length}. Shorten the prompt or remove the row."
        )
    positive, negative = demonstration.positive[:room], demonstration.negative[:room]
    if positive == negative:
        cut = f" once cut to a context of {context_length}" if demonstration.positive != demonstration.negative else ""
        raise UnusableRow(f"{source}: its two completions have the same tokens{cut}. Change one or remove the row.")
    return TokenizedDemonstration(prompt, positive, negative, source)


# Templates


def tokenize_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completions: Sequence[str]
) -> tuple[Tokens, list[Tokens]]:
    """Tokenizes a prompt and texts that may follow it, as `tokenize` does without a template.

    Args:
        tokenizer: the tokenizer of the model.
        prompt: text, not empty. The special tokens that the tokenizer puts before a text are put before it.
        completions: texts, each with the space that separates it from the prompt.

    Returns:
        The tokens of the prompt, and those of each completion alone.

    Raises:
        InputError: the tokenizer's special tokens cannot be told apart from the text around them.
    """
    text: Pieces = (_Piece(prompt),)
    (tokens,) = _encode(tokenizer, [text])
    count = len(completions)
    following = _encode_completions(tokenizer, _NOTHING, [text] * count, [tokens] * count, completions)
    return _leading_tokens(tokenizer, text) + tokens, following


def tokenize_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Tokens, Tokens]:
    """Tokenizes a text by itself. What is spelt like a special token stays text.

    Args:
        tokenizer: the tokenizer of the model.
        text: the text.

    Returns:
        The special tokens that the tokenizer puts before a text, perhaps none, and the tokens of the text.

    Raises:
        InputError: the tokenizer's special tokens cannot be told apart from the text around them.
    """
    pieces: Pieces = (_Piece(text),)
    (tokens,) = _encode(tokenizer, [pieces])
    return _leading_tokens(tokenizer, pieces), tokens


def _in_template(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    demonstrations: Sequence[Demonstration],
    special: re.Pattern[str],
) -> list[Pieces]:
    """The prompts of demonstrations in a template."""
    if template == "chat":
        return _in_chat_template(tokenizer, demonstrations, special)
    before, after = {"qa": ("Q: ", "\nA:"), "primer": (f"{QA_PRIMER}Q: ", "\nA:"), "none": ("", "")}[template]
    return [(_Piece(f"{before}{one.prompt}{after}"),) for one in demonstrations]


def _in_chat_template(
    tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration], special: re.Pattern[str]
) -> list[Pieces]:
    """The prompts of demonstrations in the tokenizer's chat template."""
    placed, *texts = chat_texts(tokenizer, [_PLACEHOLDER, *(one.prompt for one in demonstrations)])
    before, found, after = placed.partition(_PLACEHOLDER)
    if not found:
        raise InputError(f"--template: the chat template does not repeat the question. {_ADVICE}")

    def in_template(demonstration: Demonstration, text: str) -> Pieces:
        if not special.search(demonstration.prompt):
            return (_Piece(text, markup=True),)
        # The prompt is what is between the template's own words, because many templates trim it.
        prompt = text[len(before) : len(text) - len(after)]
        if before + prompt + after != text:
            raise UnusableRow(
                f"{demonstration.source}: its prompt contains text that is spelt like a special token, and cannot be "
                f"told apart from the chat template's own text. {_ADVICE}"
            )
        return _Piece(before, markup=True), _Piece(prompt), _Piece(after, markup=True)

    return [in_template(*pair) for pair in zip(demonstrations, texts, strict=True)]


def _separated(prompt: Pieces, completion: str) -> str:
    """The completion after a space, unless whitespace separates it from the prompt already."""
    return completion if prompt[-1].text[-1].isspace() or completion[0].isspace() else f" {completion}"


# Tokens


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern that finds what is spelt like a special token."""
    spellings = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, spellings))) if spellings else _NOTHING


def _leading_tokens(tokenizer: PreTrainedTokenizerBase, example: Pieces) -> Tokens:
    """The special tokens that the tokenizer puts before a text, without those that it puts after it."""
    (piece,) = example
    (plain,) = _encode(tokenizer, [example])
    whole = tuple(tokenizer(piece.text, split_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise InputError(
        "the tokenizer: its special tokens cannot be told apart from the text around them. Use --template chat for "
        "demonstrations, or another tokenizer."
    )


def _encode_completions(
    tokenizer: PreTrainedTokenizerBase,
    special: re.Pattern[str],
    prompts: Sequence[Pieces],
    prompt_tokens: Sequence[Tokens],
    completions: Sequence[str],
) -> list[Tokens]:
    """The tokens of completions: what follows the prompt's tokens in both together, or those of the completion alone.

    Args:
        tokenizer: the tokenizer of the model.
        special: finds what is spelt like a special token.
        prompts: the prompt of each completion.
        prompt_tokens: the tokens of each of these prompts.
        completions: the completions.
    """
    whole = _encode(tokenizer, [_continued(*pair, special) for pair in zip(prompts, completions, strict=True)])
    alone = _encode(tokenizer, [(_Piece(completion),) for completion in completions])
    return [
        tokens[len(prompt) :] if tokens[: len(prompt)] == prompt else own
        for prompt, tokens, own in zip(prompt_tokens, whole, alone, strict=True)
    ]


def _continued(prompt: Pieces, completion: str, special: re.Pattern[str]) -> Pieces:
    """Prompt and completion as one text, unless part of the completion would become a special token there."""
    *before, last = prompt
    if last.markup and special.search(completion):
        return *prompt, _Piece(completion)
    return *before, _Piece(last.text + completion, last.markup)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Pieces]) -> list[Tokens]:
    """The tokens of every text, without special tokens around it. Equal pieces are tokenized once."""
    tokens: dict[_Piece, Tokens] = {}
    for markup in (False, True):
        pieces = list({piece: None for text in texts for piece in text if piece.markup == markup})
        if pieces:
            with refused_by_library("the tokenizer: it fails on a text", "Get the files of the tokenizer again."):
                batch = tokenizer(
                    [piece.text for piece in pieces],
                    add_special_tokens=False,
                    split_special_tokens=not markup,
                    return_attention_mask=False,
                    verbose=False,
                )
            tokens |= {piece: tuple(ids) for piece, ids in zip(pieces, batch["input_ids"], strict=True)}
    return [tuple(token for piece in text for token in tokens[piece]) for text in texts]
