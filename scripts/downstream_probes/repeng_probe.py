"""repeng: trains a control vector, saves it as GGUF, and steers with it."""

import json
import sys
from pathlib import Path

import torch
from repeng import ControlModel, ControlVector, DatasetEntry
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def probe(request: dict) -> list:
    tokenizer = AutoTokenizer.from_pretrained(request["base"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(request["base"], torch_dtype=torch.float32)
    count = base.config.num_hidden_layers
    model = ControlModel(base, [layer - count for layer in request["layers"]])
    pairs = [DatasetEntry(positive=positive, negative=negative) for positive, negative in request["pairs"]]
    vector = ControlVector.train(model, tokenizer, pairs)
    vector.export_gguf(request["vector"])
    model.set_control(vector, request["coefficient"])
    answers = []
    for prompt in request["prompts"]:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
        tokens = output[0, inputs.input_ids.shape[1] :].tolist()
        answers.append({"tokens": tokens, "logits": model(**inputs).logits[0, -1].tolist()})
    return answers


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
