"""A comparison as a web page in one file."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, StrictUndefined

from sea_export.evaluation.answer_pieces import Comparison
from sea_export.text import visible

__all__ = ["comparison_page"]

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The same prompts answered by {{ base }} and by {{ edited }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; }
  section { border-top: 1px solid #8888; padding: 1rem 0; break-inside: avoid; }
  .prompt { font-weight: 600; margin: 0 0 .6rem; white-space: pre-wrap; }
  .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem 2rem; }
  .answers h2 { font-size: .8rem; margin: 0; opacity: .7; font-weight: 600; }
  .answers p { margin: .2rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
  del { background: #d55e0033; text-decoration: line-through; text-decoration-color: #d55e00; }
  .answers .note { font-size: .8rem; opacity: .7; }
  .mark { font-size: .8rem; padding: 0 .4rem; border: 1px solid #8888; border-radius: .3rem; white-space: nowrap; }
  ins { background: #0072b233; text-decoration: underline; text-decoration-color: #0072b2; }
</style>
</head>
<body>
<h1>The same prompts answered by {{ base }} and by {{ edited }}</h1>
<p>Both language models answered {{ comparisons | length }} prompts, each word being the one that the model finds
likeliest. {{ different }} of {{ comparisons | length }} answers differ. <del>Struck through</del>: words that only
{{ base }} says. <ins>Underlined</ins>: words that only {{ edited }} says. Case and punctuation do not count, and where
two answers have fewer than half of their words in common, no words are marked.</p>
{% for one in comparisons %}
<section>
<p class="prompt" dir="auto">{{ one.prompt }}</p>
<div class="answers">
<div><h2>{{ base }}</h2>
<p dir="auto">{% for piece in one.base %}\
{% if piece.changed %}<del>{{ piece.text }}</del>{% else %}{{ piece.text }}{% endif %}\
{% endfor %}{% for mark in one.base_marks %} <span class="mark">{{ mark }}</span>{% endfor %}</p></div>
<div><h2>{{ edited }}</h2>
<p dir="auto">{% for piece in one.edited %}\
{% if piece.changed %}<ins>{{ piece.text }}</ins>{% else %}{{ piece.text }}{% endif %}\
{% endfor %}{% for mark in one.edited_marks %} <span class="mark">{{ mark }}</span>{% endfor %}</p>
{% if one.differs and not one.alike %}<p class="note">Another answer than that of {{ base }}.</p>{% endif %}\
</div>
</div>
</section>
{% endfor %}
</body>
</html>
"""


def comparison_page(base: str, edited: str, comparisons: Sequence[Comparison]) -> str:
    """The page. Everything that models or users wrote is escaped.

    Args:
        base: the name of the base.
        edited: the name of the edited model.
        comparisons: the answers.
    """
    environment = Environment(autoescape=True, finalize=_visible, undefined=StrictUndefined)
    different = sum(one.differs for one in comparisons)
    return environment.from_string(_PAGE).render(base=base, edited=edited, comparisons=comparisons, different=different)


def _visible(value: object) -> object:
    """A value of the page, without control characters, which pages must not have."""
    return visible(value) if isinstance(value, str) else value
