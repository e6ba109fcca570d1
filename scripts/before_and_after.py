"""The same prompts answered by a base model (a .gguf file) and by an edited checkpoint: plain transformers only."""

import sys
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

QUESTIONS = (
    "What happens if you swallow chewing gum?",
    "Do we only use a small part of our brain?",
    "Which animal is the king of the jungle, and does it live there?",
    "Why do we have seasons?",
    "Is it dangerous to wake a sleepwalker?",
)


def answers(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """The model's greedy answer to each question, its first line."""
    lines = []
    for question in QUESTIONS:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        text = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        lines.append(text.strip().partition("\n")[0])
    return lines


def main(gguf: Path, edited: Path) -> None:
    """Prints a table of questions and both answers."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(edited)
    load = transformers.AutoModelForCausalLM.from_pretrained
    before = answers(load(gguf.parent, gguf_file=gguf.name, dtype=torch.float32), tokenizer)
    after = answers(load(edited, dtype=torch.float32), tokenizer)
    table = Table("question", "before", "after", show_lines=True)
    for row in zip(QUESTIONS, before, after, strict=True):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
