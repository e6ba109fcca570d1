"""What a fit by each method costs: seconds and peak memory, each in a process of its own, by turns.

    python scripts/method_costs.py MODEL DEMONSTRATIONS COUNT METHOD FORM

is such a process: it prints both as JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

FITS = (
    ("spectral", "bias"),
    ("gradient", "bias"),
    ("gradient", "linear"),
    ("natural-gradient", "bias"),
    ("natural-gradient", "linear"),
    ("natural-gradient", "low-rank"),
)
"""Methods with their forms. The first one is what the others are compared with."""


@dataclass(frozen=True)
class Cost:
    """What one fit took."""

    seconds: float
    peak_bytes: int
    """The largest resident memory of the process, with the model."""


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def cost_table(model: str, demonstrations: str, count: int, repeats: int) -> str:
    """A Markdown table of the costs of all fits, with their ratios to the first one.

    Args:
        model: a directory.
        demonstrations: as for `load_demonstrations`.
        count: how many of them.
        repeats: how often each fit runs; the median counts.
    """
    costs: dict[tuple[str, str], list[Cost]] = {fit: [] for fit in FITS}
    for _ in range(repeats):
        for fit in FITS:
            command = [sys.executable, __file__, model, demonstrations, str(count), *fit]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            costs[fit].append(Cost(**json.loads(output.splitlines()[-1])))
            print(f"{' '.join(fit)}: {costs[fit][-1]}", file=sys.stderr, flush=True)
    seconds = {fit: statistics.median(one.seconds for one in own) for fit, own in costs.items()}
    memory = {fit: statistics.median(one.peak_bytes for one in own) for fit, own in costs.items()}
    lines = ["| method | form | seconds | ratio | peak (GB) | ratio |", "|---|---|---|---|---|---|"]
    for method, form in FITS:
        fit = method, form
        lines.append(
            f"| {method} | {'' if method == 'spectral' else form} | {seconds[fit]:.1f} | "
            f"{seconds[fit] / seconds[FITS[0]]:.2f} | {memory[fit] / 1e9:.2f} | {memory[fit] / memory[FITS[0]]:.2f} |"
        )
    return "\n".join(lines)


@contextmanager
def random_model(text: str) -> Iterator[str]:
    """A folder with a random Llama.

    Args:
        text: hidden size, intermediate size and number of layers: `1024x2816x8`.
    """
    from random_llama import Shape, write_random_llama

    hidden, intermediate, layers = map(int, text.split("x"))
    with TemporaryDirectory() as directory:
        write_random_llama(Path(directory), Shape(hidden, intermediate, layers))
        yield directory


def _fit(model: str, demonstrations: str, count: int, method: str, form: str) -> Cost:
    import torch

    from sea_export.demonstrations.load import load_demonstrations
    from sea_export.fitting.fit import fit_any_strength
    from sea_export.model.base import open_base
    from sea_export.options import FitOptions

    with open_base(model) as base:
        loaded = base.load_model(dtype=torch.float32)
        some = load_demonstrations(demonstrations, limit=count)
        start = time.perf_counter()
        fit_any_strength(loaded, base.tokenizer, some, FitOptions(method=method, form=form)).edit()
        return Cost(time.perf_counter() - start, peak_bytes())


if __name__ == "__main__":
    found = _fit(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    print(json.dumps({"seconds": found.seconds, "peak_bytes": found.peak_bytes}))
