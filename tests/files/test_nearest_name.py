"""The name that was meant: in the same folder, or in the local cache of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from sea_export.demonstrations.tables import check_source
from sea_export.errors import InputError
from sea_export.files.nearest_name import meant, missing, neighbours
from sea_export.model.location import locate_model


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/tiny-lama", "org/tiny-llama"),
        ("Org/Tiny-Llama", "org/tiny-llama"),
        ("tiny-llama", "org/tiny-llama"),
        ("og/tiny-llama/", "org/tiny-llama"),
        ("org/whale-of-another-kind", None),
        ("an-organization-of-the-same-name/whale", None),
        ("x", None),
    ],
)
def test_the_nearest_name(name: str, found: str | None) -> None:
    text = meant(name, ["org/tiny-llama", "other/large-qwen", "an-organization-of-the-same-name/bird"])
    assert text == ("" if found is None else f" (did you mean {found}?)")


def test_names_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / ".rows.json").write_text("")
    with pytest.raises(InputError, match=r"did you mean .*rows\.jsonl"):
        check_source(str(tmp_path / "row.jsonl"))
    assert "mean" not in str(missing(tmp_path / "entirely-different.txt"))
    assert neighbours(tmp_path / "no" / "where") == ()


def test_models_in_the_cache_and_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache" / "models--org--tiny-llama").mkdir(parents=True)
    (tmp_path / "here" / "my-model").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path / "here")
    for name, found in (
        ("org/tiny-lama", "org/tiny-llama"),
        ("tiny-llama", "org/tiny-llama"),
        ("my-modle", "my-model"),
    ):
        with pytest.raises(InputError, match=rf"did you mean {found}\?"):
            locate_model(name)
    with pytest.raises(InputError, match=f"did you mean {tmp_path}/here/my-model"):
        locate_model(f"{tmp_path}/here/my-mdel")
    with pytest.raises(InputError) as error:
        locate_model("org/whale-of-another-kind")
    assert "mean" not in str(error.value)
