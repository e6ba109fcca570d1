"""Two processes fit what one fits; and when one is killed, the other ends with an error and leaves nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sea_export.capture.activations import Activations
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.fitting.activation_statistics import FOLDS
from sea_export.fitting.distributed import ALONE, Processes
from sea_export.fitting.spectrum import LayerSpectrum, SpectrumFitter
from sea_export.options import CENTERS
from tests.helpers.gguf_files import write_gguf
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import UNMEASURED
from tests.helpers.random_demonstrations import assert_same_edit
from tests.helpers.reference import random_activations

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


# Shares and merged statistics


@pytest.mark.parametrize("count", [2, 3, 11, 12, 40])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_disjoint_and_keep_folds(processes, count):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    shares = [Processes(rank, processes).share(order) for rank in range(processes)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert all(share == sorted(share) for share in shares)
    for share in shares:
        own = [index for index in order if index in share]
        for position, index in enumerate(own):
            assert position % FOLDS == order.index(index) % FOLDS


@pytest.mark.parametrize(("demonstrations", "processes"), [(5, 2), (10, 3), (1, 2)])
def test_a_process_without_demonstrations_is_refused(demonstrations, processes):
    assert not all(Processes(rank, processes).share(range(demonstrations)) for rank in range(processes))
    with pytest.raises(InputError, match=naming(demonstrations, processes, processes - 1)):
        Processes(0, processes).check_enough(demonstrations)
    Processes(0, processes).check_enough(5 * (processes - 1) + 1)
    ALONE.check_enough(0)


def fitted(activations: Activations, center: str, rows: list[int], batch: int) -> SpectrumFitter:
    fitter = SpectrumFitter(center)
    for start in range(0, len(rows), batch):
        own = rows[start : start + batch]
        kinds = (activations.neutral, activations.positive, activations.negative)
        fitter.update(Activations(*(kind[own] for kind in kinds)))
    return fitter


def assert_same_spectrum(one: LayerSpectrum, other: LayerSpectrum) -> None:
    for kind in ("positive", "negative"):
        vectors, values = getattr(one, f"{kind}_vectors"), getattr(one, f"{kind}_values")
        theirs = getattr(other, f"{kind}_values")
        count = min(len(values), len(theirs))  # the smallest may be lost in rounding
        torch.testing.assert_close(values[:count], theirs[:count], rtol=1e-7, atol=1e-9 * float(values[0]))
        alike = vectors[:, :3].T @ getattr(other, f"{kind}_vectors")[:, :3]
        torch.testing.assert_close(alike.abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(one.neutral_mean, other.neutral_mean)
    gram, expected = (spectrum.neutral_factor.T @ spectrum.neutral_factor for spectrum in (one, other))
    torch.testing.assert_close(gram, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))
    assert one.count == other.count
    assert one.signature == pytest.approx(other.signature)
    if one.reader is not None:
        torch.testing.assert_close(one.reader, other.reader, rtol=1e-5, atol=1e-8)
        assert one.reader_error == pytest.approx(other.reader_error, rel=1e-6)


# With d = 12: all rows are kept; together they become moments; one has rows and one has moments; both have moments.
COUNTS = {"rows": 8, "rows to moments": 160, "rows and moments": 130, "moments": 400}


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_merged_statistics_are_those_of_one_fitter(count, center):
    activations = random_activations(count, 12)
    everything = fitted(activations, center, list(range(count)), 7).finish()
    if count == COUNTS["rows and moments"]:
        shares = [list(range(120)), list(range(120, count))]
    else:
        shares = [Processes(rank, 2).share(range(count)) for rank in range(2)]
    for order in (shares, shares[::-1]):
        one, other = (fitted(activations, center, share, 9) for share in order)
        assert_same_spectrum(one.merge(other).finish(), everything)


def test_statistics_of_features_merge_too():
    from sea_export.edit.features import FeatureFunction

    activations = random_activations(30, 12)
    kinds = (activations.neutral, activations.positive, activations.negative)
    halves = [Activations(*(kind[rows] for kind in kinds)) for rows in (slice(0, 15), slice(15, 30))]
    one, other = (SpectrumFitter("off", FeatureFunction("tanh")).update(half) for half in halves)
    merged = one.merge(other).finish()
    together = SpectrumFitter("off", FeatureFunction("tanh")).update(activations).finish()
    assert_same_spectrum(merged, together)
    torch.testing.assert_close(merged.neutral, together.neutral)


def test_alone_a_process_does_everything_itself():
    activations = random_activations(10, 12)
    spectrum = ALONE.finish(SpectrumFitter().update(activations))
    assert_same_spectrum(spectrum, SpectrumFitter().update(activations).finish())
    assert ALONE.share([3, 1, 2, 0]) == [0, 1, 2, 3]
    assert ALONE.is_first


# Processes


@pytest.fixture(scope="module")
def demonstrations_file(demonstrations: tuple[Demonstration, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("job") / "demonstrations.jsonl"
    rows = [{"prompt": one.prompt, "positive": one.positive, "negative": one.negative} for one in demonstrations]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def start(rank: int, count: int, port: int, *arguments: object) -> subprocess.Popen[str]:
    """Starts Python as torchrun would, with pipes for what it says."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
        return free


