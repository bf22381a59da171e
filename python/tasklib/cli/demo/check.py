"""What must be true at the end: compared with the files on disk, and with what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tasklib.models import Task

from .files import read_content
from .store import Counts, Failure, Indexed


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a run left behind."""

    documents: Sequence[Indexed]
    counts: Counts
    failures: Sequence[Failure]
    broken_path: str
    summary: Task
    summary_asked_again: UUID
    census: Task
    census_position: int
    held_by_killed: set[UUID]
    completed_of_held: int
    killed: tuple[str, int] | None
    seconds: float
    python_tasks: int = 2
    differing: list[str] = field(default_factory=list[str])

    @property
    def readable(self) -> list[Indexed]:
        """The documents that exist."""
        return [document for document in self.documents if document.path != self.broken_path]

    @property
    def broken(self) -> list[Failure]:
        """The attempts of the document that does not exist: the one task that failed for good."""
        given_up = {failure.task_id for failure in self.failures if failure.next_retry_at is None}
        return [failure for failure in self.failures if failure.task_id in given_up]


def faults(outcome: Outcome) -> Iterator[str]:
    """Say everything that is not as it must be; nothing when the run was right."""
    outcome.differing.extend(_differing(outcome.readable))
    for path in outcome.differing:
        yield f"what is stored about {path!r} is not what is on disk"
    expected = len(outcome.readable) + outcome.python_tasks
    counts = outcome.counts
    if (counts.total, counts.completed, counts.failed) != (expected + 1, expected, 1):
        yield f"expected {expected} completed tasks and 1 failed one, got {counts}"
    yield from _faults_of_broken(outcome)
    yield from _faults_of_summary(outcome)
    if not outcome.held_by_killed:
        yield "no worker was killed at work"
    if outcome.completed_of_held != len(outcome.held_by_killed):
        yield "tasks of the killed worker were lost"


def _differing(documents: Sequence[Indexed]) -> Iterator[str]:
    for document in documents:
        if document.content != read_content(document.path):
            yield document.path


def _faults_of_broken(outcome: Outcome) -> Iterator[str]:
    attempts = outcome.broken
    if len(attempts) != 3 or attempts[-1].next_retry_at is not None:
        yield f"the broken document was tried {len(attempts)} times instead of 3"
    errors = [attempt.error or "" for attempt in attempts if attempt.cause == "error"]
    if not errors or not all("FileNotFoundError" in error for error in errors):
        yield "the broken document failed with another error"


def _faults_of_summary(outcome: Outcome) -> Iterator[str]:
    if outcome.summary_asked_again != outcome.summary.id:
        yield "a second task was made although the unique key was held"
    if not _after(outcome.summary.started_at, outcome.summary.scheduled_at):
        yield "the delayed task started before its time"
    contents = [document.content for document in outcome.readable if document.content]
    expected = {
        "documents": len(contents),
        "bytes": sum(content.bytes for content in contents),
        "words": sum(content.words for content in contents),
    }
    if outcome.summary.result != {"value": expected}:
        yield f"the summary says {outcome.summary.result}, the files {expected}"


def _after(instant: Any, other: Any) -> bool:
    return instant is not None and other is not None and instant >= other
