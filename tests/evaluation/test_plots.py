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

from sea_export.capture.activations import Activations
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.activation_plot import plot_activations
from sea_export.evaluation.benchmark import Measurement
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.edit_plot import plot_edit
from sea_export.evaluation.metrics import mean_metric
from sea_export.evaluation.report import make_reports
from sea_export.evaluation.report_plot import plot_reports
from sea_export.model.targets import Target
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import slow_but
from tests.helpers.pictures import assert_readable
from tests.helpers.reference import random_activations
from tests.helpers.tiny_edits import SIZE, TARGET_SETS, spectral_edit


@pytest.mark.parametrize("targets", slow_but(["both"], TARGET_SETS))
def test_an_edit_is_drawn_layer_by_layer(targets: str, drawn: list[Figure], tmp_path: Path) -> None:
    edit = spectral_edit(TARGET_SETS[targets], center="linear")
    plot_edit(edit, tmp_path / "edit.png")
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
    plot_edit(SpectralEdit(layers), tmp_path / "edit.png")
    assert [axes.get_title() for axes in drawn[0].axes] == ["Relative change of outputs", "Signature"]
    assert all(axes.patches for axes in drawn[0].axes)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_every_format_is_written(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"edit.{ending}"
    plot_edit(spectral_edit(TARGET_SETS["mlp"]), file)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
    assert file.read_bytes().startswith(start)


def test_spectra_fill_their_frame(drawn: list[Figure], tmp_path: Path) -> None:
    plot_edit(spectral_edit(TARGET_SETS["mlp"], center="linear"), tmp_path / "edit.png")
    titles = {axes.get_title(): axes for axes in drawn[0].axes}
    for sign in "+-":
        (image,) = titles[f"Spectrum of Ω{sign}"].get_images()
        shares = image.get_array()
        assert shares.shape[1] <= SIZE
        assert shares.min() == pytest.approx(image.norm.vmin), "the colours reach from the smallest share to all"
    explained = titles["Explained variance"]
    assert explained.get_xlim() == (1, SIZE)
    figure = drawn[0]
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1, "it stands above the frame"


def test_activations_are_drawn_before_and_after(drawn: list[Figure], tmp_path: Path) -> None:
    """Between the means of both kinds, with the share that is nearer the positive mean, here counted by distances."""
    edit = spectral_edit(TARGET_SETS["mlp"], normalization="none")
    activations = {}
    for seed, target in enumerate(edit.targets):
        own = random_activations(30, SIZE, seed=seed)
        activations[target] = Activations(own.neutral, own.positive + 0.5, own.negative - 0.5)
    plot_activations(activations, edit, tmp_path / "activations.png")
    for axes, (target, kinds) in zip(drawn[0].axes, activations.items(), strict=True):
        rows = {points.get_label(): points.get_offsets()[:, 0] for points in axes.collections}
        assert list(rows) == ["positive", "positive, edited", "negative", "negative, edited"]
        assert rows["positive"].mean() == pytest.approx(1)
        assert rows["negative"].mean() == pytest.approx(0, abs=1e-9)
        means = torch.stack([kinds.negative.double().mean(0), kinds.positive.double().mean(0)])
        (layer,) = edit.layers[target]
        for name, found in (("negative", kinds.negative), ("negative, edited", layer.apply(kinds.negative))):
            distances = torch.cdist(found.double(), means)
            nearer = (distances[:, 1] < distances[:, 0]).numpy()
            assert ((rows[name] > 0.5) == nearer).all()
            assert f"{nearer.mean():.0%}" in axes.get_title()
    assert abs(rows["negative"] - rows["negative, edited"]).max() > 1e-3


def test_the_layers_that_change_most_are_drawn(
    llama: PreTrainedModel,
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint: Path,
    tmp_path: Path,
    drawn: list[Figure],
) -> None:
    edit = fit_tiny(llama, layers="all")
    edit.save(tmp_path / "edit")
    options = ("--plot-activations", tmp_path / "a.png", "--model", tiny_checkpoint, "--limit", 6)
    result = CliRunner().invoke(main, ["inspect", *map(str, (tmp_path / "edit", *options))])
    assert result.exit_code == 0, result.output
    changes = sorted((edits[0].relative_change, target.layer) for target, edits in edit.layers.items())
    expected = sorted(layer for _, layer in changes[-3:])
    assert [axes.get_title().partition(",")[0] for axes in drawn[0].axes] == [f"layer {layer}" for layer in expected]


def test_metrics_are_drawn_as_differences_to_the_base(drawn: list[Figure], tmp_path: Path) -> None:
    own = Measurement(
        "truthfulqa",
        4,
        (
            mean_metric("MC1", [1, 0, 1, 1]),
            mean_metric("NLL", [1, 2, 3, 4.0], unit="nats"),
            mean_metric("alone", [1, 1, 1, 1]),
        ),
    )
    base = Measurement(
        "truthfulqa", 4, (mean_metric("MC1", [0, 0, 1, 1]), mean_metric("NLL", [1, 2, 2, 4.0], unit="nats"))
    )
    plot_reports(make_reports([own], [base]), tmp_path / "figures.png")
    shares, nats, alone = drawn[0].axes
    assert_names(shares.get_xlabel(), "difference", "points")
    assert_names(nats.get_xlabel(), "difference", "nats")
    assert_names(alone.get_xlabel(), "95 %", "%")
    assert "difference" not in alone.get_xlabel()
    assert [container.lines[0].get_xdata().tolist() for container in shares.containers] == [[25.0]]
    assert "50.0 → 75.0" in {text.get_text() for text in shares.texts}
    assert [container.lines[0].get_xdata().tolist() for container in alone.containers] == [[100.0]]
    plot_reports(make_reports([own]), tmp_path / "alone.png")
    assert [len(axes.containers) for axes in drawn[1].axes] == [2, 1]
    assert not any("difference" in axes.get_xlabel() for axes in drawn[1].axes)


@pytest.mark.parametrize("layers", [range(1), range(30), range(12, 30), range(100, 112)], ids=str)
def test_pictures_can_be_read_on_any_page(layers: range, drawn: list[Figure], tmp_path: Path) -> None:
    targets = [Target(layer, component) for layer in layers for component in ("attention", "mlp")]
    edit = spectral_edit(targets, center="linear")
    plot_edit(edit, tmp_path / "edit.png")
    own = random_activations(30, SIZE, seed=0)
    plot_activations(dict.fromkeys(targets[:3], own), edit, tmp_path / "activations.png")
    rows = [0.0, 1.0, 1.0, 0.0]
    names = ("accuracy, disambiguated", "stereotypical preferences", "bias score, ambiguous")
    long = [mean_metric(name, rows) for name in names] + [mean_metric("NLL of true answers", rows, unit="nats")]
    measured = [Measurement(label, 4, tuple(long)) for label in ("bbq", "damage")]
    reports = [*make_reports(measured[:1], measured[:1]), *make_reports(measured[1:])]
    plot_reports(reports, tmp_path / "reports.png")
    assert len(drawn) == 3
    for figure in drawn:
        assert_readable(figure)


def test_a_black_letter_is_not_readable_on_every_page() -> None:
    figure = Figure(facecolor="none")
    figure.text(0.5, 0.5, "black", color="black")
    with pytest.raises(AssertionError, match="black"):
        assert_readable(figure)


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
