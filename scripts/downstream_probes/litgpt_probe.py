"""An export in LitGPT: converted by its own converter, with the settings that it knows by the name of the model."""

import json
import shutil
import sys
from pathlib import Path

import torch
from litgpt import GPT, Config, Tokenizer
from litgpt.generate.base import generate
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

NAME = "SmolLM2-135M-Instruct"


def probe(request: dict) -> list[list[int]]:
    converted = Path(request["scratch"], NAME)
    shutil.copytree(request["model"], converted)
    convert_hf_checkpoint(converted, model_name=NAME, dtype="float32")
    model = GPT(Config.from_file(converted / "model_config.yaml"))
    model.load_state_dict(torch.load(converted / "lit_model.pth", weights_only=True))
    model.eval()
    tokenizer = Tokenizer(converted)
    tokens = []
    for prompt in request["prompts"]:
        prompt_tokens = tokenizer.encode(prompt, bos=False)  # it would begin with a token that the model is not given
        length = len(prompt_tokens) + request["tokens"]
        model.max_seq_length = length
        model.set_kv_cache(batch_size=1)
        said = generate(model, prompt_tokens, length, top_k=1, include_prompt=False)
        tokens.append(said.tolist())
        model.clear_kv_cache()
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
