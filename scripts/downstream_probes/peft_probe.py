"""An adapter in PEFT: on its base, or merged into it."""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def probe(request: dict) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(request["base"])
    base = AutoModelForCausalLM.from_pretrained(request["base"], torch_dtype=torch.float32)
    model = PeftModel.from_pretrained(base, request["model"])
    if request["call"] == "merge_and_unload":
        model = model.merge_and_unload()
    tokens = []
    for prompt in request["prompts"]:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
        tokens.append(output[0, inputs.input_ids.shape[1] :].tolist())
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
