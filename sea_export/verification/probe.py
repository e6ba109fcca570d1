"""Loads a checkpoint as any user would and writes down what it says. Run as a program, in a process of its own.

It imports torch and transformers only: what it reads is what a machine without sea-export would read.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel


@torch.inference_mode()
def main(request_file: str) -> None:
    """Answers a request: the logits of a checkpoint at the last `count` tokens of each sequence.

    Args:
        request_file: JSON with `checkpoint`, `dtype`, `trust_remote_code`, `auto_class` (the class of transformers
            that loads it), `sequences` (token ids), `count`, `tokenized` (texts and the tokens that the checkpoint's
            tokenizer has to make of them), `memory` (bytes that weights may take, or null; what is beyond stays on the
            disk, and is converted in the folder `scratch` if need be), and `answer`, the safetensors file to write
            (`logits` (sequences, count, vocabulary), float32).
    """
    with open(request_file, encoding="utf-8") as stream:
        request = json.load(stream)
    options = {"torch_dtype": getattr(torch, request["dtype"])}
    sequences = [[sequence] for sequence in request["sequences"]]
    if request["memory"] is not None:
        options |= {
            "device_map": "auto",
            "max_memory": {"cpu": request["memory"]},
            "offload_folder": request["scratch"],
        }
        sequences = [request["sequences"]]  # together, because every pass reads the weights anew
    if request["trust_remote_code"]:
        model = _with_own_code(request, options)
    else:
        model = getattr(transformers, request["auto_class"]).from_pretrained(request["checkpoint"], **options)
    model.eval()
    count = request["count"]
    rows = [model(torch.tensor(batch)).logits[:, -count - 1 : -1].float() for batch in sequences]
    if "sea_export" in sys.modules:
        raise SystemExit("sea_export was imported by the checkpoint: it is not independent of it")
    save_file({"logits": torch.cat(rows)}, request["answer"])


def _with_own_code(request: dict[str, Any], options: dict[str, Any]) -> PreTrainedModel:
    """The model of a checkpoint that comes with code, once its edit is found complete and its tokenizer right."""
    loaded: Any = getattr(transformers, request["auto_class"]).from_pretrained(
        request["checkpoint"], trust_remote_code=True, output_loading_info=True, **options
    )
    model, report = loaded
    for key in (*report["missing_keys"], *report["unexpected_keys"]):
        if ".sea_edit." in key:
            raise SystemExit(f"{key} is not both in the checkpoint and in the model")
    tokenizer = AutoTokenizer.from_pretrained(request["checkpoint"], trust_remote_code=True)
    for text, tokens in request["tokenized"].items():
        if tokenizer(text).input_ids != tokens:
            raise SystemExit(f"its tokenizer makes other tokens of {text!r} than the base's")
    return model


if __name__ == "__main__":
    main(sys.argv[1])
