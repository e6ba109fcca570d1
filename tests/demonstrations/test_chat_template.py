"""A chat template is a program of unknown origin: whatever it does, there is a text or one error."""

from __future__ import annotations

import copy
import os
import time

import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from sea_export.demonstrations import limited_run
from sea_export.demonstrations.chat_template import chat_texts
from sea_export.demonstrations.limited_run import Unfinished, run_limited
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.errors import InputError
from tests.helpers.messages import naming

FAILING = {
    "nothing to call": "{{ messages.render() }}",
    "no such part": "{{ messages[7]['content'] }}{{ messages[7].content.x }}",
    "no syntax": "{% for %}",
    "its own refusal": "{{ raise_exception('only system messages') }}",
    "a wrong filter": "{{ 'a' | nosuchfilter }}",
    "half a character": "{{ '\\ud83d' }}",
    "endless mutual recursion": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "more memory than there is": "{{ ('a' * 10**9) ~ ('b' * 10**9) }}",
    "a text beyond all models": "{{ 'a' * 5000000 }}",
    "a number of endless digits": "{{ (10 ** 10) ** (10 ** 8) }}",
    "endless loops over text": "{% set s = 'a' * 3000 %}" + "{% for c in s %}" * 4 + "{% endfor %}" * 4,
}


def with_template(tokenizer: PreTrainedTokenizerFast, template: object) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING.keys())
@pytest.mark.usefixtures("little_memory")
def test_a_template_that_fails_or_never_ends_is_refused(template: str, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("sea_export.demonstrations.chat_template._SECONDS", 1)
    with pytest.raises(InputError, match=naming("--template", "the chat template of the tokenizer fails")) as refused:
        chat_texts(with_template(tokenizer, template), ["Is it?"])
    assert "Choose --template qa." in str(refused.value)


@pytest.mark.parametrize("template", [{"tool_use": "{{ messages[0].content }}"}, ["a"], 3])
def test_a_template_that_is_no_text_is_refused(template: object, tokenizer) -> None:
    with pytest.raises(InputError, match=naming("--template")):
        chat_texts(with_template(tokenizer, template), ["Is it?"])


def test_many_prompts_are_rendered_at_once(tokenizer) -> None:
    templated = with_template(tokenizer, "<{{ messages[0].content }}>{{ extra }}")
    prompts = [f"Is {number} it?" for number in range(200)]
    assert chat_texts(templated, prompts, {"extra": "!"}) == [f"<{prompt}>!" for prompt in prompts]
    assert prompt_tokens(templated, ["Is it?"], "chat", {"extra": ""}) == [
        tokenizer("<Is it?>", add_special_tokens=False).input_ids
    ]


def test_a_limited_run_leaves_no_process_behind(monkeypatch) -> None:
    monkeypatch.setattr(limited_run, "_MEMORY_BYTES", 200_000_000)
    before = psutil.Process().children()
    assert run_limited(lambda: [os.getpid()], 5) != [os.getpid()]
    with pytest.raises(Unfinished, match="KeyError: 'a'"):
        run_limited(lambda: {}["a"], 5)
    with pytest.raises(Unfinished, match="MemoryError"):
        run_limited(lambda: len(bytearray(2_000_000_000)), 5)
    begun = time.monotonic()
    with pytest.raises(Unfinished, match="1 seconds"):
        run_limited(lambda: sum(1 for _ in iter(int, 1)), 1)
    assert time.monotonic() - begun < 60
    assert psutil.Process().children() == before
