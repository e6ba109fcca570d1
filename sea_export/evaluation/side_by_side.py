"""The same prompts answered by two models, and where the answers differ, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from sea_export.capture.generate import greedy_continuations
from sea_export.demonstrations.tables import read_json_lines, read_table
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TEMPLATES", "Comparison", "Piece", "answer_prompts", "compare_answers", "load_prompts"]

TEMPLATES = ("auto", "chat", "qa", "none")


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer."""

    text: str
    changed: bool
    """Whether the other answer has something else there."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and its two answers, in pieces."""

    prompt: str
    base: tuple[Piece, ...]
    edited: tuple[Piece, ...]

    @property
    def differs(self) -> bool:
        """Whether the two answers differ."""
        return any(piece.changed for piece in (*self.base, *self.edited))


def load_prompts(source: str | None) -> tuple[str, ...]:
    """Reads prompts.

    Args:
        source: a `.txt` file with one prompt a line; a table with a column `prompt` or `question` (see
            `sea_export.demonstrations.tables.read_table`); or None for the built-in ones.

    Raises:
        InputError: the source cannot be read, or there is no prompt in it.
    """
    if source is None:
        with as_file(files("sea_export") / "data" / "prompts.jsonl") as builtin:
            return tuple(row["prompt"] for _, row in read_json_lines(builtin, "built-in prompts"))
    if Path(source).suffix.lower() == ".txt":
        try:
            lines = Path(source).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: it cannot be read as UTF-8 text ({error})") from error
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        _, rows = read_table(source)
        prompts = []
        for where, row in rows:
            prompt = row.get("prompt", row.get("question"))
            if not isinstance(prompt, str) or not prompt.strip():
                raise InputError(f"{where}: there is no text in a column 'prompt' or 'question'")
            prompts.append(prompt)
    if not prompts:
        raise InputError(f"{source}: there are no prompts in it")
    return tuple(prompts)


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    template: str = "auto",
    new_tokens: int = 80,
) -> list[str]:
    """A model's greedy answers.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: texts.
        template: how a prompt is put: `chat`, the tokenizer's own chat template; `qa`, "Q: prompt", a new line, "A:";
            `none`, as it is; `auto`, `chat` where there is a chat template and `qa` elsewhere.
        new_tokens: length of an answer at most, in tokens.

    Raises:
        InputError: the tokenizer's chat template is missing or fails.
    """
    if template == "auto":
        template = "qa" if getattr(tokenizer, "chat_template", None) is None else "chat"
    tokens = [_prompt_tokens(tokenizer, prompt, template) for prompt in prompts]
    answers = greedy_continuations(model, tokens, new_tokens=new_tokens)
    return [str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip() for answer in answers]


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str) -> list[int]:
    if template != "chat":
        plain: list[int] = tokenizer(f"Q: {prompt}\nA:" if template == "qa" else prompt)["input_ids"]
        return plain
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("the tokenizer has no chat template: use --template qa")
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, ValueError) as error:
        raise InputError(f"the tokenizer's chat template fails ({error}): use --template qa") from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def compare_answers(prompt: str, base: str, edited: str) -> Comparison:
    """Finds which words of two answers differ."""
    words = [re.findall(r"\S+\s*", text) for text in (base, edited)]
    bare = [[word.rstrip() for word in own] for own in words]
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    matcher = difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False)
    for kind, *spans in matcher.get_opcodes():
        for own, found, (start, end) in zip(words, pieces, (spans[:2], spans[2:]), strict=True):
            if end > start:
                found.append(Piece("".join(own[start:end]), changed=kind != "equal"))
    return Comparison(prompt, tuple(pieces[0]), tuple(pieces[1]))
