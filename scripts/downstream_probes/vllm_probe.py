"""An export in vLLM: as a model, or as a LoRA request on its base. Models with code run in its transformers backend."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

LORA_RANKS = (16, 32, 64, 128, 256, 320, 512)


def probe(request: dict) -> list[list[int]]:
    options = {"model": request["model"]}
    adapter = None
    if request["adapter"]:
        adapter = LoRARequest("sea", 1, request["model"])
        rank = json.loads(Path(request["model"], "adapter_config.json").read_text())["r"]
        allowed = next(allowed for allowed in LORA_RANKS if allowed >= rank)
        options = {"model": request["base"], "enable_lora": True, "max_lora_rank": allowed}
    if request["trust_remote_code"]:
        options["trust_remote_code"] = True
    llm = LLM(**options, dtype="float32", max_model_len=1024, max_num_seqs=8)
    sampling = SamplingParams(temperature=0, max_tokens=request["tokens"])
    outputs = llm.generate(request["prompts"], sampling, lora_request=adapter)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":  # vLLM starts processes that import this file
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
