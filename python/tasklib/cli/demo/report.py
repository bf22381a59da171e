"""The table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .._describe import last_line
from .check import Outcome


def report(folder: Path, outcome: Outcome) -> str:
    """Write what was done, every number of it read from the database or from the disk."""
    return "\n".join(f"  {label:<32}{value}".rstrip() for label, value in _lines(folder, outcome))


def _lines(folder: Path, outcome: Outcome) -> Iterator[tuple[str, str]]:
    documents = outcome.readable
    contents = [document.content for document in documents if document.content]
    size = sum(content.bytes for content in contents) / 1e6
    words = sum(content.words for content in contents)
    total = len(outcome.documents) + 2
    yield f"files below {folder}", f"{len(documents):,} ({size:,.1f} MB, {words:,} words)"
    yield "hash and words as on disk", f"{len(documents) - len(outcome.differing):,}"
    yield "differing", f"{len(outcome.differing):,}"
    yield "", ""
    yield "tasks", f"{total:,}"
    for state, count in outcome.states.most_common():
        yield f"  {state}", f"{count:,}" + (_why(outcome) if state == "failed" else "")
    yield "retries of the broken file", f"{max(0, len(outcome.broken) - 1)}"
    yield "priority 100 of the census", _position(outcome)
    yield "second task, same key", _second(outcome)
    yield "", ""
    if outcome.killed:
        name, pid = outcome.killed
        held = len(outcome.held_by_killed)
        yield "killed with -9", f"{name} (pid {pid}) with {held} tasks in its hands"
        yield "  run again by others", f"{len(outcome.saved)}, as soon as it was dead"
    yield "time", f"{outcome.seconds:.1f} s, {total / outcome.seconds:,.0f} tasks/s"


def _why(outcome: Outcome) -> str:
    return f" ({last_line(outcome.broken[-1].error)})" if outcome.broken else ""


def _position(outcome: Outcome) -> str:
    number = outcome.census_position
    earlier = f": {number - 1:,} had begun already" if number > 1 else ""
    return f"number {number:,} to start{earlier}"


def _second(outcome: Outcome) -> str:
    same = outcome.summary_asked_again == outcome.summary.id
    return "not made, got the first one's id" if same else "made"
