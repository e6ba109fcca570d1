"""The same prompts answered by two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.evaluation.answer_pieces import Comparison, compare_answers
from sea_export.evaluation.answering import Answer, answer_prompts
from sea_export.evaluation.early_checks import check_comparison
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.evaluation.generation_options import template_values
from sea_export.evaluation.loaded_model import LoadedModel, open_loaded_model
from sea_export.evaluation.prompts import load_prompts
from sea_export.evaluation.run_time_edit import applied, edit_name, is_edit, load_run_time_edit
from sea_export.files.frames import data_frame
from sea_export.files.writing import write_result
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from pandas import DataFrame

    from sea_export.edit.spectral_edit import SpectralEdit

__all__ = ["ModelComparison", "compare_in_memory", "compare_models"]


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

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {
            "base": self.base,
            "edited": self.edited,
            "answers": [
                {
                    "prompt": one.prompt,
                    "differs": one.differs,
                    "alike": one.alike,
                    "base": one.base_text,
                    "edited": one.edited_text,
                    "base_marks": list(one.base_marks),
                    "edited_marks": list(one.edited_marks),
                    "base_pieces": [asdict(piece) for piece in one.base],
                    "edited_pieces": [asdict(piece) for piece in one.edited],
                }
                for one in self.answers
            ],
        }

    def to_frame(self) -> DataFrame:
        """A row for each prompt, with both answers, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        rows = [
            {"prompt": one.prompt, "base": one.base_text, "edited": one.edited_text, "differs": one.differs}
            for one in self.answers
        ]
        return data_frame(rows)

    def save_page(self, file: Path | str) -> None:
        """Writes a web page of one file, with the answers side by side.

        Args:
            file: where.

        Raises:
            InputError: it is not to be replaced.
            OSError: it cannot be written.
        """
        from sea_export.evaluation.side_by_side_page import comparison_page

        write_result(Path(file), comparison_page(self.base, self.edited, self.answers))


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
        edited: the same; also an export of any format, or the directory of an edit, which is applied to the base.
        options: the prompts, and how they are answered. The page that they name is checked, but not written.
        run: how the models are opened.
        waiting: is told what goes on; its context is open meanwhile.

    Raises:
        InputError: a model, the prompts or the page is not usable.
    """
    check_comparison(base, edited, options, run)
    if is_edit(edited):
        edit = load_run_time_edit(Path(edited), options.strength)
        with open_loaded_model(base, run) as loaded:
            return compare_in_memory(loaded, edit, edit_name(Path(edited), options.strength), options, waiting)
    prompts = _prompts(options)
    with open_loaded_model(base, run) as loaded:
        base_name, before = loaded.name, _answered(loaded, loaded.name, prompts, options, waiting)
    with open_loaded_model(edited, run) as loaded:
        edited_name, after = loaded.name, _answered(loaded, loaded.name, prompts, options, waiting)
    return _compared(base_name, edited_name, prompts, before, after)


def compare_in_memory(
    loaded: LoadedModel,
    edit: SpectralEdit,
    name: str,
    options: CompareOptions,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> ModelComparison:
    """The same of a base that is in memory, with and without an edit.

    Args:
        loaded: the base.
        edit: the edit, which is applied at run time.
        name: what the edited model is called.
        options: see `compare_models`.
        waiting: see `compare_models`.

    Raises:
        InputError: the prompts are not usable, or the edit does not fit the base.
    """
    prompts = _prompts(options)
    before = _answered(loaded, loaded.name, prompts, options, waiting)
    with applied(edit, loaded):
        after = _answered(loaded, name, prompts, options, waiting)
    return _compared(loaded.name, name, prompts, before, after)


def _prompts(options: CompareOptions) -> list[str]:
    own = list(options.own_prompts)
    return own if own and options.prompts is None else [*own, *load_prompts(options.prompts)]


def _answered(
    loaded: LoadedModel,
    name: str,
    prompts: Sequence[str],
    options: CompareOptions,
    waiting: Callable[[str], AbstractContextManager[object]],
) -> list[Answer]:
    with waiting(f"{name} answers"):
        return answer_prompts(
            loaded.model,
            loaded.tokenizer,
            prompts,
            template=options.template,
            template_values=template_values(options.chat_template_kwargs),
            new_tokens=options.new_tokens,
        )


def _compared(
    base: str, edited: str, prompts: Sequence[str], before: Sequence[Answer], after: Sequence[Answer]
) -> ModelComparison:
    compared = tuple(
        compare_answers(prompt, one.text, other.text, one.marks, other.marks)
        for prompt, one, other in zip(prompts, before, after, strict=True)
    )
    return ModelComparison(base=base, edited=edited, answers=compared)
