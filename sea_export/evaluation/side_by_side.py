"""The same prompts answered by two models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.evaluation.answer_pieces import Comparison, compare_answers
from sea_export.evaluation.answering import answer_prompts
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

__all__ = ["ModelComparison", "compare_models"]


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
                    "base": one.base_text,
                    "edited": one.edited_text,
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
    prompts = list(options.own_prompts)
    if options.prompts is not None or not prompts:
        prompts += load_prompts(options.prompts)

    def answered(loaded: LoadedModel, name: str) -> list[str]:
        with waiting(f"{name} answers"):
            found = answer_prompts(
                loaded.model,
                loaded.tokenizer,
                prompts,
                template=options.template,
                template_values=template_values(options.chat_template_kwargs),
                new_tokens=options.new_tokens,
            )
        return [answer.text for answer in found]

    if is_edit(edited):
        edit, edited_name = (
            load_run_time_edit(Path(edited), options.strength),
            edit_name(Path(edited), options.strength),
        )
        with open_loaded_model(base, run) as loaded:
            base_name, before = loaded.name, answered(loaded, loaded.name)
            with applied(edit, loaded):
                after = answered(loaded, edited_name)
    else:
        with open_loaded_model(base, run) as loaded:
            base_name, before = loaded.name, answered(loaded, loaded.name)
        with open_loaded_model(edited, run) as loaded:
            edited_name, after = loaded.name, answered(loaded, loaded.name)
    compared = tuple(compare_answers(*row) for row in zip(prompts, before, after, strict=True))
    return ModelComparison(base=base_name, edited=edited_name, answers=compared)
