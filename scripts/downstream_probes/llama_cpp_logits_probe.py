"""A GGUF file in llama.cpp: its logits at the tokens of some sequences, and the greedy tokens after some prompts."""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama


def probe(request: dict) -> list[list[int]]:
    sequences, prompts = request["sequences"], request["prompts"]
    threads = len(os.sched_getaffinity(0))  # more threads than processors would wait for each other
    llama = Llama(
        request["file"],
        n_ctx=max(map(len, [*sequences, *prompts])) + request["tokens"],
        n_threads=threads,
        n_threads_batch=threads,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        flash_attn=False,
        logits_all=True,
        verbose=False,
    )
    logits = []
    for sequence in sequences:
        llama.reset()
        llama.eval(sequence)
        logits.append(llama.scores[: len(sequence)].copy())
    np.save(request["logits"], np.stack(logits))
    tokens = []
    for prompt in prompts:
        likeliest = llama.generate(prompt, temp=0.0, repeat_penalty=1.0)
        tokens.append(list(itertools.islice(likeliest, request["tokens"])))
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
