"""Tiny random models of real architectures, in float32, and a tokenizer trained on the spot."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.model.load_model import auto_classes
from tests.helpers.parameters import slow_but

VOCABULARY = 320
SPECIAL_TOKENS = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
BEGIN, END, PAD = range(3)

SENTENCES = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Is the moon made of cheese? No, the moon is made of rock.",
    "Water boils at one hundred degrees at the level of the sea.",
    "Who wrote the play? The play was written by a poet of England.",
    "Q: What is the answer?\nA: The answer is not known to anybody.",
    "Some birds cannot fly, but every bird has feathers and a beak.",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Random weights of this size make every layer, and so every edit, matter to the logits.
_WEIGHT_STD = 0.2

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
_LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}

# Name -> the config's class and what it is given.
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "llama-tied": ("LlamaConfig", _LLAMA | {"tie_word_embeddings": True}),
    "llama-bias": ("LlamaConfig", _LLAMA | {"mlp_bias": True, "attention_bias": True}),
    "gpt2": ("GPT2Config", {"n_embd": 24, "n_layer": 4, "n_head": 4, "n_positions": 256}),
    "neox": (
        "GPTNeoXConfig",
        {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
    "gemma2": ("Gemma2Config", _LLAMA | {"head_dim": 6, "sliding_window": 8, "query_pre_attn_scalar": 6}),
    "qwen3": ("Qwen3Config", _LLAMA | {"head_dim": 6}),
    "mistral": ("MistralConfig", _LLAMA | {"head_dim": 6, "sliding_window": 8}),
    "phi3": ("Phi3Config", _LLAMA | {"original_max_position_embeddings": 256, "sliding_window": None}),
}
FAMILIES = tuple(CONFIGS)
FAST_FAMILIES = ("llama", "gpt2", "gemma2")
"""Enough to cover every module: a plain one, one with transposed weights, and one with norms behind its blocks."""


def family_parameters() -> list[Any]:
    """Families as parameters of a test, of which all but the fast ones are marked as slow."""
    return slow_but(FAST_FAMILIES, FAMILIES)


def tiny_config(name: str) -> transformers.PretrainedConfig:
    """A new config of the family called `name`."""
    kind, values = CONFIGS[name]
    return getattr(transformers, kind)(**values, **_TOKENS)


def random_model(config: transformers.PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model with random weights, in evaluation mode."""
    model = auto_classes(config)[0].from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(_WEIGHT_STD * noise)
            else:  # a norm's weight, or a bias: about what it is made as
                parameter.add_(_WEIGHT_STD * noise)
    return model


@functools.cache
def tiny_model(name: str) -> PreTrainedModel:
    """The one random model of a family, shared by all tests: leave it as it was, or change a copy."""
    return random_model(tiny_config(name))


def tiny_tokenizer(*, begins_texts: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template; with `begins_texts` it puts a token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL_TOKENS.values(), "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if begins_texts:
        begin = SPECIAL_TOKENS["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **SPECIAL_TOKENS)


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder layers, by hand."""
    decoder = model.base_model
    return decoder.h if hasattr(decoder, "h") else decoder.layers


def blocks_of(model: PreTrainedModel, component: str) -> list[torch.nn.Module]:
    """The MLP or the attention block of every layer, by hand."""
    names = {"mlp": ("mlp",), "attention": ("self_attn", "attn", "attention")}[component]
    return [getattr(layer, name) for layer in layers_of(model) for name in names if hasattr(layer, name)]


def hook_count(model: PreTrainedModel) -> int:
    """How many hooks are on the model's modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
