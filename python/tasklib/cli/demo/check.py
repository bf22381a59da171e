"""What must be true at the end: compared with the files on disk, and with what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from tasklib.models import Task

from .files import read_content
from .store import Document, Failure


@dataclass(frozen=True)
class Outcome:
    """Everything that a run left behind."""

    documents: Sequence[Document]
    broken_path: str
    failures: Sequence[Failure]
    census: Task
    summary: Task
    summary_asked_again: UUID
    held_by_killed: set[UUID]
    killed: tuple[str, int] | None
    seconds: float

    @cached_property
    def readable(self) -> list[Document]:
        """The documents that exist."""
        return [document for document in self.documents if document.path != self.broken_path]

    @cached_property
    def broken(self) -> list[Failure]:
        """The attempts of the document that does not exist."""
        ids = {document.task_id for document in self.documents} - {
            document.task_id for document in self.readable
        }
        return [failure for failure in self.failures if failure.task_id in ids]

    @cached_property
    def differing(self) -> list[str]:
        """Paths of documents that are not on disk what the tasks say they are."""
        return [
            document.path
            for document in self.readable
            if document.content != read_content(document.path)
        ]

    @cached_property
    def states(self) -> Counter[str]:
        """How many tasks ended how."""
        ends = [document.state for document in self.documents]
        return Counter([*ends, self.census.state, self.summary.state])

    @cached_property
    def saved(self) -> set[UUID]:
        """Tasks that died with the killed worker and were completed by another."""
        tasks: list[tuple[UUID, Document | Task]]
        tasks = [(document.task_id, document) for document in self.readable]
        tasks += [(task.id, task) for task in (self.census, self.summary)]
        return {
            task_id
            for task_id, task in tasks
            if task_id in self.held_by_killed and task.attempt > 1 and task.state == "completed"
        }

    @property
    def census_position(self) -> int:
        """How many tasks had started when the one with the highest priority had."""
        first = self.census.started_at
        assert first is not None
        return 1 + sum(1 for task in self.documents if task.started_at and task.started_at < first)


def faults(outcome: Outcome) -> Iterator[str]:
    """Say everything that is not as it must be; nothing when the run was right."""
    for path in outcome.differing:
        yield f"what is stored about {path!r} is not what is on disk"
    expected = {"completed": len(outcome.readable) + 2, "failed": 1}
    if outcome.states != expected:
        yield f"the tasks ended as {dict(outcome.states)} instead of {expected}"
    yield from _faults_of_broken(outcome)
    yield from _faults_of_summary(outcome)
    if not outcome.held_by_killed:
        yield "no worker was killed at work"


def _faults_of_broken(outcome: Outcome) -> Iterator[str]:
    attempts = outcome.broken
    if len(attempts) != 3 or attempts[-1].next_retry_at is not None:
        yield f"the broken document failed {len(attempts)} times instead of 3"
    errors = [attempt.error or "" for attempt in attempts if attempt.cause == "error"]
    if not errors or not all("FileNotFoundError" in error for error in errors):
        yield f"the broken document failed with {errors}"


def _faults_of_summary(outcome: Outcome) -> Iterator[str]:
    summary = outcome.summary
    if outcome.summary_asked_again != summary.id:
        yield "a second task was made although the unique key was held"
    if not (summary.started_at and summary.scheduled_at):
        yield "the delayed task has no times"
    elif summary.started_at < summary.scheduled_at:
        yield "the delayed task started before its time"
    contents = [document.content for document in outcome.readable if document.content]
    expected = {
        "documents": len(contents),
        "bytes": sum(content.bytes for content in contents),
        "words": sum(content.words for content in contents),
    }
    if summary.result != {"value": expected}:
        yield f"the summary says {summary.result}, the files {expected}"
