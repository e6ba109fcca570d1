"""An export that PEFT fine-tunes: a LoRA adapter is trained, saved, and loaded on the export again.

The answers are those of the export itself, with the adapter off: fine-tuning has to leave them as they were.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 4


def probe(request: dict) -> list[list[int]]:
    torch.manual_seed(0)
    trust = {"trust_remote_code": True} if request["trust_remote_code"] else {}
    tokenizer = AutoTokenizer.from_pretrained(request["model"], **trust)
    rows = [tokenizer(row["prompt"] + " " + row["choices"][0], return_tensors="pt") for row in request["choices"][:4]]

    def load():
        return AutoModelForCausalLM.from_pretrained(request["model"], torch_dtype=torch.float32, **trust)

    adapted = get_peft_model(load(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    train(adapted, rows, learning_rate=1e-3)
    adapter = str(Path(request["scratch"], "adapter"))
    adapted.save_pretrained(adapter)
    loaded = PeftModel.from_pretrained(load(), adapter)
    wanted, given = logits(adapted, rows[0]), logits(loaded, rows[0])
    if not torch.allclose(wanted, given, atol=1e-4):
        raise SystemExit(f"the adapter, loaded on the export again, is off by {(wanted - given).abs().max()}")

    whole = load()
    edit = {name: tensor.clone() for name, tensor in whole.named_parameters() if ".sea_edit." in name}
    if request["trust_remote_code"] and not edit:
        raise SystemExit("the model has no tensors of an edit")
    train(whole, rows, learning_rate=1e-5)
    changed = [name for name, tensor in edit.items() if not torch.equal(whole.get_parameter(name), tensor)]
    if changed:
        raise SystemExit(f"training of all weights has changed the edit: {changed}")

    tokens = []
    with loaded.disable_adapter():
        for prompt in request["prompts"]:
            inputs = tokenizer(prompt, return_tensors="pt")
            output = loaded.generate(**inputs, max_new_tokens=request["tokens"], do_sample=False)
            tokens.append(output[0, inputs.input_ids.shape[1] :].tolist())
    return tokens


def train(model, rows: list, learning_rate: float) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    model.train()
    losses = []
    for _ in range(STEPS):
        loss = sum(model(**row, labels=row.input_ids).loss for row in rows) / len(rows)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    print(f"losses of {len(trained)} trained tensors: {losses}")
    if not losses[-1] < losses[0]:
        raise SystemExit(f"the loss did not fall: {losses}")


@torch.inference_mode()
def logits(model, row):
    return model(**row).logits


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
