"""A conversation with one model, and the tokens after which its next answer begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sea_export.demonstrations.chat_template import Message, conversation_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Conversation", "conversation_tokens", "uses_roles"]


@dataclass(frozen=True)
class Conversation:
    """What was said so far.

    Attributes:
        system: the system prompt; empty for none.
        turns: each prompt with its answer.
    """

    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    def with_turn(self, prompt: str, answer: str) -> Conversation:
        """The conversation with one more prompt and its answer."""
        return replace(self, turns=(*self.turns, (prompt, answer)))

    def messages(self, prompt: str) -> tuple[Message, ...]:
        """All messages, of which a new prompt is the last one.

        Args:
            prompt: the new prompt.
        """
        said = [("system", self.system)] if self.system else []
        for own, answer in self.turns:
            said += [("user", own), ("assistant", answer)]
        return tuple({"role": role, "content": content} for role, content in (*said, ("user", prompt)))

    def text(self, prompt: str, template: str) -> str:
        """The conversation as one text that the model goes on with.

        Args:
            prompt: the new prompt.
            template: `qa`, "Q: prompt", a new line, "A: answer"; `none`, each answer behind its prompt.
        """
        question, answered, between = ("Q: {}\nA:", "{} {}", "\n\n") if template == "qa" else ("{}", "{} {}", "\n")
        said = [self.system] if self.system else []
        said += [answered.format(question.format(own), answer) for own, answer in self.turns]
        return between.join((*said, question.format(prompt)))


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    prompt: str,
    template: str = "auto",
    template_values: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a conversation and a new prompt, after which the answer begins.

    Args:
        tokenizer: the tokenizer.
        conversation: what was said before.
        prompt: the new prompt.
        template: how they become text: `chat`, with the chat template of the tokenizer; `qa` or `none`, see
            `Conversation.text`; `auto`, `chat` if there is a chat template and `none` if not.
        template_values: values that the chat template is given, by name.

    Raises:
        InputError: the chat template of the tokenizer is missing or fails.
    """
    if uses_roles(tokenizer, template):
        (text,) = conversation_texts(tokenizer, [conversation.messages(prompt)], template_values)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(conversation.text(prompt, template))["input_ids"])


def uses_roles(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a conversation goes through the chat template of the tokenizer, and is not one text.

    Args:
        tokenizer: the tokenizer.
        template: see `conversation_tokens`.
    """
    return template == "chat" or (template == "auto" and getattr(tokenizer, "chat_template", None) is not None)
