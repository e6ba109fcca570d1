"""A conversation with a base and with its edit: each prompt is answered by both, and each remembers its own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sea_export.chat.chat_options import ChatOptions
from sea_export.chat.chat_source import ChatSource
from sea_export.chat.edit_setting import EditSetting
from sea_export.chat.saved_setting import SavedSetting, save_setting
from sea_export.demonstrations.conversation import Conversation, conversation_tokens, uses_roles
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.answering import Answer, answer_tokens
from sea_export.evaluation.generation_options import template_values
from sea_export.evaluation.loaded_model import LoadedModel, open_loaded_model
from sea_export.evaluation.run_time_edit import warn_of_other_base
from sea_export.model.architecture import find_output_projections
from sea_export.model.run_options import RunOptions
from sea_export.text import is_text, is_utf8

__all__ = ["ChatSession", "Turn", "Watch", "open_chat"]

Watch = Callable[[str, str], bool]
"""Told `base` or `edited` and the text of its answer after each token; it says whether another token is wanted."""


@dataclass(frozen=True)
class Turn:
    """A prompt and its two answers.

    Attributes:
        prompt: the prompt.
        base: the answer of the base.
        edited: the answer of the edited model.
        setting: the strength and the layers of the edit, in words.
    """

    prompt: str
    base: Answer
    edited: Answer
    setting: str


class ChatSession:
    """The model in memory, the edit as it is tried at the moment, and what was said."""

    def __init__(
        self, loaded: LoadedModel, setting: EditSetting, source: ChatSource, options: ChatOptions, run: RunOptions
    ) -> None:
        """A session without a turn.

        Args:
            loaded: the base.
            setting: the edit as it is tried first.
            source: where both come from.
            options: how they talk.
            run: how the base is opened.

        Raises:
            InputError: the edit is not one of this model.
        """
        self._loaded, self.source, self._options, self._run = loaded, source, options, run
        self._projections = find_output_projections(loaded.model, setting.fitted.targets)
        setting.fitted.check_sizes(self._projections)
        self._base_answer: tuple[list[int], Answer] | None = None
        self.setting = setting
        self.system = options.system or ""
        self.turns: tuple[Turn, ...] = ()

    @property
    def base_name(self) -> str:
        """What the base is called."""
        return self._loaded.name

    @property
    def edited_name(self) -> str:
        """What the edited model is called at the moment."""
        return f"{self.source.name}, {self.setting.title}"

    @property
    def has_roles(self) -> bool:
        """Whether prompts go through a chat template; otherwise the model goes on with one text."""
        return uses_roles(self._loaded.tokenizer, self._options.template)

    def ask(self, prompt: str, watch: Watch) -> Turn | None:
        """Has both answer a prompt.

        Args:
            prompt: the prompt.
            watch: sees the answers as they grow.

        Returns:
            The turn, which is then part of the conversation; None if `watch` has ended an answer, and nothing is kept.

        Raises:
            InputError: the prompt is no text, the chat template fails, or the conversation has become too long.
        """
        return self._take(prompt, self.turns, watch)

    def ask_again(self, watch: Watch) -> Turn | None:
        """Has the last prompt answered again, in the place of the last turn. An answer that cannot differ is kept.

        Args:
            watch: see `ask`.

        Raises:
            InputError: see `ask`; or nothing was asked yet.
        """
        if not self.turns:
            raise InputError("the conversation: it has no prompt yet. Ask something first.")
        return self._take(self.turns[-1].prompt, self.turns[:-1], watch)

    def set_system(self, system: str) -> None:
        """Gives both another system prompt; what was said stays.

        Args:
            system: the text; empty for none.

        Raises:
            InputError: it is not text.
        """
        if not is_utf8(system):
            raise InputError("--system: it is not UTF-8 text. Write it in UTF-8.")
        self.system = system.strip()

    def reset(self) -> None:
        """Forgets what was said. The system prompt and the setting of the edit stay."""
        self.turns = ()

    def save(self, output: Path) -> SavedSetting:
        """Bakes the edit as it is tried at the moment.

        Args:
            output: the directory to write.

        Raises:
            InputError: see `sea_export.saving.save`.
            SeaExportError: see `sea_export.saving.save`.
        """
        return save_setting(self.setting, self.source, output, self._options.format, self._run)

    def _take(self, prompt: str, earlier: tuple[Turn, ...], watch: Watch) -> Turn | None:
        if not is_text(prompt):
            raise InputError("the prompt: it is empty, or not UTF-8 text. Write something else.")
        setting = self.setting
        asked = self._tokens(Conversation(self.system, tuple((one.prompt, one.base.text) for one in earlier)), prompt)
        if self._base_answer is None or self._base_answer[0] != asked:
            base = self._answered(asked, lambda text: watch("base", text))
            if base is None:
                return None
            self._base_answer = asked, base
        base = self._base_answer[1]
        asked = self._tokens(Conversation(self.system, tuple((one.prompt, one.edited.text) for one in earlier)), prompt)
        with self._edited(setting.edit):
            edited = self._answered(asked, lambda text: watch("edited", text))
        if edited is None:
            return None
        turn = Turn(prompt, base, edited, setting.title)
        self.turns = (*earlier, turn)
        return turn

    @contextmanager
    def _edited(self, edit: SpectralEdit) -> Iterator[None]:
        projections = [one for one in self._projections if one.target in edit.layers]
        with edit.apply(self._loaded.model, projections):
            yield

    def _tokens(self, conversation: Conversation, prompt: str) -> list[int]:
        options = self._options
        values = template_values(options.chat_template_kwargs)
        return conversation_tokens(self._loaded.tokenizer, conversation, prompt, options.template, values)

    def _answered(self, tokens: list[int], goes_on: Callable[[str], bool]) -> Answer | None:
        loaded, longest = self._loaded, self._options.new_tokens
        return answer_tokens(loaded.model, loaded.tokenizer, tokens, new_tokens=longest, goes_on=goes_on)


@contextmanager
def open_chat(source: ChatSource, options: ChatOptions, run: RunOptions) -> Iterator[ChatSession]:
    """Loads the base, which the edit is applied to.

    Args:
        source: the edit and its base.
        options: how they talk.
        run: how the base is opened.

    Yields:
        the session, without a turn.

    Raises:
        InputError: the base cannot be loaded, the edit is not one of it, or an option does not suit the edit.
    """
    fitted = SpectralEdit.from_stored(source.edit)
    setting = EditSetting(fitted).at_strength(options.strength).in_layers(options.layers)
    with open_loaded_model(source.base, run) as loaded:
        warn_of_other_base(fitted, loaded)
        yield ChatSession(loaded, setting, source, options, run)
