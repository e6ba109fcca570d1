"""An export in transformers: `pipeline("text-generation")`, or `from_pretrained` and `generate`."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline


def probe(request: dict) -> list[list[int]]:
    trust = {"trust_remote_code": True} if request["trust_remote_code"] else {}
    length = {"max_new_tokens": request["tokens"], "do_sample": False}
    tokens = []
    if request["call"] == "pipeline":
        generator = pipeline("text-generation", request["model"], torch_dtype=torch.float32, **trust)
        for prompt in request["prompts"]:
            (output,) = generator(prompt, return_tensors=True, **length)
            tokens.append(output["generated_token_ids"][len(generator.tokenizer(prompt).input_ids) :])
    else:
        # An adapter has no tokenizer but its base's.
        tokenizer = AutoTokenizer.from_pretrained(request["base"] if request["adapter"] else request["model"], **trust)
        model = AutoModelForCausalLM.from_pretrained(request["model"], torch_dtype=torch.float32, **trust)
        for prompt in request["prompts"]:
            inputs = tokenizer(prompt, return_tensors="pt")
            tokens.append(model.generate(**inputs, **length)[0, inputs.input_ids.shape[1] :].tolist())
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
