"""A chat with a base and its edit: both answer, each with its own history, and what is tried can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.chat.chat_options import ChatOptions
from sea_export.chat.chat_session import ChatSession, open_chat
from sea_export.chat.chat_source import find_chat_source
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.answering import answer_prompts
from sea_export.files.digests import file_digests
from sea_export.model.run_options import RunOptions
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit
from tests.helpers.tiny_models import END, hook_count

LENGTH = 6
PROMPT, NEXT = "Is the moon made of rock?", "What boils?"


@pytest.fixture(scope="module")
def edit(llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit]) -> SpectralEdit:
    return fit_tiny(llama)


@pytest.fixture(scope="module")
def edit_directory(edit: SpectralEdit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat") / "edit"
    edit.save(directory)
    return directory


@pytest.fixture
def open_session(edit_directory: Path, tiny_checkpoint: Path) -> Iterator[Callable[..., ChatSession]]:
    """Opens a session with some options."""
    contexts = []

    def opened(**options: object) -> ChatSession:
        chat = ChatOptions(base=str(tiny_checkpoint), **{"new_tokens": LENGTH, **options})
        run = RunOptions(dtype="float32")
        contexts.append(open_chat(find_chat_source(str(edit_directory), chat, run), chat, run))
        return contexts[-1].__enter__()

    yield opened
    for context in contexts:
        context.__exit__(None, None, None)


def go_on(side: str, text: str) -> bool:
    return True


def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, edit: SpectralEdit, text: str
) -> tuple[str, str]:
    """What a base and its edit answer to a text that has the chat template's marks already."""
    how = {"template": "none", "new_tokens": LENGTH}
    (base,) = answer_prompts(model, tokenizer, [text], **how)
    with edit.apply(model):
        (edited,) = answer_prompts(model, tokenizer, [text], **how)
    return base.text, edited.text


def test_each_remembers_its_own_answers(
    open_session: Callable[..., ChatSession],
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    edit: SpectralEdit,
) -> None:
    session = open_session(system="Be brief.")
    first, second = session.ask(PROMPT, go_on), session.ask(NEXT, go_on)
    assert first is not None
    assert second is not None
    begin = f"<|system|>Be brief.<|end|>\n<|user|>{PROMPT}<|end|>\n<|assistant|>"
    assert (first.base.text, first.edited.text) == by_hand(llama, tokenizer, edit, begin)
    assert first.base != first.edited
    then = f"<|end|>\n<|user|>{NEXT}<|end|>\n<|assistant|>"
    base, _ = by_hand(llama, tokenizer, edit, f"{begin}{first.base.text}{then}")
    _, edited = by_hand(llama, tokenizer, edit, f"{begin}{first.edited.text}{then}")
    assert (second.base.text, second.edited.text) == (base, edited)
    assert session.turns == (first, second)
    session.reset()
    again = session.ask(PROMPT, go_on)
    assert again == first


def test_the_strength_and_the_layers_of_the_moment(
    open_session: Callable[..., ChatSession],
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    edit: SpectralEdit,
) -> None:
    session = open_session()
    text = f"<|user|>{PROMPT}<|end|>\n<|assistant|>"
    found = {}
    for strength, layers in ((None, None), (0.4, None), (3.0, None), (3.0, "2"), (0.0, None)):
        session.reset()
        session.setting = session.setting.at_strength(strength).in_layers(layers)
        turn = session.ask(PROMPT, go_on)
        assert turn is not None
        expected = edit if strength is None else edit.with_strength(strength)
        if layers is not None:
            expected = SpectralEdit({target: edits for target, edits in expected.layers.items() if target.layer == 2})
        assert (turn.base.text, turn.edited.text) == by_hand(llama, tokenizer, expected, text)
        found[strength, layers] = turn.edited.text
        base = turn.base.text
    assert found[0.0, None] == base
    assert found[3.0, None] not in (found[None, None], found[3.0, "2"], base)
    assert hook_count(session._loaded.model) == 0, "the edit is applied only while it answers"


def test_asking_again_changes_the_edited_answer_alone(open_session: Callable[..., ChatSession]) -> None:
    session = open_session()
    with pytest.raises(InputError, match="no prompt"):
        session.ask_again(go_on)
    first = session.ask(PROMPT, go_on)
    session.setting = session.setting.at_strength(3.0)
    heard = []
    again = session.ask_again(lambda side, text: heard.append(side) or True)
    assert first is not None
    assert again is not None
    assert set(heard) == {"edited"}, "an answer that cannot differ is not computed again"
    assert again.base == first.base
    assert again.edited != first.edited
    assert session.turns == (again,)
    session.set_system("Be brief.")
    other = session.ask_again(lambda side, text: heard.append(side) or True)
    assert other is not None
    assert "base" in heard, "another system prompt may change it"


@pytest.mark.parametrize("side", ["base", "edited"])
def test_a_stopped_turn_is_not_kept(side: str, open_session: Callable[..., ChatSession]) -> None:
    session = open_session()
    grown: dict[str, list[str]] = {"base": [], "edited": []}

    def stop_early(own: str, text: str) -> bool:
        grown[own].append(text)
        return own != side or len(grown[own]) < 2

    assert session.ask(PROMPT, stop_early) is None
    assert session.turns == ()
    assert len(grown[side]) == 2
    assert len(grown["base"]) == (2 if side == "base" else LENGTH)
    turn = session.ask(PROMPT, go_on)
    assert turn is not None
    assert turn.base.text.startswith(grown["base"][0])


