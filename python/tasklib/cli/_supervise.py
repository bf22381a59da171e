"""Starts the supervisor; run by its path, as there is no site-packages to find the package in."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Behind the standard library, which nobody's module shall hide.
    sys.path.append(str(Path(__file__).parents[2]))
    from tasklib.cli.supervisor import main

    sys.exit(main(sys.argv[1:]))
