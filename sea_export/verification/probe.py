"""A program that loads a checkpoint as any user would, and writes its logits to a file.

It runs in another process, which knows nothing of sea-export: it imports torch and transformers only. So it computes
what a machine without sea-export would compute. It imports them before it knows its task, for which it then waits. It
ends when the process does that it works for.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.llama import modeling_llama  # noqa: F401 - what all language models need is imported with it


def main(pipe: int) -> None:
    """Waits for a task, and does it.

    Args:
        pipe: the descriptor of a pipe. A line in it names the file of the task. It closes when nobody needs the answer.
    """
    request_file = os.read(pipe, 2**16).decode().strip()
    if request_file:
        threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
        answer(request_file)


def _end_with(pipe: int) -> None:
    """Ends this process when the pipe closes."""
    while os.read(pipe, 1):
        pass
    os._exit(1)


@torch.inference_mode()
def answer(request_file: str) -> None:
    """Writes the logits of a checkpoint that predict the last `count` tokens of each sequence.

    Args:
        request_file: JSON with

            - `checkpoint`: the directory;
            - `base`: the directory of the base, if the checkpoint is an adapter; otherwise null;
            - `dtype`: what to compute in;
            - `threads`: with how many threads;
            - `trust_remote_code`: whether code that comes with the checkpoint or its base may run;
            - `auto_class`: the class of transformers that loads it;
            - `sequences`: token ids, all of one length. They are computed in one batch;
            - `count`: the number of predicted tokens;
            - `tokenized`: texts, each with the tokens that the checkpoint's tokenizer must give for it;
            - `memory`: the bytes of weights that may be in memory, or null for all. The others stay on the disk, and
              are converted in the folder `scratch` if necessary;
            - `answer`: the safetensors file to write, with `logits` (sequences, count, vocabulary) in float32.
    """
    with open(request_file, encoding="utf-8") as stream:
        request = json.load(stream)
    torch.set_num_threads(request["threads"])
    arguments = {"torch_dtype": getattr(torch, request["dtype"])}
    if request["memory"] is not None:
        arguments |= {
            "device_map": "auto",
            "max_memory": {"cpu": request["memory"]},
            "offload_folder": request["scratch"],
        }
    model = _loaded(request, arguments).eval()
    _check_tokenizer(request)
    count = request["count"]
    accepted = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": count + 1} if "logits_to_keep" in accepted else {}
    logits = model(torch.tensor(request["sequences"]), **options).logits[:, -count - 1 : -1].float()
    if "sea_export" in sys.modules:
        raise SystemExit("the code of the checkpoint imported sea_export, so it does not work without it")
    save_file({"logits": logits.contiguous()}, request["answer"])


def _loaded(request: dict[str, Any], arguments: dict[str, Any]) -> PreTrainedModel:
    """The model of the checkpoint, or its base with the adapter on it. The tensors of an edit must be complete."""
    loaded: Any = getattr(transformers, request["auto_class"]).from_pretrained(
        request["base"] or request["checkpoint"],
        trust_remote_code=request["trust_remote_code"],
        output_loading_info=True,
        **arguments,
    )
    model, report = loaded
    for key in (*report["missing_keys"], *report["unexpected_keys"]):
        if ".sea_edit." in key:
            raise SystemExit(f"{key} is not both in the checkpoint and in the model")
    if request["base"] is not None:
        model.load_adapter(request["checkpoint"])
    return model


def _check_tokenizer(request: dict[str, Any]) -> None:
    """Ends the program if the tokenizer of the checkpoint makes other tokens of a text than it must."""
    if not request["tokenized"]:
        return
    tokenizer = AutoTokenizer.from_pretrained(request["checkpoint"], trust_remote_code=request["trust_remote_code"])
    for text, tokens in request["tokenized"].items():
        if tokenizer(text).input_ids != tokens:
            raise SystemExit(f"its tokenizer makes other tokens of {text!r} than the base's")


if __name__ == "__main__":
    main(int(sys.argv[1]))
