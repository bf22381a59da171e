"""How far the run is: a bar on a terminal, a line each second in a log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

import click

from .._output import rich_installed
from .._terminal import colours_wanted
from .store import Depth


class Progress(Protocol):
    """Shows how far the tasks are, and says what happens between them."""

    def show(self, finished: int, depth: Depth) -> None:
        """Take note of how far it is."""
        ...

    def say(self, text: str) -> None:
        """Print a line."""
        ...


class Lines:
    """One line a second at most, for logs."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = self._last = time.monotonic()

    def show(self, finished: int, depth: Depth) -> None:
        """Print it when the last line is a second old."""
        now = time.monotonic()
        if now - self._last >= 1 or finished == self._total:
            self._last = now
            self.say(
                f"{finished} of {self._total} finished, {depth.running} running, "
                f"{depth.retrying} retrying"
            )

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        click.echo(f"  {time.monotonic() - self._began:5.1f} s  {text}")


@contextmanager
def progress(total: int) -> Generator[Progress]:
    """Choose what suits standard output."""
    if not (colours_wanted() and rich_installed()):
        yield Lines(total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("  tasks"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    ) as bars:
        bar = bars.add_task("tasks", total=total, now="")

        class OnTerminal:
            def show(self, finished: int, depth: Depth) -> None:
                now = f"{depth.running} running, {depth.retrying} retrying"
                bars.update(bar, completed=finished, now=now)

            def say(self, text: str) -> None:
                bars.print(f"  {text}", markup=False, highlight=False)

        yield OnTerminal()
