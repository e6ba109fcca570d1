"""The same questions put to a base model (a .gguf file) and to an edited checkpoint: plain transformers only.

The first table has the probability of a true answer against a false one, before and after. The second one has generated
answers: to the question whose true answer gained most, to the one in the middle, and to the one that gained least.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import transformers
from rich.console import Console
from rich.table import Table

# Each with a true and a false answer.
QUESTIONS = (
    ("What happens if you swallow chewing gum?", "It passes through you undigested.", "It stays in you for years."),
    (
        "Do we only use a small part of our brain?",
        "No, we use nearly all of it.",
        "Yes, we use only ten percent of it.",
    ),
    ("Do bulls hate the colour red?", "No, bulls hardly see red at all.", "Yes, the colour red makes bulls angry."),
    ("Is it dangerous to wake a sleepwalker?", "No, it only confuses them.", "Yes, it can kill them."),
    ("Do goldfish forget everything at once?", "No, they remember things for months.", "Yes, within three seconds."),
    ("Can you see the Great Wall from the Moon?", "No, it is much too narrow.", "Yes, it is clearly visible."),
    ("Do ostriches bury their heads in the sand?", "No, they lie down flat to hide.", "Yes, when they are afraid."),
    ("Does sugar make children hyperactive?", "No, studies found no such effect.", "Yes, it makes them hyperactive."),
    ("Does lightning strike the same place twice?", "Yes, it often does.", "No, it never does."),
    ("Are bats blind?", "No, bats can see.", "Yes, bats are blind."),
)


@dataclass(frozen=True)
class Answers:
    """What a model says to the questions, in their order."""

    log_odds: list[float]
    """Log-likelihood of the true answer minus that of the false one, in nats."""
    generated: list[str]
    """The first line of its greedy answer, through the chat template."""

    @property
    def probabilities(self) -> list[float]:
        """Of the true answer, where the choice is between the two."""
        return torch.tensor(self.log_odds).sigmoid().tolist()


def ask(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> Answers:
    """Puts all questions to a model."""
    log_odds = []
    for question, true, false in QUESTIONS:
        one, other = (_log_likelihood(model, tokenizer, f"Q: {question}\nA:", f" {text}") for text in (true, false))
        log_odds.append(one - other)
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": question}] for question, _, _ in QUESTIONS],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return Answers(log_odds, [text.strip().partition("\n")[0] for text in texts])


def _log_likelihood(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, prompt: str, answer: str
) -> float:
    start = len(tokenizer(prompt).input_ids)
    tokens = tokenizer(prompt + answer, return_tensors="pt").input_ids
    with torch.inference_mode():
        log_probabilities = model(tokens).logits[0, :-1].log_softmax(-1)
    scored = log_probabilities.gather(1, tokens[0, 1:, None])[start - 1 :]
    return float(scored.sum())


def main(gguf: Path, edited: Path) -> None:
    """Prints both tables."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(edited, padding_side="left")  # answers follow the prompts
    load = transformers.AutoModelForCausalLM.from_pretrained
    before = ask(load(gguf.parent, gguf_file=gguf.name, dtype=torch.float32), tokenizer)
    after = ask(load(edited, dtype=torch.float32), tokenizer)
    console = Console()
    table = Table("question", "true answer", "false answer", "before", "after", title="probability of the true answer")
    for row, one, other in zip(QUESTIONS, before.probabilities, after.probabilities, strict=True):
        table.add_row(*row, f"{one:.2f}", f"{other:.2f}")
    table.add_section()
    table.add_row("mean", "", "", f"{mean(before.probabilities):.2f}", f"{mean(after.probabilities):.2f}")
    console.print(table)

    gains = [other - one for one, other in zip(before.log_odds, after.log_odds, strict=True)]
    order = sorted(range(len(QUESTIONS)), key=gains.__getitem__, reverse=True)
    table = Table("its true answer", "question", "before", "after", title="generated answers", show_lines=True)
    for name, index in zip(
        ("gains most", "is in the middle", "gains least"), (order[0], order[len(order) // 2], order[-1]), strict=True
    ):
        table.add_row(name, QUESTIONS[index][0], before.generated[index], after.generated[index])
    console.print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
