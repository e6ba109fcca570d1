"""Pictures: every form is written, and shows what it is given."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation import plots
from sea_export.evaluation.benchmark import Measurement
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.metrics import mean_metric
from sea_export.evaluation.report import make_reports
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import slow_but
from tests.helpers.reference import random_activations
from tests.helpers.tiny_edits import SIZE, TARGET_SETS, spectral_edit


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, for a look inside."""
    figures: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, file: Path) -> None:
        figures.append(figure)
        save(figure, file)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


@pytest.mark.parametrize("targets", slow_but(["both"], TARGET_SETS))
def test_an_edit_is_drawn_layer_by_layer(targets: str, drawn: list[Figure], tmp_path: Path) -> None:
    edit = spectral_edit(TARGET_SETS[targets], center="linear")
    plots.plot_edit(edit, tmp_path / "edit.png")
    titles = {axes.get_title(): axes for axes in drawn[0].axes}
    ranks = titles["Rank of the edit"]
    heights = [bar.get_height() for bar in ranks.patches]
    layers = [edit.layers[target][0] for target in edit.targets]
    assert heights == [layer.positive.shape[1] for layer in layers] + [layer.negative.shape[1] for layer in layers]
    assert [bar.get_height() for bar in titles["Signature"].patches] == [layer.signature for layer in layers]
    assert ("attention" in ranks.get_xlabel()) == (targets != "mlp")
    assert len(titles["Spectrum of Ω+"].get_images()) == 1
    for line in titles["Explained variance"].lines:
        heights = line.get_ydata()
        assert (heights[:-1] <= heights[1:]).all()
        assert heights[-1] == pytest.approx(100)


def test_an_edit_without_spectra_has_no_empty_panels(drawn: list[Figure], tmp_path: Path) -> None:
    edit = spectral_edit(TARGET_SETS["mlp"], center="affine")
    none = {"positive": torch.zeros(SIZE, 0), "negative": torch.zeros(SIZE, 0)}
    values = {"positive_values": torch.zeros(0), "negative_values": torch.zeros(0)}
    layers = {target: (replace(own[0], **none, **values),) for target, own in edit.layers.items()}
    plots.plot_edit(SpectralEdit(layers), tmp_path / "edit.png")
    assert [axes.get_title() for axes in drawn[0].axes] == ["Relative change of neutral activations", "Signature"]
    assert all(axes.patches for axes in drawn[0].axes)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_every_format_is_written(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"edit.{ending}"
    plots.plot_edit(spectral_edit(TARGET_SETS["mlp"]), file)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
    assert file.read_bytes().startswith(start)


def test_activations_are_drawn_before_and_after(drawn: list[Figure], tmp_path: Path) -> None:
    edit = spectral_edit(TARGET_SETS["mlp"])
    activations = {target: random_activations(30, SIZE, seed=seed) for seed, target in enumerate(edit.targets)}
    plots.plot_activations(activations, edit, tmp_path / "activations.png")
    for axes in drawn[0].axes:
        names = [points.get_label() for points in axes.collections]
        assert names == ["neutral", "positive", "negative", "negative, edited"]
        before, after = axes.collections[2].get_offsets(), axes.collections[3].get_offsets()
        assert before.shape == after.shape == (30, 2)
        assert abs(before - after).max() > 1e-3


def test_metrics_are_drawn_with_their_intervals(drawn: list[Figure], tmp_path: Path) -> None:
    own = Measurement(
        "truthfulqa", 4, (mean_metric("MC1", [1, 0, 1, 1]), mean_metric("NLL", [1, 2, 3, 4.0], unit="nats"))
    )
    base = Measurement(
        "truthfulqa", 4, (mean_metric("MC1", [0, 0, 1, 1]), mean_metric("NLL", [1, 2, 2, 4.0], unit="nats"))
    )
    plots.plot_reports(make_reports([own], [base]), tmp_path / "figures.png")
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["%", "nats"]
    shares = drawn[0].axes[0]
    assert [container.lines[0].get_xdata().tolist() for container in shares.containers] == [[50.0], [75.0]]
    plots.plot_reports(make_reports([own]), tmp_path / "alone.png")
    assert len(drawn[1].axes[0].containers) == 1


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=naming("edit.docx", ".png, .pdf, .svg")):
        check_picture(tmp_path / "edit.docx")
    with pytest.raises(InputError, match=naming("no/edit.png")):
        check_picture(tmp_path / "no" / "edit.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=naming("sea-export[plots]")):
        check_picture(tmp_path / "edit.png")


def test_inspect_draws_activations(
    llama: PreTrainedModel,
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    fit_tiny(llama).save(tmp_path / "edit")
    picture = tmp_path / "activations.png"

    def run(*options: object) -> Any:
        arguments = ("inspect", tmp_path / "edit", "--plot-activations", picture, *options)
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    assert "--model" in run().output
    result = run("--model", tiny_checkpoint, "--limit", 6, "--plot-layers", 0)
    assert result.exit_code == 2
    assert_names(result.stderr, "--plot-layers")
    assert not picture.exists()
    assert run("--model", tiny_checkpoint, "--limit", 6, "--plot-layers", "2,3").exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
