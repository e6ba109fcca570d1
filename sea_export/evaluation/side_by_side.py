"""The same prompts answered by two models, and the words in which the answers differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from sea_export.capture.generate import greedy_continuations
from sea_export.demonstrations.tables import read_json_lines, read_table
from sea_export.errors import InputError, first_line
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.evaluation.loaded_model import open_loaded_model
from sea_export.files.writing import check_directory
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Comparison",
    "ModelComparison",
    "Piece",
    "answer_prompts",
    "compare_answers",
    "compare_models",
    "load_prompts",
    "prompt_tokens",
]


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str
    changed: bool
    """Whether the other answer has other words there."""


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


@dataclass(frozen=True)
class ModelComparison:
    """The answers of a base and of an edited model to the same prompts.

    Attributes:
        base: the name of the base.
        edited: the name of the edited model.
        answers: one for each prompt.
    """

    base: str
    edited: str
    answers: tuple[Comparison, ...]


def compare_models(
    base: str,
    edited: str,
    options: CompareOptions,
    run: RunOptions,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> ModelComparison:
    """Answers the same prompts with two models, one after the other.

    Args:
        base: a Hub id, a directory, or a `.gguf` file.
        edited: the same; also an export of any format.
        options: the prompts, and how they are answered. The page that they name is checked, but not written.
        run: how the models are opened.
        waiting: is told what goes on; its context is open meanwhile.

    Raises:
        InputError: a model, the prompts or the page is not usable.
    """
    if options.html is not None:
        check_directory(options.html)
    prompts = list(options.own_prompts)
    if options.prompts is not None or not prompts:
        prompts += load_prompts(options.prompts)
    answers: list[list[str]] = []
    names: list[str] = []
    for model in (base, edited):
        with open_loaded_model(model, run) as loaded, waiting(f"{loaded.name} answers"):
            names.append(loaded.name)
            answers.append(
                answer_prompts(
                    loaded.model,
                    loaded.tokenizer,
                    prompts,
                    template=options.template,
                    new_tokens=options.new_tokens,
                )
            )
    compared = tuple(compare_answers(*row) for row in zip(prompts, *answers, strict=True))
    return ModelComparison(base=names[0], edited=names[1], answers=compared)


def load_prompts(source: str | None) -> tuple[str, ...]:
    """Reads prompts.

    Args:
        source: a `.txt` file with one prompt per line; a table with a column `prompt` or `question` (see
            `sea_export.demonstrations.tables.read_table`); or None for the built-in ones.

    Raises:
        InputError: the source cannot be read, or has no prompt.
    """
    if source is None:
        with as_file(files("sea_export") / "data" / "prompts.jsonl") as builtin:
            return tuple(row["prompt"] for _, row in read_json_lines(builtin, "built-in prompts"))
    if Path(source).suffix.lower() == ".txt":
        try:
            lines = Path(source).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: it cannot be read as UTF-8 text ({error}). Give another file.") from error
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        _, rows = read_table(source)
        prompts = []
        for where, row in rows:
            prompt = row.get("prompt", row.get("question"))
            if not isinstance(prompt, str) or not prompt.strip():
                raise InputError(
                    f"{where}: it has no text in a column 'prompt' or 'question'. Add it, or remove the row."
                )
            prompts.append(prompt)
    if not prompts:
        raise InputError(f"{source}: it has no prompts. Give at least one.")
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
        template: how a prompt becomes text: `chat`, with the chat template of the tokenizer; `qa`, "Q: prompt", a new
            line, "A:"; `none`, as it is; `auto`, `chat` if there is a chat template and `qa` if not.
        new_tokens: the largest length of an answer, in tokens.

    Raises:
        InputError: the chat template of the tokenizer is missing or fails.
    """
    if template == "auto":
        template = "qa" if getattr(tokenizer, "chat_template", None) is None else "chat"
    tokens = [prompt_tokens(tokenizer, prompt, template) for prompt in prompts]
    answers = greedy_continuations(model, tokens, new_tokens=new_tokens)
    return [str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip() for answer in answers]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str) -> list[int]:
    """A prompt as tokens, ready to be answered.

    Args:
        tokenizer: the tokenizer.
        prompt: the prompt.
        template: `chat`, `qa` or `none`: see `answer_prompts`.

    Raises:
        InputError: the chat template of the tokenizer is missing or fails.
    """
    if template != "chat":
        plain: list[int] = tokenizer(f"Q: {prompt}\nA:" if template == "qa" else prompt)["input_ids"]
        return plain
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("--template: the tokenizer has no chat template. Choose --template qa.")
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, ValueError) as error:
        raise InputError(
            f"--template: the chat template of the tokenizer fails ({first_line(error)}). Choose --template qa."
        ) from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def compare_answers(prompt: str, base: str, edited: str) -> Comparison:
    """Finds the words in which two answers differ."""
    words = [re.findall(r"\S+\s*", text) for text in (base, edited)]
    bare = [[word.rstrip() for word in own] for own in words]
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    matcher = difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False)
    for kind, *spans in matcher.get_opcodes():
        for own, found, (start, end) in zip(words, pieces, (spans[:2], spans[2:]), strict=True):
            if end > start:
                found.append(Piece("".join(own[start:end]), changed=kind != "equal"))
    return Comparison(prompt, tuple(pieces[0]), tuple(pieces[1]))
