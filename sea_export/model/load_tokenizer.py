"""The tokenizer of a model, after a check that it is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, refused_by_library
from sea_export.files.reading import read_json_object
from sea_export.model.pretrained import from_pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]

_PROPERTIES = {"tokenizer_config.json": None, "special_tokens_map.json": None, "tokenizer.json": "added_tokens"}
"""Where tokens have properties: the files, and the entry in each; None for the whole file."""
_TOKENIZED = "Q: Is 3 × 7 ≠ 20?\nA: Yes, it is."
"""What every tokenizer is tried on before it is used."""


def load_tokenizer(
    directory: Path, name: str, config: PretrainedConfig, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Args:
        directory: the directory of the checkpoint.
        name: the name of the model, for messages.
        config: the config of the model, which may decide the class of the tokenizer.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: there is none, it cannot be loaded, or it cannot tokenize.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    remedy = "Get the files of the tokenizer again."
    _check_names(directory, remedy)
    with refused_by_library(f"{name}: its tokenizer cannot be loaded", remedy):
        tokenizer = from_pretrained(
            AutoTokenizer, directory, trust_remote_code=trust_remote_code, arguments={"config": config}
        )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError(
                f"{name}: its tokenizer_config.json names {type(tokenizer).__name__}, which is no tokenizer. {remedy}"
            )
        _check_tokenizer(tokenizer)
        return tokenizer


def _check_names(directory: Path, remedy: str) -> None:
    """Refuses names that would command a terminal: the tokenizers library prints those that it does not know."""
    for name, entry in _PROPERTIES.items():
        file = directory / name
        if file.exists():
            stated = read_json_object(file)
            wrong = [key for key in _keys(stated if entry is None else stated.get(entry)) if not key.isprintable()]
            if wrong:
                raise InputError(f"{file}: it has a property named {wrong[0]!r}. {remedy}")


def _keys(value: Any) -> Iterator[str]:
    """The keys of all objects of a JSON value."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            yield from one
            rest += one.values()
        elif isinstance(one, list):
            rest += one


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Uses a tokenizer once in every way in which it is used later. Raises any exception if it cannot be used."""
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ValueError(f"its model_max_length is {tokenizer.model_max_length!r}")
    _ = tokenizer.added_tokens_decoder
    for options in ({}, {"add_special_tokens": False}, {"split_special_tokens": True}):
        tokens = tokenizer(_TOKENIZED, verbose=False, **options)["input_ids"]
        if not all(isinstance(token, int) and token >= 0 for token in tokens):
            raise ValueError(f"it makes {str(tokens)[:40]} of a text")
        str(tokenizer.decode(tokens, skip_special_tokens=True)).encode()
