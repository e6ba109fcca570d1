"""A custom-code export is the base with the edit at run time, and code that stands on its own."""

from __future__ import annotations

import ast
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from tiny_models import PAD, random_model, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, MixtralConfig, PreTrainedModel

import sea_export
from sea_export.base_model import BaseModel, resolve_base
from sea_export.checkpoint import Checkpoint
from sea_export.edit import SpectralEdit, Target
from sea_export.export.custom_code import CODE_FILE, EDIT_SHARD, CodePlan, find_edited_modules, plan_custom_code

PROMPT = [7, 60, 31, 200, 5, 90, 17, 44]
LINEAR = {"center": "linear", "normalization": "calibrated"}
TANH = {"feature_function": "tanh"}


@pytest.fixture(autouse=True, scope="session")
def own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers copies the code that it runs to a cache: not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("modules")
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
        patch.setenv("HF_MODULES_CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def fit_tiny(tokenizer, demonstrations) -> Callable[..., SpectralEdit]:
    """Fits an edit of a tiny model that changes its predictions visibly."""

    def fit(model: PreTrainedModel, **options: object) -> SpectralEdit:
        options = {"layers": "last:3", "explained_variance": 0.7, **options}
        return sea_export.fit(model, tokenizer, demonstrations, **options)

    return fit


@pytest.fixture(scope="session")
def exported(fit_tiny, tiny_checkpoint_of, tmp_path_factory) -> Callable[..., tuple[Path, SpectralEdit]]:
    """The export, and the edit, of a family with some options. Each is made once; read only."""
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


def load(directory: Path, kind: type = AutoModelForCausalLM, **options: object) -> PreTrainedModel:
    model, report = kind.from_pretrained(directory, trust_remote_code=True, output_loading_info=True, **options)
    assert not report["missing_keys"]
    if kind is AutoModelForCausalLM:
        assert not report["unexpected_keys"]
    return model.eval()


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: list[int] = PROMPT) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits


@torch.inference_mode()
def hidden_states(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.tensor([PROMPT])).last_hidden_state


def plan(edit: SpectralEdit, base: BaseModel) -> CodePlan:
    return plan_custom_code(edit, base, find_edited_modules(edit.targets, base))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


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
    "tanh without kept directions": {"feature_function": "tanh", "positive_rank": 0},
}
FAMILIES = ("llama", "gpt2", "qwen3", "gemma2")
CASES = [(variant, "llama") for variant in VARIANTS] + [
    (variant, family)
    for family in FAMILIES[1:]
    for variant in ("linear", "affine", "both", "squared exponential", "tanh token", "sequence")
]


@pytest.mark.parametrize(("variant", "family"), CASES)
def test_exported_code_computes_the_run_time_edit(variant: str, family: str, exported) -> None:
    output, edit = exported(family, **VARIANTS[variant])
    base = tiny_model(family)
    with edit.apply(base):
        expected, expected_states = logits(base), hidden_states(base.base_model)
    assert relative_error(logits(load(output)), expected) < 1e-5
    assert relative_error(hidden_states(load(output, AutoModel)), expected_states) < 1e-5
    assert relative_error(logits(base), expected) > 1e-2, "the edit must do something for the test to mean anything"


@pytest.mark.parametrize("family", FAMILIES)
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
    with composed.apply(model):
        expected = logits(model)
    assert relative_error(logits(load(tmp_path / "out")), expected) < 1e-5
    with sea_export.compose(edits[::-1]).apply(model):
        assert relative_error(logits(model), expected) > 1e-3
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    layer = next(steps for name, steps in config["sea_edit"].items() if name.endswith("2.mlp"))
    assert [step["kind"] for step in layer] == ["linear", "features", "linear", "linear"]


