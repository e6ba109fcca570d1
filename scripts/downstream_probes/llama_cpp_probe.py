"""An export in llama.cpp: converted to GGUF by its own scripts, an adapter beside its base."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

from llama_cpp import GGML_TYPE_F32, Llama


def probe(request: dict) -> list[list[int]]:
    scratch = Path(request["scratch"])
    (tools,) = Path(sys.prefix, "sources").glob("*/vendor/llama.cpp")

    def convert(script: str, *arguments: str, output: Path) -> str:
        # Without -I: the script imports what lies beside it.
        command = [sys.executable, str(tools / script), "--outtype", "f32", "--outfile", str(output), *arguments]
        subprocess.run(command, check=True)
        return str(output)

    lora, model = None, request["model"]
    if request["adapter"]:
        model = request["base"]
        lora = convert("convert_lora_to_gguf.py", "--base", model, request["model"], output=scratch / "lora.gguf")
    file = convert("convert_hf_to_gguf.py", model, output=scratch / "model.gguf")
    llama = Llama(
        file, lora_path=lora, n_ctx=1024, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, flash_attn=False, verbose=False
    )
    tokens = []
    for prompt in request["prompts"]:
        prompt_tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        likeliest = llama.generate(prompt_tokens, temp=0.0, repeat_penalty=1.0)
        tokens.append(list(itertools.islice(likeliest, request["tokens"])))
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
