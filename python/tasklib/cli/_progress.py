"""How far a long command is: a line that changes on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from ._output import rich_installed
from ._terminal import is_terminal

Show = Callable[[str], None]

LINE_SECONDS = 10.0


def say_to_stderr(text: str) -> None:
    """Write a plain line to standard error."""
    click.echo(text, err=True)


@contextmanager
def progress(say: Show, *, at_once: bool = False, alone: bool = True) -> Generator[Show]:
    """Give the block something to call, as often as it likes, with what is worth knowing.

    Args:
        say: Writes a plain line, where there is no terminal.
        at_once: The first plain line does not wait for its time.
        alone: Nobody else draws on the same terminal; else there are only plain lines.
    """
    if not (alone and is_terminal(sys.stderr) and rich_installed()):
        yield _now_and_then(say, at_once=at_once)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    line = Spinner("dots")
    # What is printed meanwhile goes above the line, and not into it; but never elsewhere.
    with Live(
        line,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=is_terminal(sys.stdout),
        refresh_per_second=8,
    ):
        yield lambda text: line.update(text=Text(text))


def _now_and_then(say: Show, *, at_once: bool) -> Show:
    next_line = 0.0 if at_once else time.monotonic() + LINE_SECONDS

    def show(text: str) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_SECONDS
            say(text)

    return show
