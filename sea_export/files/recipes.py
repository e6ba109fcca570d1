"""The recipes of the package: commented files of options for `--config`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

__all__ = ["Recipe", "Recipes", "recipes"]


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: its name.
        summary: what it is for, in one line.
        text: the file: YAML with comments.
    """

    name: str
    summary: str
    text: str


@dataclass(frozen=True)
class Recipes:
    """Some recipes, sorted by name."""

    recipes: tuple[Recipe, ...]

    def named(self, name: str) -> Recipe | None:
        """The recipe of a name; None if there is none."""
        return next((one for one in self.recipes if one.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"recipes": [asdict(one) for one in self.recipes]}


def recipes() -> Recipes:
    """All recipes."""
    folder = files("sea_export") / "data" / "recipes"
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    texts = {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in found}
    return Recipes(tuple(Recipe(name, text.splitlines()[0].lstrip("# "), text) for name, text in texts.items()))
