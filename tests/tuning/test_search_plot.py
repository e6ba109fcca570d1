"""The picture of a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from sea_export.evaluation.metrics import mean_metric
from sea_export.options import FitOptions
from sea_export.tuning import search_plot
from sea_export.tuning.search_space import Candidate, SearchSpace
from sea_export.tuning.study import SearchSettings
from sea_export.tuning.trial import TrialResult
from sea_export.tuning.tune import Tuning
from tests.helpers.pictures import assert_readable
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit


def trial(number: int, value: float | None, divergence: float) -> TrialResult:
    score = None if value is None else value - 1
    cut = None if value else "worse than the base on the first rows"
    return TrialResult(number, Candidate(FitOptions(), 0.3), 1.0, value, score, divergence, cut)


def test_a_search_is_drawn_with_its_marks(drawn: list[Figure], tmp_path: Path) -> None:
    trials = (trial(0, 0.5, 0.1), trial(1, None, 3.0), trial(2, 0.6, 0.2))
    space = SearchSpace(4, max_kl=0.3)
    settings = SearchSettings({}, "float32", "", "truthfulqa", "", "", "MC2", space, FitOptions(), 0)
    tuning = Tuning(
        settings,
        base=mean_metric("MC2", [0.0, 1]),
        trials=trials,
        front=trials[::2],
        chosen=trials[2],
        default=trials[0],
        edit=spectral_edit(MLP_TARGETS),
        reports={},
    )
    search_plot.plot_search(tuning, tmp_path / "search.png")
    search_plot.plot_search(replace(tuning, default=None), tmp_path / "search.png")
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["damage budget", "trial", "Pareto front", "base", "default edit", "chosen"]
    points = next(drawing for drawing in drawn[0].axes[0].collections if drawing.get_label() == "trial")
    assert points.get_offsets().tolist() == [[0.1, 50.0], [0.2, 60.0]]
    assert "default edit" not in [text.get_text() for text in drawn[1].legends[0].get_texts()]
    assert "nats" in drawn[0].axes[0].get_xlabel()
    assert_readable(drawn[0])
