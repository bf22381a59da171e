"""Whether somebody looks, and whether colour helps."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from typing import TextIO


def on_terminal() -> bool:
    """Tell whether somebody looks at standard output while it is written."""
    return is_terminal(sys.stdout)


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a stream goes to a screen that can be drawn on."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns(stream: TextIO) -> int:
    """Return how wide the terminal of a stream is."""
    with suppress(OSError):
        if "COLUMNS" not in os.environ and (found := os.get_terminal_size(stream.fileno()).columns):
            return found
    return shutil.get_terminal_size().columns


def colours_wanted() -> bool:
    """Tell whether colour helps on standard output (https://no-color.org)."""
    return colours_wanted_on(sys.stdout)


def colours_wanted_on(stream: TextIO) -> bool:
    """Tell whether colour helps on a stream."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")
