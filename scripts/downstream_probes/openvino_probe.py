"""An export in OpenVINO: converted by optimum-intel."""

import json
import sys
from pathlib import Path

from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "KV_CACHE_PRECISION": "f32"}


def probe(request: dict) -> list[list[int]]:
    trust = {"trust_remote_code": True} if request["trust_remote_code"] else {}
    tokenizer = AutoTokenizer.from_pretrained(request["model"], **trust)
    model = OVModelForCausalLM.from_pretrained(
        request["model"], export=True, device="CPU", ov_config=FLOAT32, quantization_config=None, **trust
    )
    tokens = []
    for prompt in request["prompts"]:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
        tokens.append(output[0, inputs.input_ids.shape[1] :].tolist())
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
