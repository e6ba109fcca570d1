"""An export in mlx-lm, on the processor."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step


def probe(request: dict) -> list[list[int]]:
    mx.set_default_device(mx.cpu)
    if request["adapter"]:
        model, tokenizer = load(request["base"], adapter_path=request["model"])
    else:
        model, tokenizer = load(
            request["model"],
            tokenizer_config={"trust_remote_code": request["trust_remote_code"]},
            trust_remote_code=request["trust_remote_code"],
        )
    model.set_dtype(mx.float32)
    tokens = []
    for prompt in request["prompts"]:
        prompt_tokens = mx.array(tokenizer.encode(prompt))
        steps = generate_step(prompt_tokens, model, max_tokens=request["tokens"])
        tokens.append([int(token) for token, _ in steps])
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
