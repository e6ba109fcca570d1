"""An export behind the HTTP address of `transformers serve`, on this machine alone."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from transformers import AutoTokenizer

SECONDS_TO_START = 600


def probe(request: dict) -> list[list[int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    if request["trust_remote_code"]:
        options.append("--trust-remote-code")
    command = str(Path(sys.executable).with_name("transformers"))
    server = subprocess.Popen([command, "serve", request["model"], *options])
    try:
        wait_for(server, address)
        tokenizer = AutoTokenizer.from_pretrained(request["model"])
        return [continuation(tokenizer, prompt, completion(address, request, prompt)) for prompt in request["prompts"]]
    finally:
        server.terminate()
        server.wait()


def wait_for(server: subprocess.Popen, address: str) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=10).close()
            return
        except urllib.error.URLError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def completion(address: str, request: dict, prompt: str) -> str:
    body = {"model": request["model"], "prompt": prompt, "max_tokens": request["tokens"], "temperature": 0}
    asked = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error}: {error.read().decode()}") from error


def continuation(tokenizer, prompt: str, text: str) -> list[int]:
    return tokenizer(prompt + text).input_ids[len(tokenizer(prompt).input_ids) :]


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
