"""What mergekit makes of an export alone, in transformers."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def probe(request: dict) -> list[list[int]]:
    recipe, merged = Path(request["scratch"], "recipe.yaml"), str(Path(request["scratch"], "merged"))
    alone = [{"model": request["model"], "parameters": {"weight": 1.0}}]
    recipe.write_text(json.dumps({"merge_method": "linear", "models": alone, "dtype": "float32"}))  # JSON is YAML
    trust = {"trust_remote_code": True} if request["trust_remote_code"] else {}
    options = ["--trust-remote-code"] if trust else []
    command = str(Path(sys.executable).with_name("mergekit-yaml"))
    subprocess.run([command, str(recipe), merged, *options], check=True)
    tokenizer = AutoTokenizer.from_pretrained(request["base"])
    model = AutoModelForCausalLM.from_pretrained(merged, torch_dtype=torch.float32, **trust)
    tokens = []
    for prompt in request["prompts"]:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
        tokens.append(output[0, inputs.input_ids.shape[1] :].tolist())
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
