"""steering-vectors: trains steering vectors, saves them with torch.save, and steers with them."""

import json
import sys
from pathlib import Path

import torch
from steering_vectors import train_steering_vector
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def probe(request: dict) -> list:
    tokenizer = AutoTokenizer.from_pretrained(request["base"])
    model = AutoModelForCausalLM.from_pretrained(request["base"], torch_dtype=torch.float32)
    pairs = [tuple(pair) for pair in request["pairs"]]
    vector = train_steering_vector(model, tokenizer, pairs, layers=request["layers"], layer_type=request["call"])
    torch.save(vector.layer_activations, request["vector"])
    answers = []
    for prompt in request["prompts"]:
        inputs = tokenizer(prompt, return_tensors="pt")
        with vector.apply(model, multiplier=request["coefficient"]):
            output = model.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
            logits = model(**inputs).logits[0, -1].tolist()
        answers.append({"tokens": output[0, inputs.input_ids.shape[1] :].tolist(), "logits": logits})
    return answers


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