def test_marks_of_answers(open_session: Callable[..., ChatSession], edit: SpectralEdit) -> None:
    session = open_session(new_tokens=40)
    turn = session.ask(PROMPT, go_on)
    assert turn is not None
    assert "cut off" in turn.base.marks
    session._loaded.model.generation_config.eos_token_id = [END, turn.base.tokens[3]]
    session.reset()
    session._base_answer = None
    turn = session.ask(PROMPT, go_on)
    assert turn is not None
    assert "cut off" not in turn.base.marks


def test_what_cannot_be_asked(open_session: Callable[..., ChatSession]) -> None:
    session = open_session()
    for prompt in ("", "  ", "half \ud800"):
        with pytest.raises(InputError, match="the prompt"):
            session.ask(prompt, go_on)
    with pytest.raises(InputError, match=naming("--system")):
        session.set_system("half \ud800")
    for wrong, fact in ((float("nan"), "--strength"), (1e31, "--strength")):
        with pytest.raises(InputError, match=naming(fact)):
            session.setting.at_strength(wrong)
    for wrong in ("0", "7", "third", "signature:2"):
        with pytest.raises(InputError, match=naming("--layers", wrong)):
            session.setting.in_layers(wrong)


def test_a_conversation_that_is_too_long(tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The model has 256 positions. An answer gets what is left of them."""
    spectral_edit(MLP_TARGETS).save(tmp_path / "edit")
    options, run = ChatOptions(base=str(tiny_checkpoint_of("gpt2")), new_tokens=8), RunOptions()
    with open_chat(find_chat_source(str(tmp_path / "edit"), options, run), options, run) as session:
        turn = session.ask("a" * 248, go_on)
        assert turn is not None
        assert len(turn.base.tokens) == 256 - 248 - 4
        assert "cut off" in turn.base.marks
        for prompt in ("a", "a" * 252):
            with pytest.raises(InputError, match=naming("256")):
                session.ask(prompt, go_on)
        session.reset()
        with pytest.raises(InputError, match=naming("256")):
            session.ask("a" * 252, go_on)


@pytest.mark.parametrize(("strength", "layers"), slow_but([(0.6, "last:2")], [(None, None), (0.6, "last:2")]))
def test_saving_gives_what_save_gives(
    strength: float | None,
    layers: str | None,
    open_session: Callable[..., ChatSession],
    edit: SpectralEdit,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    session = open_session()
    session.setting = session.setting.at_strength(strength).in_layers(layers)
    session.ask(PROMPT, go_on)
    saved = session.save(tmp_path / "tried")
    expected = edit if strength is None else edit.with_strength(strength)
    if layers is not None:
        expected = expected.only((2, 3))
    sea_export.save(expected, tiny_checkpoint, tmp_path / "baked")
    digests = file_digests(tmp_path / "tried")
    assert digests == file_digests(tmp_path / "baked")
    assert saved.digests == {"model.safetensors": digests["model.safetensors"]}
    assert session.ask(NEXT, go_on) is not None


def test_where_the_edit_and_its_base_are_found(edit_directory: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    edit = SpectralEdit.load(edit_directory)
    for format in ("merged", "adapter"):
        sea_export.save(edit, tiny_checkpoint, tmp_path / format, format=format, verify=False)
    run = RunOptions()
    assert find_chat_source(str(tmp_path / "adapter"), ChatOptions(), run).base == str(tiny_checkpoint)
    named = ChatOptions(base=str(tiny_checkpoint))
    assert find_chat_source(str(tmp_path / "merged"), named, run).name == "merged"
    for given, options, facts in (
        (tmp_path / "merged", ChatOptions(), ("--base", tiny_checkpoint.name)),
        (tiny_checkpoint, named, (tiny_checkpoint, "--base")),
        (tmp_path / "missing", named, ("missing",)),
        (edit_directory, ChatOptions(base=str(edit_directory)), (edit_directory,)),
        (edit_directory, ChatOptions(base=str(tmp_path / "missing")), ("missing",)),
        (edit_directory, ChatOptions(base=str(tiny_checkpoint), layers="0"), ("--layers",)),
    ):
        with pytest.raises(InputError, match=naming(*facts)):
            find_chat_source(str(given), options, run)
    with pytest.raises(InputError, match=naming("--layerwise")):
        find_chat_source(str(edit_directory), named, RunOptions(layerwise=True))


def test_an_edit_without_a_dial(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spectral_edit(MLP_TARGETS, normalization="calibrated").save(tmp_path / "edit")
    options, run = ChatOptions(base=str(tiny_checkpoint), new_tokens=3), RunOptions()
    with open_chat(find_chat_source(str(tmp_path / "edit"), options, run), options, run) as session:
        assert session.ask(PROMPT, go_on) is not None
        with pytest.raises(InputError, match=naming("--strength")):
            session.setting.at_strength(0.5)
