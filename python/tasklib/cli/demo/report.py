"""The table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .._describe import last_line
from .check import Outcome
from .workers import LEASE_SECONDS


def report(folder: Path, outcome: Outcome) -> str:
    """Write what was done, every number of it read from the database or from the disk."""
    return "\n".join(f"  {label:<26}{value}" for label, value in _lines(folder, outcome))


def _lines(folder: Path, outcome: Outcome) -> Iterator[tuple[str, str]]:
    counts, documents = outcome.counts, outcome.readable
    contents = [document.content for document in documents if document.content]
    right = len(documents) - len(outcome.differing)
    size = sum(content.bytes for content in contents) / 1e6
    words = sum(content.words for content in contents)
    yield "files below " + str(folder), f"{len(documents):,} ({size:,.1f} MB, {words:,} words)"
    yield "hash and words as on disk", f"{right:,}"
    yield "differing", f"{len(outcome.differing):,}"
    yield "", ""
    yield "tasks", f"{counts.total:,}"
    yield "  completed", f"{counts.completed:,}"
    yield "  failed for good", f"{counts.failed:,}" + _why(outcome)
    yield "retries of the broken file", f"{max(0, len(outcome.broken) - 1)}"
    yield "priority 100 of the census", f"number {outcome.census_position:,} to start"
    yield "second task, same key", _same(outcome)
    yield "", ""
    if outcome.killed:
        name, pid = outcome.killed
        held, saved = len(outcome.held_by_killed), outcome.completed_of_held
        yield "killed with -9", f"{name} (pid {pid}) with {held} tasks in its hands"
        yield "  completed by others", f"{saved} of {held}, after its lease of {LEASE_SECONDS} s"
    yield "time", f"{outcome.seconds:.1f} s, {counts.total / outcome.seconds:,.0f} tasks/s"


def _why(outcome: Outcome) -> str:
    return f" ({last_line(outcome.broken[-1].error)})" if outcome.broken else ""


def _same(outcome: Outcome) -> str:
    same = outcome.summary_asked_again == outcome.summary.id
    return "not made, got the first one's id" if same else "made"
