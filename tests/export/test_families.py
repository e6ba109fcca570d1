"""What becomes of an edit of every family that transformers knows is pinned, and is what tests/README.md says."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.helpers.families import EXACT, FAMILIES, MULTIMODAL, Outcome, outcome, table

pytestmark = pytest.mark.slow

# The release whose families are listed here. With others, every outcome is measured all the same: exact, or refused
# for a reason.
PINNED_RELEASE = "5.24"

_NO_BLOCKS = ("refused: no MLP and no attention block",) * 3
_SHARED = ("refused: layers share their weights",) * 3
_NOT_LOADED = ("refused: transformers does not load by itself what it saves",) * 3
_NO_LIST = ("refused: no single list of layers",) * 3
_TWO_PARTS = ("refused: its MLP is in two parts",) * 3
_NO_BIASES = (EXACT, "refused: PEFT holds no biases of experts", EXACT)

# Families of which not all formats are exact.
REFUSED = {
    "axk1": (*("refused: its experts are followed by a norm within the block",) * 2, EXACT),
    "blt": ("refused: no single language model",) * 3,
    "dbrx": (EXACT, "refused: PEFT cannot adapt experts in one matrix", EXACT),
    "emu3": _NOT_LOADED,
    "falcon_mamba": _NO_BLOCKS,
    "gpt_oss": _NO_BIASES,
    "granitemoe_swa": _TWO_PARTS,
    "granitemoehybrid": _TWO_PARTS,
    "granitemoeshared": _TWO_PARTS,
    "hrm_text": _NO_LIST,
    "jetmoe": _NO_BIASES,
    "laguna": (EXACT, "refused: PEFT renames its tensors wrongly", EXACT),
    "longcat_flash": _NO_LIST,
    "mamba": _NO_BLOCKS,
    "mamba2": _NO_BLOCKS,
    "mllama": _NOT_LOADED,
    "rwkv": ("refused: no linear map ends its blocks",) * 3,
    "trocr": (EXACT, EXACT, "refused: transformers does not export its class"),
    "xlnet": ("refused: no linear map ends its blocks",) * 3,
    "zamba": _SHARED,
    "zamba2": _SHARED,
}
# Families whose models cannot be made here, or run by themselves.
NOT_MADE = {
    "gemma3n": "not made: TimmWrapperModel requires the timm library but it was not found in your environment",
    "gemma4_assistant": "not made: ValueError: hidden_size_per_layer_input must be 0, got 256",
    "gemma4_unified_assistant": "not made: inputs_embeds and shared_kv_states cannot be None",
}
# What must be exact in `merged`, whatever the release.
REQUIRED = {
    *("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen2", "qwen3", "qwen3_moe"),
    *("qwen3_next", "phi", "phi3", "phimoe", "gpt2", "gptj", "gpt_neox", "gpt_neo", "opt", "falcon", "bloom", "mpt"),
    *("stablelm", "olmo", "olmo2", "olmoe", "cohere", "cohere2", "granite", "granitemoe", "starcoder2"),
    *("deepseek_v2", "deepseek_v3", "gpt_oss", "smollm3", "glm4", "llava (multimodal)"),
}
_PINNED = importlib.metadata.version("transformers").startswith(f"{PINNED_RELEASE}.")


@pytest.fixture(scope="session")
def outcomes() -> dict[str, Outcome]:
    """What the tests of single families have found."""
    return {}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_a_family_is_exported_exactly_or_refused(
    family: str, tmp_path: Path, outcomes: dict[str, Outcome]
) -> None:
    found = outcomes[family] = outcome(family, tmp_path)
    if family in REQUIRED:
        assert found.formats[0] == EXACT
    if not _PINNED:
        return
    if found.left_out in ("a masked language model", "an encoder-decoder"):
        assert family not in REFUSED
    elif family in NOT_MADE:
        assert found == Outcome(NOT_MADE[family])
    else:
        assert found == Outcome(None, REFUSED.get(family, (EXACT,) * 3))


def test_every_family_is_tried() -> None:
    assert set(FAMILIES) == {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *(f"{name} (multimodal)" for name in MULTIMODAL)}
    assert set(FAMILIES) >= {*REQUIRED, *(REFUSED if _PINNED else ()), *(NOT_MADE if _PINNED else ())}


def test_readme_has_the_outcomes(outcomes: dict[str, Outcome]) -> None:
    if not _PINNED:
        pytest.skip(f"the table in tests/README.md is of transformers {PINNED_RELEASE}")
    if len(outcomes) != len(FAMILIES):
        pytest.skip("not all families were tried in this run")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert table(outcomes) in readme
