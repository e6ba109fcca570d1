"""Loads a checkpoint as any user would and writes down what it says. Run as a program, in a process of its own.

It imports torch and transformers only: what it reads is what a machine without sea-export would read.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def main(request_file: str) -> None:
    """Answers a request: the logits of a checkpoint at the last `count` tokens of each sequence.

    Args:
        request_file: JSON with `checkpoint`, `dtype`, `sequences` (token ids), `count`, and `answer`, the
            safetensors file to write (`logits` (sequences, count, vocabulary), float32).
    """
    with open(request_file, encoding="utf-8") as stream:
        request = json.load(stream)
    model = AutoModelForCausalLM.from_pretrained(request["checkpoint"], dtype=getattr(torch, request["dtype"])).eval()
    count = request["count"]
    rows = [model(torch.tensor([sequence])).logits[0, -count - 1 : -1].float() for sequence in request["sequences"]]
    if "sea_export" in sys.modules:
        raise SystemExit("sea_export was imported by the checkpoint: it is not independent of it")
    save_file({"logits": torch.stack(rows)}, request["answer"])


if __name__ == "__main__":
    main(sys.argv[1])
