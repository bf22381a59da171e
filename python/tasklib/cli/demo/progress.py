"""How far the run is: a bar on a terminal, a line each second in a log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

import click

from .._output import colours_wanted, rich_installed
from .store import Counts


class Progress(Protocol):
    """Shows counts, and says what happens between them."""

    def show(self, counts: Counts) -> None:
        """Take note of new counts."""
        ...

    def say(self, text: str) -> None:
        """Print a line."""
        ...


class Lines:
    """One line a second at most, for logs."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def show(self, counts: Counts) -> None:
        """Print the counts when the last line is a second old."""
        now = time.monotonic()
        if now - self._last >= 1 or counts.finished == counts.total:
            self._last = now
            self.say(
                f"{counts.finished} of {counts.total} finished, {counts.running} running, "
                f"{counts.retrying} waiting for a retry"
            )

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        click.echo(f"  {time.monotonic() - self._began:5.1f} s  {text}")


@contextmanager
def progress() -> Generator[Progress]:
    """Choose what suits standard output."""
    if not (colours_wanted() and rich_installed()):
        yield Lines()
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
        bar = bars.add_task("tasks", total=None, now="")

        class OnTerminal:
            def show(self, counts: Counts) -> None:
                now = f"{counts.running} running, {counts.retrying} waiting for a retry"
                bars.update(bar, total=counts.total, completed=counts.finished, now=now)

            def say(self, text: str) -> None:
                bars.print(f"  {text}", markup=False, highlight=False)

        yield OnTerminal()
