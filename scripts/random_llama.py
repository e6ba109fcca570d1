"""Random Llama checkpoints of any size, for benchmarks: written tensor by tensor, with a tokenizer made on the spot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sea_export.demonstrations.load import load_demonstrations
from sea_export.model.safetensors_header import Header, StoredTensor, encode_header

VOCABULARY = 32000
SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Shape:
    """The shape of a model in bfloat16."""

    hidden: int
    intermediate: int
    layers: int

    @property
    def heads(self) -> int:
        return self.hidden // 128

    @property
    def key_value_heads(self) -> int:
        return max(1, self.heads // 4)

    def layer(self) -> dict[str, tuple[int, ...]]:
        narrow = self.key_value_heads * 128
        return {
            "input_layernorm": (self.hidden,),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (VOCABULARY, self.hidden)
        for index in range(self.layers):
            for name, shape in self.layer().items():
                yield f"model.layers.{index}.{name}.weight", shape
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (VOCABULARY, self.hidden)

    @property
    def bytes(self) -> int:
        return 2 * sum(math.prod(shape) for _, shape in self.tensors())


def write_random_llama(directory: Path, shape: Shape, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a checkpoint with a tokenizer, holding no more than one tensor in memory."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard_bytes
    for name, size in shape.tensors():
        if 2 * math.prod(size) > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = size
        room -= 2 * math.prod(size)
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        _write_shard(directory / file, shard, generator)
    index = {"metadata": {"total_size": shape.bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _tokenizer().save_pretrained(directory)


def _write_shard(file: Path, shard: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    tensors, position = [], 0
    for name, size in shard.items():
        end = position + 2 * math.prod(size)
        tensors.append(StoredTensor(name, "BF16", size, file.name, position, end))
        position = end
    with open(file, "wb") as stream:
        stream.write(encode_header(Header(0, {"format": "pt"}, tuple(tensors))))
        for name, size in shard.items():
            if len(size) == 1:
                values = torch.ones(size)
            elif name == "lm_head.weight":  # as sure of the next token as trained models are
                values = torch.randn(size, generator=generator).mul_(4 * size[1] ** -0.5)
            else:
                values = torch.randn(size, generator=generator).mul_(size[1] ** -0.5)
            stream.write(values.bfloat16().view(torch.uint8).numpy().data)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of the built-in demonstrations' words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    demonstrations = load_demonstrations("builtin:truthfulness")
    tokenizer.train_from_iterator(
        (text for one in demonstrations for text in (one.prompt, one.positive, one.negative)), trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
