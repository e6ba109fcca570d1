"""llama.cpp: the answers of a checkpoint, converted by its own script, with a control vector or without one."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

from llama_cpp import GGML_TYPE_F32, Llama

sys.path.insert(0, str(Path(__file__).parent))
from llama_cpp_probe import set_control_vector


def probe(request: dict) -> list:
    (tools,) = Path(sys.prefix, "sources").glob("*/vendor/llama.cpp")
    file = Path(request["scratch"], "model.gguf")
    # Without -I: the script imports what lies beside it.
    command = [sys.executable, str(tools / "convert_hf_to_gguf.py"), "--outtype", "f32", "--outfile", str(file)]
    subprocess.run([*command, request["model"]], check=True)
    llama = Llama(
        str(file),
        n_ctx=512,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        flash_attn=False,
        logits_all=True,
        verbose=False,
    )
    if request["vector"] is not None:
        layers = request["layers"][0], request["layers"][-1]
        set_control_vector(llama, Path(request["vector"]), tools, request["coefficient"], layers)
    answers = []
    for prompt in request["prompts"]:
        prompt_tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        llama.reset()
        llama.eval(prompt_tokens)
        logits = llama.scores[len(prompt_tokens) - 1].tolist()
        likeliest = llama.generate(prompt_tokens, temp=0.0, repeat_penalty=1.0)
        answers.append({"tokens": list(itertools.islice(likeliest, request["tokens"])), "logits": logits})
    return answers


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
