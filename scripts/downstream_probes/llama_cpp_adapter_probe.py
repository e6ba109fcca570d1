"""A LoRA and a control vector in llama.cpp: the logits at the tokens of some sequences, as its own programs load them."""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

FFI, LIB = get_ffi(), get_lib()
F32 = 0


def probe(request: dict) -> list:
    LIB.llama_backend_init()
    model = checked(LIB.llama_model_load_from_file(request["file"].encode(), LIB.llama_model_default_params()))
    length = max(map(len, request["sequences"]))
    parameters = LIB.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = F32
    parameters.flash_attn_type = 0
    context = checked(LIB.llama_init_from_model(model, parameters))
    if request["lora"]:
        lora = checked(LIB.llama_adapter_lora_init(model, request["lora"].encode()))
        if LIB.llama_set_adapters_lora(context, FFI.new("struct llama_adapter_lora *[]", [lora]), 1, FFI.new("float[]", [1.0])):
            raise SystemExit("the LoRA cannot be set")
    if request["control_vector"]:
        set_control_vector(context, model, request["control_vector"])
    np.save(request["logits"], np.stack([logits_of(context, model, one) for one in request["sequences"]]))
    return []


def checked(pointer):
    if pointer == FFI.NULL:
        raise SystemExit("llama.cpp cannot load it")
    return pointer


def set_control_vector(context, model, file: str) -> None:
    """What common_control_vector_load and common_init_from_params of llama.cpp do: layer 1 comes first."""
    directions = {int(one.name.removeprefix("direction.")): one.data for one in GGUFReader(file).tensors}
    size, layers = LIB.llama_model_n_embd(model), LIB.llama_model_n_layer(model)
    data = np.zeros((max(directions), size), np.float32)
    for layer, direction in directions.items():
        data[layer - 1] = direction
    pointer = FFI.from_buffer("float[]", data)
    if LIB.llama_set_adapter_cvec(context, pointer, data.size, size, 1, layers):
        raise SystemExit("the control vector cannot be set")


def logits_of(context, model, tokens: list[int]) -> np.ndarray:
    LIB.llama_memory_clear(LIB.llama_get_memory(context), True)
    batch = LIB.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for position, token in enumerate(tokens):
        batch.token[position], batch.pos[position], batch.logits[position] = token, position, 1
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
    if LIB.llama_decode(context, batch):
        raise SystemExit("llama.cpp cannot decode")
    vocabulary = LIB.llama_vocab_n_tokens(LIB.llama_model_get_vocab(model))
    rows = FFI.buffer(LIB.llama_get_logits(context), len(tokens) * vocabulary * 4)
    logits = np.frombuffer(rows, np.float32).reshape(len(tokens), vocabulary).copy()
    LIB.llama_batch_free(batch)
    return logits


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
