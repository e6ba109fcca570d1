"""An export in ONNX Runtime GenAI: converted by its own model builder."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime_genai
from transformers import AutoTokenizer


def probe(request: dict) -> list[list[int]]:
    converted = str(Path(request["scratch"], "converted"))
    builder = [sys.executable, "-I", "-m", "onnxruntime_genai.models.builder"]
    options = ["-p", "fp32", "-e", "cpu", "-c", str(Path(request["scratch"], "cache"))]
    if request["trust_remote_code"]:
        options += ["--extra_options", "hf_remote=true"]
    subprocess.run([*builder, "-i", request["model"], "-o", converted, *options], check=True)
    model = onnxruntime_genai.Model(converted)
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    tokens = []
    for prompt in request["prompts"]:
        prompt_tokens = tokenizer(prompt).input_ids
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt_tokens) + request["tokens"], do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(prompt_tokens)
        while not generator.is_done():
            generator.generate_next_token()
        tokens.append([int(token) for token in generator.get_sequence(0)[len(prompt_tokens) :]])
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