@pytest.mark.parametrize("variant", ["linear", "affine token", "tanh", "squared exponential"])
def test_an_edited_module_in_half_precision_puts_out_the_run_time_edit(variant: str, exported) -> None:
    """Of the same input, to the rounding of its own output."""
    output, edit = exported("llama", **VARIANTS[variant])
    model = load(output, dtype=torch.bfloat16)
    rows = torch.randn(7, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    (layer,) = edit.layers[Target(2, "mlp")]
    with torch.inference_mode():
        actual = model.model.layers[2].mlp.sea_edit(rows)
    expected = layer.apply(rows)
    assert actual.dtype == torch.bfloat16
    rounding = torch.finfo(torch.bfloat16).eps * rows.float().norm(dim=1)
    assert ((actual.float() - expected.float()).norm(dim=1) < rounding).all()
    assert ((rows.float() - expected.float()).norm(dim=1) > 10 * rounding).all()


def test_directions_of_features_are_never_rounded(exported) -> None:
    output, _ = exported("llama", **TANH)
    stored = load_file(output / EDIT_SHARD)
    parameters = dict(load(output, dtype=torch.bfloat16).named_parameters())
    for name, tensor in stored.items():
        assert torch.equal(parameters[name], tensor), name


# Loading


@pytest.mark.parametrize("kind", [AutoConfig, AutoModel, AutoModelForCausalLM])
def test_without_trust_the_load_fails(kind: type, exported) -> None:
    output, _ = exported("llama", **LINEAR)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        kind.from_pretrained(output, trust_remote_code=False)
    load(output)  # nor does it work after a trusted load in the same process
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        kind.from_pretrained(output, trust_remote_code=False)


STRANGER = """
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


def test_a_process_that_knows_nothing_of_sea_export_loads_it(exported, tmp_path) -> None:
    output, edit = exported("llama", **TANH)
    answer = tmp_path / "answer.safetensors"

    def run(trust: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-c", STRANGER, str(output), trust, str(answer), *map(str, PROMPT)]
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
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_the_same_and_brings_its_code(family: str, options: dict, exported, tmp_path) -> None:
    output, _ = exported(family, **options)
    model = load(output)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CODE_FILE).read_bytes() == (output / CODE_FILE).read_bytes()
    again = load(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert set(again.state_dict()) == set(model.state_dict())
    assert torch.equal(hidden_states(load(tmp_path / "again", AutoModel)), hidden_states(load(output, AutoModel)))


def test_a_copy_of_the_model_is_edited_too(exported) -> None:
    output, _ = exported("llama", **TANH)
    model = load(output)
    duplicate = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(duplicate), logits(load(output)))


def test_a_model_is_made_from_its_config_without_weights(exported) -> None:
    output, _ = exported("llama", **LINEAR)
    config = AutoConfig.from_pretrained(output, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert set(model.state_dict()) == set(load(output).state_dict())
    with torch.device("meta"):
        assert AutoModel.from_config(config, trust_remote_code=True).device.type == "meta"


def test_a_device_map_places_the_edit_with_its_module(exported) -> None:
    output, _ = exported("llama", **LINEAR)
    model = load(output, device_map={"": "cpu"})
    assert torch.equal(logits(model), logits(load(output)))


# Tokenizers


def test_the_tokenizer_is_the_base_s_own(exported, tiny_checkpoint) -> None:
    output, _ = exported("llama", **LINEAR)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (output / file).read_bytes() == (tiny_checkpoint / file).read_bytes()
    text = "Is the moon made of cheese? No."
    tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert "tokenizer_class" not in json.loads((output / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tokenizer_that_names_no_class_is_still_found(family: str, fit_tiny, tiny_checkpoint_of, tmp_path) -> None:
    shutil.copytree(tiny_checkpoint_of(family), tmp_path / "base")
    settings_file = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    del settings["tokenizer_class"]
    settings_file.write_text(json.dumps(settings), encoding="utf-8")
    edit = fit_tiny(tiny_model(family))
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    text = "Is the moon made of cheese? No."
    before = AutoTokenizer.from_pretrained(tmp_path / "base")
    after = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert after(text).input_ids == before(text).input_ids
    assert type(after) is type(before)


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
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_does_not_depend_on_cache_or_batch(variant: str, family: str, exported) -> None:
    output, edit = exported(family, **CAUSAL[variant])
    model, base = load(output), tiny_model(family)
    together = generated(model, PROMPTS)
    assert torch.equal(generated(model, PROMPTS, use_cache=False), together)
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        assert torch.equal(generated(model, [prompt])[0], tokens)
    with edit.apply(base):
        assert torch.equal(generated(base, PROMPTS), together)


def test_sequence_normalization_depends_on_both_and_the_code_says_so(exported) -> None:
    output, _ = exported("llama", normalization="sequence")
    model = load(output)
    extended = logits(model, [*PROMPT, 3, 4])[:, : len(PROMPT)]
    assert relative_error(extended, logits(model)) > 1e-3
    assert "generation with a cache differs from generation without" in (output / CODE_FILE).read_text("utf-8")
    other, _ = exported("llama", **LINEAR)
    extended = logits(load(other), [*PROMPT, 3, 4])[:, : len(PROMPT)]
    assert relative_error(extended, logits(load(other))) < 1e-5
    assert "cache" not in (other / CODE_FILE).read_text("utf-8")


# What programs do with models


@pytest.mark.parametrize("variant", ["linear", "affine token", "tanh", "elu calibrated", "squared exponential"])
def test_torch_compile_takes_the_edit_along(variant: str, exported) -> None:
    output, _ = exported("llama", **VARIANTS[variant])
    model = load(output)
    expected = logits(model)
    torch._dynamo.reset()
    layer = model.model.layers[2].mlp
    rows = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows), layer(rows))
    assert relative_error(logits(torch.compile(model, backend="eager")), expected) < 1e-5


@pytest.mark.parametrize("variant", ["linear", "tanh"])
def test_gradients_pass_through_the_edit_with_and_without_checkpointing(variant: str, exported) -> None:
    output, _ = exported("llama", **VARIANTS[variant])
    gradients = []
    for checkpointing in (False, True):
        model = load(output).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        tokens = torch.tensor([PROMPT])
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient)


# Files


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_the_base_is_linked_and_nothing_of_it_is_rewritten(
    sharded: bool, fit_tiny, llama, tiny_checkpoint, tiny_sharded_checkpoint, tmp_path
) -> None:
    shutil.copytree(tiny_sharded_checkpoint if sharded else tiny_checkpoint, tmp_path / "base")
    (tmp_path / "base" / "extra").mkdir()
    (tmp_path / "base" / "extra" / "notes.txt").write_bytes(b"\x00kept\r\n")
    original = {path: path.read_bytes() for path in (tmp_path / "base").rglob("*") if path.is_file()}
    sea_export.save(fit_tiny(llama), tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    base, written = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "out")
    for file in base.weight_files:
        assert os.path.samefile(tmp_path / "base" / file, tmp_path / "out" / f"base-{file}")
    assert written.weight_files == (*(f"base-{file}" for file in base.weight_files), EDIT_SHARD)
    assert {name for name in written.tensors if name not in base.tensors} == {
        f"model.layers.{layer}.mlp.sea_edit.0.{name}" for layer in (1, 2, 3) for name in ("read", "write")
    }
    for file in base.side_files():
        if file not in ("config.json", base.index_file):
            assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "base" / file).read_bytes(), file
    # A user who saves over the export must not write into the base through a link.
    model = load(tmp_path / "out")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "base").rglob("*") if path.is_file()} == original


def test_where_links_are_not_possible_the_base_is_copied(fit_tiny, llama, tiny_checkpoint, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("links are not possible here")

    monkeypatch.setattr(os, "link", refuse)
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    source, copied = tiny_checkpoint / "model.safetensors", tmp_path / "out" / "base-model.safetensors"
    assert not os.path.samefile(source, copied)
    assert source.read_bytes() == copied.read_bytes()
    load(tmp_path / "out")


def test_the_config_is_the_base_s_but_for_what_makes_it_custom_code(exported, tiny_checkpoint) -> None:
    output, _ = exported("llama", **LINEAR)
    base, written = (
        json.loads((directory / "config.json").read_text(encoding="utf-8")) for directory in (tiny_checkpoint, output)
    )
    changed = {"model_type", "architectures", "auto_map", "sea_edit"}
    assert {key: value for key, value in written.items() if key not in changed} == {
        key: value for key, value in base.items() if key not in changed
    }
    assert written["model_type"] == "sea_llama"
    assert written["architectures"] == ["SeaLlamaForCausalLM"]
    assert set(written["sea_edit"]) == {f"layers.{layer}.mlp" for layer in (1, 2, 3)}


def test_code_that_the_base_offers_beside_transformers_own_is_not_offered_again(
    fit_tiny, llama, tiny_checkpoint, tmp_path
) -> None:
    """It would load the model without the edit."""
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_other.Other"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sea_export.save(fit_tiny(llama), tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    load(tmp_path / "out")


def test_a_checkpoint_without_the_prefix_of_the_base_model_keeps_its_names(fit_tiny, tokenizer, tmp_path) -> None:
    model = tiny_model("gpt2")
    model.transformer.save_pretrained(tmp_path / "base")
    edit = fit_tiny(model)
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    assert "h.3.mlp.sea_edit.0.read" in Checkpoint.open(tmp_path / "out").tensors
    with edit.apply(model):
        assert relative_error(logits(load(tmp_path / "out")), logits(model)) < 1e-5
        assert relative_error(hidden_states(load(tmp_path / "out", AutoModel)), hidden_states(model.transformer)) < 1e-5


def test_the_same_edit_gives_the_same_bytes(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    for name in ("one", "two"):
        edit = fit_tiny(llama, **LINEAR)
        sea_export.save(edit, tiny_checkpoint, tmp_path / name, format="custom-code", verify=False)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {Path(CODE_FILE), Path(EDIT_SHARD), Path("sea_edit/sea_edit.json")} <= files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


# The code


def test_the_code_imports_torch_and_transformers_and_says_what_it_is(exported, tiny_checkpoint) -> None:
    output, edit = exported("llama", **TANH)
    text = (output / CODE_FILE).read_text(encoding="utf-8")
    tree = ast.parse(text)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported == {"torch", "transformers"}
    header = ast.get_docstring(tree)
    assert f"Base: {tiny_checkpoint.name}." in header
    assert "3 modules; non-linear (tanh)" in header
    assert edit.provenance["demonstrations"]["sha256"] in header
    assert "sea-export 0." in header
    assert len(text.splitlines()) < 200
    assert max(map(len, text.splitlines())) <= 120


def test_code_is_formatted_as_this_project_s(exported, tmp_path) -> None:
    output, _ = exported("gpt2", **LINEAR)
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    for arguments in (["check", "--isolated", "--select", "E,F,B,UP", "--line-length", "120"], ["format", "--check"]):
        command = [str(ruff), *arguments, str(output / CODE_FILE)]
        if arguments[0] == "format":
            command[2:2] = ["--isolated", "--line-length", "120"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout


def test_a_name_cannot_become_code(fit_tiny, llama, tiny_checkpoint, exported) -> None:
    hostile = '"""\nimport os\nos.system("true")\n"""$model_type\\'
    with resolve_base(str(tiny_checkpoint)) as base:
        hostile_base = replace(base, name=hostile, revision=hostile)
        source = plan(fit_tiny(llama), hostile_base).source
    plain = (exported("llama")[0] / CODE_FILE).read_text(encoding="utf-8")

    def code(text: str) -> str:
        tree = ast.parse(text)
        assert isinstance(tree.body[0], ast.Expr)
        return ast.dump(ast.Module(tree.body[1:], []))

    assert code(source) == code(plain)


# Refusals


def refused(edit: SpectralEdit, base: Path, output: Path, message: str) -> None:
    with pytest.raises(sea_export.InputError, match=message):
        sea_export.save(edit, base, output, format="custom-code", verify=False)
    assert not list(output.parent.glob(f"*{output.name}*"))


def test_a_base_that_is_custom_code_itself_is_refused(exported, tmp_path) -> None:
    output, edit = exported("llama", **LINEAR)
    refused(replace(edit, provenance={}), output, tmp_path / "again", "code of its own .*no sea_llama")


def test_an_edit_of_another_size_is_refused(fit_tiny, tiny_checkpoint, tmp_path) -> None:
    config = tiny_config("llama")
    config.hidden_size, config.head_dim = 32, 8
    refused(fit_tiny(random_model(config)), tiny_checkpoint, tmp_path / "out", "32 features")


def test_weights_that_transformers_converts_for_its_own_classes_are_refused(tmp_path, fit_tiny, llama) -> None:
    config = MixtralConfig(
        hidden_size=24, intermediate_size=16, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=2, vocab_size=320,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    assert any("block_sparse_moe" in name for name in Checkpoint.open(tmp_path / "base").tensors)
    refused(fit_tiny(llama, target="attention"), tmp_path / "base", tmp_path / "out", "converts such weights")


def test_quantized_bases_are_planned_like_others(exported, fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    """Their stored tensors have other names, but their modules have the same."""
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with resolve_base(str(tmp_path / "base")) as base:
        planned = plan(fit_tiny(llama), base)
    assert planned.config["quantization_config"]["quant_method"] == "gptq"
    assert "model.layers.3.mlp.sea_edit.0.read" in planned.tensors


def test_edits_that_do_not_fold_are_refused_by_other_formats_before_anything_is_written(
    fit_tiny, llama, tiny_checkpoint, tmp_path
) -> None:
    for options, setting in (
        ({"feature_function": "tanh"}, "--feature-function identity"),
        ({"normalization": "token"}, "--normalization calibrated"),
        ({"normalization": "sequence"}, "--normalization calibrated"),
    ):
        edit = sea_export.compose([fit_tiny(llama), fit_tiny(llama, **options)])
        for form in ("merged", "adapter"):
            with pytest.raises(sea_export.InputError, match=f"--format custom-code, or {setting}"):
                sea_export.save(edit, tiny_checkpoint, tmp_path / "out", format=form, verify=False)
    assert not list(tmp_path.iterdir())


# Verification


def saved(edit: SpectralEdit, base: Path, output: Path) -> sea_export.Verification:
    verification = sea_export.save(edit, base, output, format="custom-code").verification
    assert verification is not None
    return verification


def test_a_verified_export_says_what_was_measured(fit_tiny, llama, tiny_sharded_checkpoint, tmp_path) -> None:
    edit = fit_tiny(llama, feature_function="tanh", normalization="sequence")
    verification = saved(edit, tiny_sharded_checkpoint, tmp_path / "out")
    assert verification.passed
    assert verification.storage == verification.mathematics
    assert verification.storage.relative_logit_difference < 1e-5
    assert verification.effect.mean_divergence > 1e-3
    assert verification.changed_tensors == 0
    assert verification.identical_tensors == len(Checkpoint.open(tiny_sharded_checkpoint).tensors)
    assert "6 tensors of the edit stand beside them" in verification.statement
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code=True" in card
    assert CODE_FILE in card
    assert "generation with a cache differs" in card
    manifest = json.loads((tmp_path / "out" / "sea_export.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "custom-code"
    assert manifest["files"]["base-" + next(iter(Checkpoint.open(tiny_sharded_checkpoint).weight_files))]
    assert {layer["feature_function"] for layer in manifest["layers"]} == {"tanh"}
    again = sea_export.verify(tmp_path / "out", tiny_sharded_checkpoint)
    assert again.passed
    assert again.storage.equal_greedy == 1


def test_verification_leaves_no_copy_of_the_code_behind(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    cache = Path(transformers.dynamic_module_utils.HF_MODULES_CACHE)
    before = set(cache.rglob("*.py"))
    saved(fit_tiny(llama), tiny_checkpoint, tmp_path / "out")
    assert set(cache.rglob("*.py")) == before


def tampered(output: Path, tensors: dict[str, torch.Tensor]) -> None:
    shard = output / EDIT_SHARD
    save_file({**load_file(shard), **tensors}, shard, metadata={"format": "pt"})


def test_verification_finds_what_is_not_the_edit(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama, **TANH), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    name = "model.layers.2.mlp.sea_edit.0.kept_directions"
    tampered(tmp_path / "out", {name: load_file(tmp_path / "out" / EDIT_SHARD)[name].flip(1).contiguous()})
    problems = "; ".join(sea_export.verify(tmp_path / "out", tiny_checkpoint).problems)
    assert f"stored tensors are not those of the edit: {name}" in problems
    assert "the export as stored differs from the run-time edit" in problems


def test_verification_finds_that_the_base_was_changed(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    weights = load_file(tmp_path / "out" / "base-model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] += 1
    (tmp_path / "out" / "base-model.safetensors").unlink()  # it is linked to the base's
    save_file(weights, tmp_path / "out" / "base-model.safetensors", metadata={"format": "pt"})
    problems = "; ".join(sea_export.verify(tmp_path / "out", tiny_checkpoint).problems)
    assert "tensors of the base are not as they were: model.layers.0.mlp.up_proj.weight" in problems


def test_verification_finds_a_tokenizer_that_is_not_the_base_s(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(sea_export.SeaExportError, match="its tokenizer makes other tokens"):
        sea_export.verify(tmp_path / "out", tiny_checkpoint)


@pytest.mark.parametrize("part", ["code", "auto_map"])
def test_code_that_is_not_ours_is_not_run_by_verification(part: str, fit_tiny, llama, tiny_checkpoint, tmp_path):
    output, trace = tmp_path / "out", tmp_path / "trace"
    sea_export.save(fit_tiny(llama), tiny_checkpoint, output, format="custom-code", verify=False)
    foreign = (output / CODE_FILE).read_text("utf-8") + f"\n\nopen({str(trace)!r}, 'w').close()\n"
    if part == "code":
        (output / CODE_FILE).write_text(foreign, encoding="utf-8")
    else:
        (output / "other.py").write_text(foreign, encoding="utf-8")
        config = (output / "config.json").read_text(encoding="utf-8")
        (output / "config.json").write_text(config.replace("modeling_sea.", "other."), encoding="utf-8")
    with pytest.raises(sea_export.InputError, match="read the code, and run it with --trust-remote-code"):
        sea_export.verify(output, tiny_checkpoint)
    assert not trace.exists()
    if part == "code":
        assert sea_export.verify(output, tiny_checkpoint, trust_remote_code=True).passed
        assert trace.exists()


def test_another_name_of_the_base_is_no_other_code(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere")
    assert sea_export.verify(tmp_path / "out", tmp_path / "elsewhere").passed
