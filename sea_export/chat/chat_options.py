"""The options of `sea-export chat`."""

from __future__ import annotations

from dataclasses import dataclass

from sea_export.errors import InputError
from sea_export.evaluation.generation_options import GenerationOptions, template_values
from sea_export.options import FORMATS, ExportOptions, check_strength, check_values, option, same_option

__all__ = ["ChatOptions"]


@dataclass(frozen=True)
class ChatOptions:
    """Which models talk, how, and where."""

    base: str | None = option(
        None, "Hub id, directory or .gguf file of the base; by default the one that the edit or the output names."
    )
    strength: float | None = option(None, "The strength of the edit at the beginning, instead of its own.")
    layers: str | None = option(
        None, "Only these layers of the edit at the beginning: last:K, or a list such as 10-20,25.", metavar="LIST"
    )
    system: str | None = option(None, "The system prompt.", metavar="TEXT")
    template: str = option(
        "auto",
        "How prompts are put; auto: as the tokenizer's chat template says, and as plain text where there is none.",
        ("auto", "chat", "qa", "none"),
    )
    new_tokens: int = option(200, "Longest answer, in tokens.", minimum=1)
    chat_template_kwargs: str | None = same_option(GenerationOptions, "chat_template_kwargs")
    format: str = option(ExportOptions.format, "Form of the outputs that /save writes.", FORMATS)
    web: bool = option(False, "Talk in a web page of this machine, whose address is printed.")
    port: int | None = option(None, "For --web: its port; by default one that is free.", minimum=1, maximum=65535)

    def __post_init__(self) -> None:
        check_values(self)
        template_values(self.chat_template_kwargs)
        if self.strength is not None:
            check_strength(self.strength)
        if self.port is not None and not self.web:
            raise InputError("--port: it is that of the web page. Give --web too, or leave it out.")
