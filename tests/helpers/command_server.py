"""Runs commands of sea-export one after another, each in a process of its own that starts with everything imported.

A request is a line of JSON, `{"arguments": [...], "seconds": 60}`; the answer is one with `status`, `output`, `seconds`
and `peak_bytes`: the most memory that the process had at any time, what it started with included.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time


def serve(warm_up: list[str]) -> None:
    """Answers requests until there are no more.

    Args:
        warm_up: the arguments of a command that is run first, here: it imports what the others will need.
    """
    import torch

    from sea_export.cli import main

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        main(warm_up, "sea-export", standalone_mode=False)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(request["arguments"], request["seconds"])), flush=True)


def answer(arguments: list[str], seconds: float) -> dict[str, object]:
    with tempfile.TemporaryFile("w+b") as output:
        start = time.monotonic()
        process = os.fork()
        if process == 0:
            run(arguments, output.fileno())
        signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _, status, usage = os.wait4(process, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        output.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "output": output.read().decode(errors="replace"),
            "seconds": time.monotonic() - start,
            "peak_bytes": usage.ru_maxrss * 1024,
        }


def run(arguments: list[str], output: int) -> None:
    """Becomes the command. Does not return."""
    status = 70
    try:
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        from sea_export.cli import main

        main(arguments, "sea-export")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1:])
