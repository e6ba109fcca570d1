"""Where a model is: a local directory, a `.gguf` file or a snapshot from the Hub. Nothing here imports torch.

What a name cannot mean is told at once, before libraries are imported that take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sea_export.errors import InputError
from sea_export.files.reading import read_json_object
from sea_export.model.adapter_files import ADAPTER_CONFIG
from sea_export.model.checkpoint import INDEX, WEIGHTS
from sea_export.model.download import download_snapshot
from sea_export.model.hub_errors import hub_errors_explained
from sea_export.model.model_files import OTHER_FORMAT_FILES, OTHER_FORMAT_FOLDERS
from sea_export.text import is_utf8

__all__ = [
    "PICKLE",
    "PICKLE_INDEX",
    "ModelLocation",
    "check_model_name",
    "has_safetensors",
    "is_hub_id",
    "locate_model",
]

PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class ModelLocation:
    """Where a model is on this machine.

    Attributes:
        path: its directory, or its `.gguf` file.
        name: the Hub id, or the last component of a local path, because no output may name a local path.
        revision: the commit hash that a Hub id resolved to, None for local models.
        location: what transformers loads it by: a Hub id or the absolute path of a directory; None for a file.
        source: the local directory or file, None for a model on the Hub.
    """

    path: Path
    name: str
    revision: str | None
    location: str | None
    source: Path | None


def locate_model(model: str, revision: str | None = None) -> ModelLocation:
    """Finds a model, and downloads what is on the Hub.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id.
        revision: branch, tag or commit of a Hub id.

    Raises:
        InputError: `model` does not name a model that can be used. The message says what to do.
    """
    path = Path(model).expanduser()
    check_model_name(model)
    if not path.exists():
        path = _download(model, revision)
        _check_form(path)
        return ModelLocation(path, model, path.name, model, None)
    if revision is not None:
        raise InputError(f"--revision: it goes with a Hub id, and {model} is a local path. Leave it out.")
    return ModelLocation(path, path.resolve().name, None, str(path.resolve()) if path.is_dir() else None, path)


def check_model_name(model: str, *, adapters: bool = False) -> None:
    """Refuses what names no model, as far as that can be told without the Hub.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id.
        adapters: whether it may be the directory of an adapter.

    Raises:
        InputError: it is none of these, or a directory or a file without a model.
    """
    path = Path(model).expanduser()
    if not path.exists():
        from huggingface_hub.utils import validate_repo_id

        with hub_errors_explained(model):
            validate_repo_id(model)
        return
    if not is_utf8(name := path.resolve().name):  # it is told in everything that is written
        raise InputError(f"{name}: the name of the model is not UTF-8 text. Rename its directory or file.")
    if not (adapters and (path / ADAPTER_CONFIG).is_file()):
        _check_form(path)


def is_hub_id(name: str) -> bool:
    """Whether a name is a Hub id `org/name`.

    Files may name a base by such an id. They may not name a path, which only the user may give.

    Args:
        name: what a file calls a base.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def has_safetensors(directory: Path) -> bool:
    """Whether a directory is a safetensors checkpoint.

    Args:
        directory: the directory of a model.

    Raises:
        InputError: its config.json is damaged.
    """
    config = directory / "config.json"
    return (
        (directory / WEIGHTS).is_file()
        or (directory / INDEX).is_file()
        or (config.is_file() and "transformers_weights" in read_json_object(config))
    )


def _check_form(path: Path) -> None:
    """Raises InputError for a file or a directory that is in no form of a model."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path}: it is a file, but not a .gguf file. Give the directory of the model.")
        return
    if has_safetensors(path) or (path / PICKLE).is_file() or (path / PICKLE_INDEX).is_file():
        return
    if (path / ADAPTER_CONFIG).is_file():
        raise InputError(f"{path}: it holds an adapter and no model. Give a model with the adapter merged into it.")
    if (path / "sea_edit.json").is_file():
        raise InputError(
            f"{path}: it holds an edit and no model. Give its base here, or bake it with sea-export save first."
        )
    gguf = next(path.glob("*.gguf"), None)
    if gguf is not None:
        raise InputError(f"{path}: it is a directory of GGUF files. Give one of the files, for example {gguf.name}.")
    raise InputError(
        f"{path}: it holds no weights of a model: neither {WEIGHTS} nor {PICKLE}, nor an index of shards. Give the "
        "directory of a model."
    )


def _download(model: str, revision: str | None) -> Path:
    """The snapshot directory of a Hub model, with its weights in the form that transformers prefers."""
    not_wanted = [*OTHER_FORMAT_FILES, *(f"{folder}/*" for folder in OTHER_FORMAT_FOLDERS)]
    snapshot = download_snapshot(model, revision=revision, not_wanted=not_wanted)
    if not has_safetensors(snapshot):
        download_snapshot(model, revision=snapshot.name, wanted=["pytorch_model*.bin", PICKLE_INDEX])
    return snapshot
