"""A program that loads a checkpoint as any user would, and writes its logits to a file.

It runs in another process, which knows nothing of sea-export: it imports torch and transformers only. So it computes
what a machine without sea-export would compute. It imports them before it knows its task, for which it then waits. It
ends when the process does that it works for.
"""

from __future__ import annotations

import inspect
import json
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def main(pipe: int) -> None:
    """Imports what it will need, waits for a task, and does it.

    Args:
        pipe: the descriptor of a pipe. A line in it names the file of the task. It closes when nobody needs the answer.
    """
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    from transformers.models.llama import modeling_llama  # noqa: F401 - what all language models need comes with it

    answer(tasks.get())


def _listen(pipe: int, tasks: queue.SimpleQueue[str]) -> None:
    """Passes on the task, and ends this process when the pipe closes, whatever it is doing."""
    while line := os.read(pipe, 2**16):
        tasks.put(line.decode().strip())
    os._exit(1)


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
            - `arguments`: what else `from_pretrained` is told;
            - `answer`: the safetensors file to write, with `logits` (sequences, count, vocabulary) in float32.
    """
    import torch
    from safetensors.torch import save_file

    with open(request_file, encoding="utf-8") as stream:
        request = json.load(stream)
    torch.set_num_threads(request["threads"])
    arguments = {"torch_dtype": getattr(torch, request["dtype"]), **request["arguments"]}
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
    with torch.inference_mode():
        logits = model(torch.tensor(request["sequences"]), **options).logits[:, -count - 1 : -1].float()
    if "sea_export" in sys.modules:
        raise SystemExit("the code of the checkpoint imported sea_export, so it does not work without it")
    save_file({"logits": logits.contiguous()}, request["answer"])


def _loaded(request: dict[str, Any], arguments: dict[str, Any]) -> PreTrainedModel:
    """The model of the checkpoint, or its base with the adapter on it. The tensors of an edit must be complete."""
    import transformers

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
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["checkpoint"], trust_remote_code=request["trust_remote_code"])
    for text, tokens in request["tokenized"].items():
        if tokenizer(text).input_ids != tokens:
            raise SystemExit(f"its tokenizer makes other tokens of {text!r} than the base's")


if __name__ == "__main__":
    main(int(sys.argv[1]))
