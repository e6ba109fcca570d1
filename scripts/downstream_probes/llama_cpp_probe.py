"""An export in llama.cpp: converted to GGUF by its own scripts, an adapter beside its base."""

import ctypes
import itertools
import json
import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama


def probe(request: dict) -> list[list[int]]:
    scratch = Path(request["scratch"])
    (tools,) = Path(sys.prefix, "sources").glob("*/vendor/llama.cpp")

    def convert(script: str, *arguments: str, output: Path) -> str:
        # Without -I: the script imports what lies beside it.
        command = [sys.executable, str(tools / script), "--outtype", "f32", "--outfile", str(output), *arguments]
        subprocess.run(command, check=True)
        return str(output)

    lora, directions, model = None, None, request["model"]
    if request["gguf_adapter"]:
        files = {file.name: file for file in Path(model).glob("*.gguf")}
        lora, directions, model = files.get("sea-lora.gguf"), files.get("sea-control-vector.gguf"), request["base"]
    if request["adapter"]:
        model = request["base"]
        lora = convert("convert_lora_to_gguf.py", "--base", model, request["model"], output=scratch / "lora.gguf")
    file = convert("convert_hf_to_gguf.py", model, output=scratch / "model.gguf")
    llama = Llama(
        file,
        lora_path=lora and str(lora),
        n_ctx=1024,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    if directions is not None:
        set_control_vector(llama, directions, tools)
    tokens = []
    for prompt in request["prompts"]:
        prompt_tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        likeliest = llama.generate(prompt_tokens, temp=0.0, repeat_penalty=1.0)
        tokens.append(list(itertools.islice(likeliest, request["tokens"])))
    return tokens


def set_control_vector(
    llama: Llama, file: Path, tools: Path, scale: float = 1.0, layers: tuple[int, int] | None = None
) -> None:
    """What llama.cpp's own programs do with --control-vector-scaled and --control-vector-layer-range.

    What is added to layer 1 comes first.
    """
    sys.path.insert(0, str(tools / "gguf-py"))
    from gguf import GGUFReader

    directions = {int(one.name.removeprefix("direction.")): one.data for one in GGUFReader(file).tensors}
    data = np.zeros((max(directions), llama.n_embd()), np.float32)
    for layer, direction in directions.items():
        data[layer - 1] = scale * direction
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    first, last = layers or (1, llama_cpp.llama_model_n_layer(llama.model))
    if llama_cpp.llama_set_adapter_cvec(llama.ctx, pointer, data.size, data.shape[1], first, last):
        raise SystemExit("llama.cpp does not take the control vector")


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
