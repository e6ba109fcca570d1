"""What a chat is about: an edit and its base. Found and checked before anything is loaded, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sea_export.chat.chat_options import ChatOptions
from sea_export.edit.base_of_edit import base_of_edits
from sea_export.edit.stored_edit import DESCRIPTION_FILE, StoredEdit, read_stored_edit
from sea_export.errors import InputError
from sea_export.evaluation.early_checks import check_in_memory
from sea_export.export.fetch import fetch_edit
from sea_export.export.formats import export_format
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.export.output import EDIT_DIRECTORY
from sea_export.model.layer_list import layers_of_edit
from sea_export.model.location import locate_model
from sea_export.model.run_options import RunOptions
from sea_export.text import is_utf8

__all__ = ["ChatSource", "find_chat_source"]


@dataclass(frozen=True)
class ChatSource:
    """An edit and its base.

    Attributes:
        given: the edit or the output, as the user wrote it.
        directory: where it is on this machine.
        edit: the edit, as it is stored.
        base: what the base is opened by: a Hub id, a directory, or a `.gguf` file.
    """

    given: str
    directory: Path
    edit: StoredEdit
    base: str

    @property
    def name(self) -> str:
        """What the edit is called."""
        return self.directory.resolve().name if self._is_local else self.given

    @property
    def place(self) -> str:
        """The directory of the edit, for a command."""
        return self.given if self._is_local else str(self.directory)

    @property
    def _is_local(self) -> bool:
        return Path(self.given).expanduser().exists()


def find_chat_source(given: str, options: ChatOptions, run: RunOptions) -> ChatSource:
    """Finds the edit and the base, and checks what the options say of them.

    Args:
        given: the directory of an edit or of an output, or the Hub id of an output.
        options: those of the chat.
        run: how the base is opened.

    Raises:
        InputError: there is no edit, its base is not known or not available, or an option does not suit them.
    """
    directory = Path(given).expanduser()
    if directory.exists() and not any((directory / one / DESCRIPTION_FILE).is_file() for one in (".", EDIT_DIRECTORY)):
        raise InputError(
            f"{given}: it holds no edit, and a chat shows a base beside its edit. Give an edit, and this model with "
            "--base, or give an output of sea-export."
        )
    directory = fetch_edit(str(directory) if directory.exists() else given)
    edit = read_stored_edit(directory)
    if options.layers is not None:
        layers_of_edit(edit.decoder_layers, options.layers)
    if not is_utf8(options.system or ""):
        raise InputError("--system: it is not UTF-8 text. Write it in UTF-8.")
    base = options.base or _base_of(directory, edit)
    check_in_memory([base], run)
    locate_model(base, run.revision)
    return ChatSource(given, directory, edit, base)


def _base_of(directory: Path, edit: StoredEdit) -> str:
    """The base that an output says it is loaded with, or that the edit names."""
    if (directory / MANIFEST).is_file():
        named = export_format(read_manifest(directory)["format"]).base_of(directory)
        if named is not None:
            return named
    return base_of_edits([edit])
