"""A process that the system ends, as it does where memory runs out, is told as what it is."""

from __future__ import annotations

import subprocess

import pytest

from sea_export.errors import SeaExportError
from sea_export.export.formats import Loading
from sea_export.verification import compare
from tests.helpers.messages import naming


@pytest.mark.parametrize(("status", "name"), [(-9, "SIGKILL"), (-11, "SIGSEGV")])
def test_the_signal_and_what_to_do_are_named(status: int, name: str, llama, tokenizer, tmp_path, monkeypatch) -> None:
    ended = subprocess.CompletedProcess([], status, "", "")
    loading = Loading("AutoModelForCausalLM", trust_remote_code=False, base=None, has_code=False, arguments={})
    monkeypatch.setattr(compare, "run_python", lambda *_, **__: ended)
    with pytest.raises(SeaExportError, match=naming(name, "memory", "--layerwise", "--no-verify")):
        compare.logits_in_subprocess(tmp_path, [[3]], tokenizer, loading=loading, dtype=llama.dtype)
