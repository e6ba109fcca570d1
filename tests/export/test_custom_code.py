"""A custom-code export computes the run-time edit, in whatever way it is loaded and run."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import sea_export
from sea_export.export.custom_code.code_plan import CODE_FILE, EDIT_SHARD
from sea_export.model.targets import Target
from tests.helpers.custom_code_models import LINEAR, PROMPT, TANH, hidden_states, load, logits, relative_error
from tests.helpers.parameters import slow_but
from tests.helpers.tiny_models import PAD, tiny_model

# The same numbers as the run-time edit

VARIANTS = {
    "plain": {},
    "average": {"normalization": "average"},
    "calibrated": {"normalization": "calibrated"},
    "token": {"normalization": "token"},
    "sequence": {"normalization": "sequence"},
    "strength": {"strength": 0.4},
    "positive": {"projections": "positive"},
    "negative": {"projections": "negative"},
    "reversed": {"projections": "reversed"},
    "attention": {"target": "attention"},
    "both": {"target": "both"},
    "affine": {"center": "affine", "normalization": "calibrated"},
    "affine token": {"center": "affine", "normalization": "token"},
    "linear": LINEAR,
    "tanh": TANH,
    "elu": {"feature_function": "elu", "target": "both"},
    "squared exponential": {"feature_function": "squared-exponential", "length_scale": 2.0},
    "tanh strength": {"feature_function": "tanh", "strength": 0.4},
    "tanh average": {"feature_function": "tanh", "normalization": "average"},
    "elu calibrated": {"feature_function": "elu", "normalization": "calibrated"},
    "tanh token": {"feature_function": "tanh", "normalization": "token"},
    "elu sequence": {"feature_function": "elu", "normalization": "sequence"},
    "tanh positive": {"feature_function": "tanh", "projections": "positive"},
    "elu negative": {"feature_function": "elu", "projections": "negative"},
    "tanh reversed": {"feature_function": "tanh", "projections": "reversed"},
    "bias": {"method": "gradient"},
    "bias, read": {"method": "natural-gradient", "center": "linear", "strength": 0.5},
    "linear map": {"method": "natural-gradient", "form": "linear", "strength": 0.1},
    "map of low rank": {"method": "gradient", "form": "low-rank", "rank": 3},
    "erasure": {"method": "erasure"},
    "tanh without kept directions": {"feature_function": "tanh", "positive_rank": 0},
}
FAMILIES = ("llama", "gpt2", "qwen3", "gemma2")
CASES = [(variant, "llama") for variant in VARIANTS] + [
    (variant, family)
    for family in FAMILIES[1:]
    for variant in ("linear", "affine", "both", "squared exponential", "tanh token", "sequence", "bias", "linear map")
]
FAST_CASES = [
    (variant, "llama") for variant in ("linear", "affine token", "squared exponential", "tanh average", "bias")
]


@pytest.mark.parametrize(("variant", "family"), slow_but(FAST_CASES, CASES))
def test_exported_code_computes_the_run_time_edit(variant: str, family: str, custom_code_of) -> None:
    output, edit = custom_code_of(family, **VARIANTS[variant])
    base = tiny_model(family)
    with edit.apply(base):
        expected, expected_states = logits(base), hidden_states(base.base_model)
    assert relative_error(logits(load(output)), expected) < 1e-5
    assert relative_error(hidden_states(load(output, AutoModel)), expected_states) < 1e-5
    assert relative_error(logits(base), expected) > 1e-2, "the edit must do something for the test to mean anything"


@pytest.mark.parametrize("family", slow_but(["llama"], FAMILIES))
def test_edits_in_turn_are_run_in_turn(family: str, fit_tiny, tiny_checkpoint_of, tmp_path) -> None:
    model = tiny_model(family)
    edits = [
        fit_tiny(model, center="affine"),
        fit_tiny(model, normalization="calibrated", layers="2"),
        fit_tiny(model, feature_function="tanh", target="both"),
        fit_tiny(model, normalization="token", explained_variance=0.9),
        fit_tiny(model, strength=0.5, layers="0-2"),
    ]
    composed = sea_export.compose(edits)
    sea_export.save(composed, tiny_checkpoint_of(family), tmp_path / "out", format="custom-code", verify=False)
    # In double precision, but for the norms, because several edits in turn amplify what float32 rounds.
    exported, model = load(tmp_path / "out").double(), copy.deepcopy(model).double()
    with composed.apply(model):
        expected = logits(model)
    assert relative_error(logits(exported), expected) < 1e-5
    with sea_export.compose(edits[::-1]).apply(model):
        assert relative_error(logits(model), expected) > 1e-3
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    layer = next(steps for name, steps in config["sea_edit"].items() if name.endswith("2.mlp"))
    assert [step["kind"] for step in layer] == ["linear", "features", "linear", "linear"]


@pytest.mark.parametrize("variant", ["linear", "affine token", "tanh", "squared exponential"])
def test_an_edited_module_in_half_precision_puts_out_the_run_time_edit(variant: str, custom_code_of) -> None:
    """Of the same input, to the rounding of its own output."""
    output, edit = custom_code_of("llama", **VARIANTS[variant])
    model = load(output, dtype=torch.bfloat16)
    rows = torch.randn(7, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    (layer,) = edit.layers[Target(2, "mlp")]
    with torch.inference_mode():
        actual = rows
        for step in model.model.layers[2].mlp.sea_edit:
            actual = step(actual)
    expected = layer.apply(rows)
    assert actual.dtype == torch.bfloat16
    rounding = torch.finfo(torch.bfloat16).eps * rows.float().norm(dim=1)
    assert ((actual.float() - expected.float()).norm(dim=1) < rounding).all()
    assert ((rows.float() - expected.float()).norm(dim=1) > 10 * rounding).all()


@pytest.mark.parametrize("kind", [LINEAR, TANH], ids=["linear", "tanh"])
def test_the_tensors_of_an_edit_are_never_rounded(kind: dict, custom_code_of) -> None:
    output, _ = custom_code_of("llama", **kind)
    stored = load_file(output / EDIT_SHARD)
    parameters = dict(load(output, dtype=torch.bfloat16).named_parameters())
    for name, tensor in stored.items():
        assert torch.equal(parameters[name], tensor), name


# Loading


@pytest.mark.parametrize("kind", [AutoConfig, AutoModel, AutoModelForCausalLM])
def test_without_trust_the_load_fails(kind: type, custom_code_of) -> None:
    output, _ = custom_code_of("llama", **LINEAR)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        kind.from_pretrained(output, trust_remote_code=False)
    load(output)  # nor does it work after a trusted load in the same process
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        kind.from_pretrained(output, trust_remote_code=False)


OTHER_PROGRAM = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
directory, trust, answer, *tokens = sys.argv[1:]
trusted = {"trust_remote_code": True} if trust == "yes" else {}
model = AutoModelForCausalLM.from_pretrained(directory, **trusted).eval()
with torch.inference_mode():
    save_file({"logits": model(torch.tensor([[int(token) for token in tokens]])).logits}, answer)
assert "sea_export" not in sys.modules
"""


