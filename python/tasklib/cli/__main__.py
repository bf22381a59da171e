"""Run the command line as ``python -m tasklib.cli``."""

from tasklib.cli import main

main()
