"""The program `sea-export`, also as `python -m sea_export`."""

import os
import signal
import sys

# Python searches the current folder first, and foreign files may lie there.
if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.curdir):
    del sys.path[0]

__all__ = ["run"]


def run() -> None:
    """Runs the command line. Ctrl-C before a command begins, while modules are imported, ends it without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sea_export.cli import main

    main()


if __name__ == "__main__":
    run()