@pytest.mark.slow
def test_a_process_that_knows_nothing_of_sea_export_loads_it(custom_code_of, tmp_path) -> None:
    output, edit = custom_code_of("llama", **TANH)
    answer = tmp_path / "answer.safetensors"

    def run(trust: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-c", OTHER_PROGRAM, str(output), trust, str(answer), *map(str, PROMPT)]
        # Nobody can answer transformers' question whether to run the code.
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    refused = run("no")
    assert refused.returncode != 0
    assert "trust_remote_code=True" in refused.stderr
    assert not answer.exists()
    trusted = run("yes")
    assert trusted.returncode == 0, trusted.stderr
    model = tiny_model("llama")
    with edit.apply(model):
        assert relative_error(load_file(answer)["logits"], logits(model)) < 1e-5


@pytest.mark.parametrize("options", [LINEAR, TANH], ids=["linear", "tanh"])
@pytest.mark.parametrize("family", slow_but(["llama"], FAMILIES))
def test_a_saved_model_is_the_same_and_brings_its_code(family: str, options: dict, custom_code_of, tmp_path) -> None:
    output, _ = custom_code_of(family, **options)
    model = load(output)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CODE_FILE).read_bytes() == (output / CODE_FILE).read_bytes()
    again = load(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert set(again.state_dict()) == set(model.state_dict())
    assert torch.equal(hidden_states(load(tmp_path / "again", AutoModel)), hidden_states(load(output, AutoModel)))


def test_a_copy_of_the_model_is_edited_too(custom_code_of) -> None:
    output, _ = custom_code_of("llama", **TANH)
    model = load(output)
    duplicate = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(duplicate), logits(load(output)))


