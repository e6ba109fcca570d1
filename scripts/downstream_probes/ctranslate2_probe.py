"""An export in CTranslate2: converted by its own converter."""

import json
import subprocess
import sys
from pathlib import Path

import ctranslate2
from transformers import AutoTokenizer


def probe(request: dict) -> list[list[int]]:
    converter = str(Path(sys.executable).with_name("ct2-transformers-converter"))
    converted = str(Path(request["scratch"], "converted"))
    trust = ["--trust_remote_code"] if request["trust_remote_code"] else []
    subprocess.run([converter, "--model", request["model"], "--output_dir", converted, *trust], check=True)
    generator = ctranslate2.Generator(converted, device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    tokens = []
    for prompt in request["prompts"]:
        words = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
        (result,) = generator.generate_batch(
            [words], max_length=request["tokens"], sampling_topk=1, include_prompt_in_result=False
        )
        tokens.append(result.sequences_ids[0])
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
