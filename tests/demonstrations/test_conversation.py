"""Conversations as models are given them."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from sea_export.demonstrations.conversation import Conversation, conversation_tokens, uses_roles
from sea_export.errors import InputError
from tests.helpers.messages import naming

SAID = Conversation("Be brief.").with_turn("Is it?", "It is.").with_turn("And that?", "No.")
REFUSES_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ message['content'] }}{% endfor %}"
)


def test_a_chat_template_is_given_every_message(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = (
        "<|system|>Be brief.<|end|>\n<|user|>Is it?<|end|>\n<|assistant|>It is.<|end|>\n"
        "<|user|>And that?<|end|>\n<|assistant|>No.<|end|>\n<|user|>Why?<|end|>\n<|assistant|>"
    )
    for template in ("auto", "chat"):
        assert tokenizer.decode(conversation_tokens(tokenizer, SAID, "Why?", template)) == expected
        assert uses_roles(tokenizer, template)


def test_without_one_the_model_goes_on_with_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    texts = {
        "auto": "Be brief.\nIs it? It is.\nAnd that? No.\nWhy?",
        "none": "Be brief.\nIs it? It is.\nAnd that? No.\nWhy?",
        "qa": "Be brief.\n\nQ: Is it?\nA: It is.\n\nQ: And that?\nA: No.\n\nQ: Why?\nA:",
    }
    for template, expected in texts.items():
        assert plain.decode(conversation_tokens(plain, SAID, "Why?", template)) == expected
        assert not uses_roles(plain, template)
    assert plain.decode(conversation_tokens(plain, Conversation(), "Why?")) == "Why?"


def test_a_template_that_takes_no_system_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    refusing = copy.deepcopy(tokenizer)
    refusing.chat_template = REFUSES_SYSTEM
    with pytest.raises(InputError, match=naming("no system role", "--template qa")):
        conversation_tokens(refusing, SAID, "Why?")
    assert conversation_tokens(refusing, Conversation(), "Why?")
