"""A patch that lies is refused in one sentence, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load, save

from sea_export.cli import main
from tests.helpers.checkpoint_files import contents_of, join_file, split_file
from tests.helpers.patch_files import DESCRIPTION, DIGEST, described, description_of, patch_bytes, with_description
from tests.helpers.template_folders import scratch_folder, template_folder

WEIGHTS = "model.safetensors"
CARD = "README.md"


def renamed(name: str) -> Callable[[bytes], bytes]:
    """A patch that makes a file of another name."""
    return described(lambda whole: whole["files"].update({name: whole["files"].pop(CARD)}))


def from_source(name: str) -> Callable[[bytes], bytes]:
    """A patch whose base has a file of another name, from which it makes a file."""

    def change(whole: Any) -> None:
        whole["base"]["files"][name] = whole["base"]["files"].pop("config.json")
        whole["files"]["config.json"]["source"] = name

    return described(change)


def file_with(name: str, **values: object) -> Callable[[bytes], bytes]:
    return described(lambda whole: whole["files"][name].update(values))


def fold_with(**values: object) -> Callable[[bytes], bytes]:
    def change(whole: Any) -> None:
        fold = next(piece["fold"] for piece in whole["files"][WEIGHTS]["pieces"] if "fold" in piece)
        fold.update(values)

    return described(change)


def header_with(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def apply(contents: bytes) -> bytes:
        header, data = split_file(contents)
        change(header)
        return join_file(header, data)

    return apply


def flipped(contents: bytes) -> bytes:
    """The last byte of the tensors is another one."""
    return contents[:-1] + bytes([contents[-1] ^ 1])


def with_tensor(contents: bytes) -> bytes:
    header, _ = split_file(contents)
    return save({**load(contents), "more": torch.ones(3)}, metadata=header["__metadata__"])


def without_edit(contents: bytes) -> bytes:
    whole = description_of(contents)
    tensor = whole["files"].pop("sea_edit/sea_edit.json")["pieces"][0]["data"]
    header, _ = split_file(with_description(contents, whole))
    held = load(contents)
    del held[tensor]
    return save(held, metadata=header["__metadata__"])


def with_edit(contents: bytes) -> bytes:
    """The edit that is folded is not the one of the digest: its strength is another one."""
    held, header = load(contents), split_file(contents)[0]
    text = bytes(held["sea_edit/sea_edit.json"].tolist()).decode()
    edit = json.loads(text)
    for layers in edit["layers"].values():
        layers[0]["strength"] = 0.5
    changed = json.dumps(edit, indent=2).encode().ljust(len(text.encode()))[: len(text.encode())]
    held["sea_edit/sea_edit.json"] = torch.tensor(list(changed), dtype=torch.uint8)
    return save(held, metadata=header["__metadata__"])


def copied(count: int) -> Callable[[bytes], bytes]:
    return file_with("config.json", pieces=[{"copy": count}], size=count)


PATCHES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda contents: contents[:-100],
    "cut in its header": lambda contents: contents[:100],
    "empty": lambda contents: b"",
    "longer": lambda contents: contents + b"more",
    "with a flipped byte": flipped,
    "without a description": header_with(lambda header: header["__metadata__"].pop(DESCRIPTION)),
    "without a digest": header_with(lambda header: header["__metadata__"].pop(DIGEST)),
    "with another digest": header_with(lambda header: header["__metadata__"].update({DIGEST: "0" * 64})),
    "whose description is a list": described(lambda whole: [whole]),
    "of a later version": described(lambda whole: whole.update(format_version=2)),
    "of no version": described(lambda whole: whole.update(format_version="1")),
    "of no base": described(lambda whole: whole.pop("base") and None),
    "of no files": described(lambda whole: whole.update(files={})),
    "without the manifest": described(lambda whole: whole["files"].pop("sea_export.json") and None),
    "that leads up": renamed("../secret"),
    "that leads up from a folder": renamed("sea_edit/../../secret"),
    "into a repository": renamed(".git/hooks/pre-commit"),
    "at an absolute path": renamed("/tmp/secret"),
    "into itself": renamed("."),
    "to no name": renamed(""),
    "to a folder": renamed("folder/"),
    "to a name with a zero": renamed("a\0b"),
    "to a name with an escape": renamed("a\x1b[2J"),
    "to a name of half a character": renamed("a\ud800"),
    "to a name that is too long": renamed("a" * 300),
    "to a name with a backslash": renamed("..\\secret"),
    "to a file in a file": renamed("config.json/secret"),
    "to a drive": renamed("C:\\secret"),
    "from above the base": from_source("../secret"),
    "from an absolute path": from_source("/etc/passwd"),
    "from no file of the base": file_with("config.json", source="secret"),
    "of a huge copy": copied(2**50),
    "of a copy beyond all numbers": copied(10**400),
    "of a negative copy": copied(-1),
    "of a copy of a share": copied(0.5),  # type: ignore[arg-type]
    "of a huge file": file_with("config.json", size=2**52),
    "of a huge base": described(lambda whole: whole["base"]["files"]["config.json"].update(size=2**52)),
    "of pieces without end": file_with("config.json", pieces=[{"copy": 0}] * 1000 + [{"copy": 1}]),
    "of nobody's piece": file_with("config.json", pieces=[{"run": "rm"}]),
    "of two pieces in one": file_with("config.json", pieces=[{"copy": 1, "replaced": 1, "data": None}]),
    "of a tensor that is missing": file_with(CARD, pieces=[{"replaced": 0, "data": "secret"}]),
    "with a false digest of a result": file_with(CARD, sha256="0" * 64),
    "with a false digest of weights": file_with(WEIGHTS, sha256="0" * 64),
    "with a false digest of a copy": file_with("config.json", sha256="0" * 64),
    "with a digest of text": file_with(CARD, sha256="x"),
    "with a false digest of the base": described(
        lambda whole: whole["base"]["files"]["config.json"].update(sha256="0" * 64)
    ),
    "with a tensor of nobody's": with_tensor,
    "without its edit": without_edit,
    "with another edit": with_edit,
    "whose fold has another shape": fold_with(shape=[40, 24]),
    "whose fold has no shape": fold_with(shape=[]),
    "whose fold has empty dimensions": fold_with(shape=[24, 0, 40]),
    "whose fold has many dimensions": fold_with(shape=[1] * 3000 + [24, 40]),
    "whose fold is of integers": fold_with(dtype="I32"),
    "whose fold is of nobody's target": fold_with(target="99.mlp"),
    "whose fold is of a target of nothing": fold_with(target="../../x"),
    "whose fold is along nothing": fold_with(output_dim=0),
    "whose fold is along its other dimension": fold_with(output_dim=-1),
    "whose fold has positions alone": fold_with(positions="README.md"),
    "whose fold has positions of bytes": fold_with(positions="README.md", values="README.md"),
}


@pytest.mark.guarantee("A patch that lies, or that is damaged, is refused in one sentence, and nothing is written")
@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_refused(name: str, count_case: Callable[[], None]) -> None:
    count_case()
    with scratch_folder() as folder:
        (folder / "p.safetensors").write_bytes(PATCHES[name](patch_bytes()))
        before = contents_of(folder)
        output = folder / "out"
        command = ["patch", "apply", template_folder("model"), folder / "p.safetensors", output]
        result = CliRunner().invoke(main, list(map(str, command)))
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) < 1300
        assert contents_of(folder) == before
        assert not (folder.parent / "secret").exists()


def test_the_patch_itself_is_applied() -> None:
    """Else the refusals above would mean nothing."""
    with scratch_folder() as folder:
        (folder / "p.safetensors").write_bytes(described(lambda whole: None)(patch_bytes()))
        command = ["patch", "apply", template_folder("model"), folder / "p.safetensors", folder / "out"]
        result = CliRunner().invoke(main, list(map(str, command)))
        assert result.exit_code == 0, result.output
        assert contents_of(folder / "out") == contents_of(template_folder("output"))


def test_a_link_in_the_place_of_a_patch_or_a_pipe(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "p.safetensors")
    command = ["patch", "apply", template_folder("model"), tmp_path / "p.safetensors", tmp_path / "out"]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 2
    assert [one.name for one in tmp_path.iterdir()] == ["p.safetensors"]
