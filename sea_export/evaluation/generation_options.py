"""The options of commands that let models answer, and of the judge of their answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sea_export.errors import InputError
from sea_export.files.reading import parse_json
from sea_export.options import check_values, option

__all__ = ["GenerationOptions", "JudgeOptions", "template_values"]


@dataclass(frozen=True)
class GenerationOptions:
    """How models answer prompts."""

    new_tokens: int = option(80, "Longest answer, in tokens.", minimum=1)
    chat_template_kwargs: str | None = option(
        None,
        "Values that the chat template is given, such as '{\"enable_thinking\": false}'.",
        metavar="JSON",
    )

    def __post_init__(self) -> None:
        check_values(self)
        template_values(self.chat_template_kwargs)


def template_values(text: str | None) -> dict[str, Any]:
    """The values that `--chat-template-kwargs` gives, by name; none if it is not given.

    Args:
        text: a JSON object, or None.

    Raises:
        InputError: it is no JSON object, or it replaces what the program itself says.
    """
    if text is None:
        return {}
    try:
        found = parse_json(text.encode())
    except ValueError as error:
        raise InputError(f"--chat-template-kwargs: it is not JSON ({error}). Give a JSON object.") from error
    if not isinstance(found, dict):
        raise InputError("--chat-template-kwargs: it is JSON, but no object. Give one, such as '{\"name\": false}'.")
    own = {"conversation", "messages", "tokenize", "add_generation_prompt", "return_tensors", "return_dict"}
    if taken := sorted(own & found.keys()):
        raise InputError(f"--chat-template-kwargs: {taken[0]} is set by the program. Leave it out.")
    return found


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges answers."""

    judge: str | None = option(
        None,
        "Who judges the answers of truthfulqa-generation: a local directory, a .gguf file or a Hub id; with "
        "--judge-url, the name of a model there.",
        metavar="MODEL",
    )
    judge_url: str | None = option(
        None,
        "OpenAI-compatible address of the judge, such as http://localhost:8000/v1. The key comes from the environment "
        "(SEA_EXPORT_JUDGE_KEY, or else OPENAI_API_KEY).",
        metavar="URL",
    )
    judge_cache: Path | None = option(
        None,
        "Append each verdict to this JSONL file, and ask only for those that it does not have; by default "
        "beside --json, with the ending .verdicts.jsonl.",
        path="file",
    )

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("judge_url", "judge_cache"):
            if getattr(self, name) is not None and self.judge is None:
                raise InputError(f"--{name.replace('_', '-')}: it goes with --judge only. Name the judge's model.")
        if self.judge_url is not None:
            address = _split(self.judge_url)
            if address is None or address.scheme not in ("http", "https") or not address.hostname:
                raise InputError("--judge-url: it is no address. Give one such as http://localhost:8000/v1.")
            if address.username or address.password or address.query:
                raise InputError(
                    "--judge-url: it has a password or a query in it. Give the address alone, and the key in "
                    "SEA_EXPORT_JUDGE_KEY."
                )


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:
        return None
