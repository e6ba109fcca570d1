"""The logits of an export that bitsandbytes or torchao quantizes while transformers loads it."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig


def config_of(call: str) -> BitsAndBytesConfig | TorchAoConfig:
    if call == "bitsandbytes int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if call == "bitsandbytes NF4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def probe(request: dict) -> list:
    trust = {"trust_remote_code": True} if request["trust_remote_code"] else {}
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, quantization_config=config_of(request["call"]), device_map="cpu", **trust
    )
    with torch.inference_mode():
        logits = [model(torch.tensor([sequence])).logits[0] for sequence in request["sequences"]]
    np.save(request["logits"], torch.stack(logits).float().numpy())
    return []


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
