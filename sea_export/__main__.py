"""`python -m sea_export`: the command line."""

from sea_export.cli import main

if __name__ == "__main__":
    main()