FIT = ("--layers", "1,3", "--positive-rank", "2", "--negative-rank", "2", "--batch-tokens", "50", *UNMEASURED)


@pytest.mark.parametrize("options", [(), ("--sequential",), ("--layerwise",)], ids=["plain", "sequential", "layerwise"])
def test_two_processes_fit_what_one_fits(options, port, tiny_checkpoint, demonstrations_file, tmp_path):
    for count in (1, 2):
        command = (
            "fit",
            tiny_checkpoint,
            tmp_path / str(count),
            "--demonstrations",
            demonstrations_file,
            *FIT,
            *options,
        )
        processes = [start(rank, count, port, "-m", "sea_export", *command) for rank in range(count)]
        said = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, said
        assert "Saved the edit" in said[0][0]
        assert all(output.strip() == "" for output, _ in said[1:]), "only one prints"
    one, two = (SpectralEdit.load(tmp_path / str(count)) for count in (1, 2))
    assert_same_edit(two, one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"], "only one writes"


def test_each_process_converts_the_base_for_itself(port, tmp_path):
    """transformers saves a model in the first process of a job only."""
    write_gguf(tmp_path / "tiny.gguf")
    demonstrations_file = tmp_path / "demonstrations.jsonl"
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(["a", "b"], size=12)) for _ in range(120)]
    kinds = ("prompt", "positive", "negative")
    rows = [dict(zip(kinds, texts[first : first + 3], strict=True)) for first in range(0, len(texts), 3)]
    demonstrations_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for count in (1, 2):
        command = ("fit", tmp_path / "tiny.gguf", tmp_path / str(count), "--demonstrations", demonstrations_file)
        options = ("--layers", "0", "--positive-rank", "2", "--negative-rank", "2", "--dtype", "float32", *UNMEASURED)
        processes = [start(rank, count, port, "-m", "sea_export", *command, *options) for rank in range(count)]
        said = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, said
    one, two = (SpectralEdit.load(tmp_path / str(count)) for count in (1, 2))
    assert_same_edit(two, one)


JOIN_AND_WAIT = """
import time
from sea_export.fitting.distributed import joined_processes
with joined_processes():
    print("joined", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_killed_the_other_ends_with_an_error(
    killed, port, tiny_checkpoint, demonstrations_file, tmp_path
):
    command = ("fit-and-save", tiny_checkpoint, tmp_path / "out", "--demonstrations", demonstrations_file, *FIT)
    victim = start(killed, 2, port, "-c", JOIN_AND_WAIT)
    other = start(1 - killed, 2, port, "-m", "sea_export", *command)
    assert victim.stdout is not None
    assert victim.stdout.readline().strip() == "joined"
    victim.kill()
    victim.communicate()
    _, error = other.communicate(timeout=300)
    assert other.returncode == 1, error
    # The second if the victim's own joining was over before the other's.
    assert_names(error, "Error: ", 2)
    assert "process" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
