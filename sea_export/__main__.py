"""`python -m sea_export`: the command line."""

import os
import sys

# Python searches the current folder first, and foreign files may lie there.
if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.curdir):
    del sys.path[0]

from sea_export.cli import main

if __name__ == "__main__":
    main()
