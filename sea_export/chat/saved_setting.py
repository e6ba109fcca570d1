"""An edit as it was tried, baked into an output: the same as `sea-export save` makes with the same options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sea_export.chat.chat_source import ChatSource
from sea_export.chat.edit_setting import EditSetting
from sea_export.model.load_model import parse_dtype
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions
from sea_export.saving import save

__all__ = ["SavedSetting", "save_setting"]


@dataclass(frozen=True)
class SavedSetting:
    """What was written.

    Attributes:
        output: the directory.
        digests: SHA-256, in hexadecimal, of the files with weights, by name.
        command: the command that makes the same output.
    """

    output: Path
    digests: Mapping[str, str]
    command: str


def save_setting(setting: EditSetting, source: ChatSource, output: Path, format: str, run: RunOptions) -> SavedSetting:
    """Bakes an edit at a strength, in some of its layers.

    Args:
        setting: the edit.
        source: where the edit and its base come from.
        output: the directory to write, which must not exist.
        format: see `sea_export.save`.
        run: how the base is opened.

    Raises:
        InputError: see `sea_export.saving.save`.
        SeaExportError: see `sea_export.saving.save`.
    """
    result = save(
        setting.edit,
        source.base,
        output.expanduser(),
        format=format,
        trust_remote_code=run.trust_remote_code,
        revision=run.revision,
        dtype=parse_dtype(run.dtype),
        dequantize=run.dequantize,
    )
    digests = result.report.digests
    weights = {name: digests[name] for name in sorted(digests) if Path(name).suffix in (".safetensors", ".gguf")}
    return SavedSetting(result.output, weights, _command(setting, source, output, format, run))


def _command(setting: EditSetting, source: ChatSource, output: Path, format: str, run: RunOptions) -> str:
    given: dict[str, tuple[object, object]] = {
        "--base": (source.base, None),
        "--strength": (setting.strength, None),
        "--only": (setting.layers, None),
        "--format": (format, ExportOptions.format),
        "--revision": (run.revision, RunOptions.revision),
        "--dtype": (run.dtype, RunOptions.dtype),
    }
    words = ["sea-export", "save", source.place, str(output)]
    for option, (value, default) in given.items():
        words += [] if value == default else [option, str(value)]
    switches = {"--dequantize": run.dequantize, "--trust-remote-code": run.trust_remote_code}
    words += [option for option, given_too in switches.items() if given_too]
    return " ".join(map(shlex.quote, words))