def test_a_model_is_made_from_its_config_without_weights(custom_code_of) -> None:
    output, _ = custom_code_of("llama", **LINEAR)
    config = AutoConfig.from_pretrained(output, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert set(model.state_dict()) == set(load(output).state_dict())
    with torch.device("meta"):
        assert AutoModel.from_config(config, trust_remote_code=True).device.type == "meta"


def test_a_device_map_places_the_edit_with_its_module(custom_code_of) -> None:
    output, _ = custom_code_of("llama", **LINEAR)
    model = load(output, device_map={"": "cpu"})
    assert torch.equal(logits(model), logits(load(output)))


# Generation


def generated(model: PreTrainedModel, prompts: list[list[int]], **options: object) -> torch.Tensor:
    width = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": PAD, **options}
    return model.generate(tokens, attention_mask=mask, **options)[:, width:]


PROMPTS = [PROMPT, [9, 77, 12], [41, 5, 66, 102, 13]]
CAUSAL = {"linear": LINEAR, "tanh": TANH, "token": {"normalization": "token"}}


@pytest.mark.parametrize("variant", CAUSAL)
@pytest.mark.parametrize("family", slow_but(["llama"], FAMILIES))
def test_generation_does_not_depend_on_cache_or_batch(variant: str, family: str, custom_code_of) -> None:
    output, edit = custom_code_of(family, **CAUSAL[variant])
    model, base = load(output), tiny_model(family)
    together = generated(model, PROMPTS)
    assert torch.equal(generated(model, PROMPTS, use_cache=False), together)
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        assert torch.equal(generated(model, [prompt])[0], tokens)
    with edit.apply(base):
        assert torch.equal(generated(base, PROMPTS), together)


def test_sequence_normalization_depends_on_both_and_the_code_says_so(custom_code_of) -> None:
    output, _ = custom_code_of("llama", normalization="sequence")
    model = load(output)
    extended = logits(model, [*PROMPT, 3, 4])[:, : len(PROMPT)]
    assert relative_error(extended, logits(model)) > 1e-3
    assert "generation with a cache differs from generation without" in (output / CODE_FILE).read_text("utf-8")
    other, _ = custom_code_of("llama", **LINEAR)
    extended = logits(load(other), [*PROMPT, 3, 4])[:, : len(PROMPT)]
    assert relative_error(extended, logits(load(other))) < 1e-5
    assert "cache" not in (other / CODE_FILE).read_text("utf-8")


# What programs do with models


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["linear", "affine token", "tanh", "elu calibrated", "squared exponential"])
def test_torch_compile_takes_the_edit_along(variant: str, custom_code_of) -> None:
    output, _ = custom_code_of("llama", **VARIANTS[variant])
    model = load(output)
    expected = logits(model)
    torch._dynamo.reset()
    layer = model.model.layers[2].mlp
    rows = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows), layer(rows))
    assert relative_error(logits(torch.compile(model, backend="eager")), expected) < 1e-5


@pytest.mark.parametrize("variant", ["linear", "tanh"])
def test_gradients_pass_through_the_edit_with_and_without_checkpointing(variant: str, custom_code_of) -> None:
    output, _ = custom_code_of("llama", **VARIANTS[variant])
    gradients = []
    for checkpointing in (False, True):
        model = load(output).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        tokens = torch.tensor([PROMPT])
        model(tokens, labels=tokens).loss.backward()
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        gradients.append({name: parameter.grad for name, parameter in trained.items()})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient)


def test_fine_tuning_leaves_the_edit_as_it_is(custom_code_of) -> None:
    output, _ = custom_code_of("llama")
    model = load(output)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {name for name, _ in model.state_dict().items() if ".sea_edit." in name}
    assert tensors
    assert not trained & tensors
    assert trained
