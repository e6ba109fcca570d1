"""GGUF files that llama.cpp makes: converted from a checkpoint by its script, and quantized by its quantizer."""

import json
import subprocess
import sys
from pathlib import Path

import llama_cpp


def probe(request: dict) -> list:
    file = request["file"]
    if request["checkpoint"] is not None:
        (tools,) = Path(sys.prefix, "sources").glob("*/vendor/llama.cpp")
        # Without -I: the script imports what lies beside it.
        command = [sys.executable, str(tools / "convert_hf_to_gguf.py"), "--outtype", "f32", "--outfile", file]
        subprocess.run([*command, request["checkpoint"]], check=True)
    for kind, quantized in request["quantized"].items():
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        parameters.nthread = 1
        if llama_cpp.llama_model_quantize(file.encode(), quantized.encode(), parameters):
            raise SystemExit(f"{file} could not be quantized to {kind}")
    return []


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
