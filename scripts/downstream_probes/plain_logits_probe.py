"""A checkpoint in plain transformers: the logits of prompts, and what it continues them with greedily."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def probe(request: dict) -> list:
    tokenizer = AutoTokenizer.from_pretrained(request["base"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], torch_dtype=torch.float32)
    answers = []
    for prompt in request["prompts"]:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
        tokens = output[0, inputs.input_ids.shape[1] :].tolist()
        answers.append({"tokens": tokens, "logits": model(**inputs).logits[0, -1].tolist()})
    return answers


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
