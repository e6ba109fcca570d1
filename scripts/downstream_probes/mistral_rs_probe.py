"""An export in mistral.rs."""

import json
import sys
from pathlib import Path

from mistralrs import CompletionRequest, ModelDType, Runner, Which


def probe(request: dict) -> list[list[int]]:
    runner = Runner(
        Which.Plain(model_id=request["model"], dtype=ModelDType.F32),
        token_source="none",
        no_paged_attn=True,
        prefix_cache_n=0,
    )
    tokens = []
    for prompt in request["prompts"]:
        asked = CompletionRequest(
            prompt=prompt, model="default", max_tokens=request["tokens"], temperature=0.0, top_k=1
        )
        text = runner.send_completion_request(asked).choices[0].text
        beginning, whole = (
            runner.tokenize_text(part, add_special_tokens=False, enable_thinking=None)
            for part in (prompt, prompt + text)
        )
        tokens.append(whole[len(beginning) :])
    return tokens


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
