"""The demo's view of the database: fill its tables, watch its tasks, read what came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row

from .files import Content
from .tasks import QUEUE


@dataclass(frozen=True, slots=True)
class Depth:
    """What is left to do."""

    unfinished: int
    running: int
    retrying: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document, how its task ended, and what the task stored about it."""

    path: str
    task_id: UUID
    state: str
    attempt: int
    started_at: datetime | None
    sha256: str | None
    bytes: int | None
    words: int | None

    @property
    def content(self) -> Content | None:
        """What the task found in it; None when nothing is stored."""
        if self.sha256 is None or self.bytes is None or self.words is None:
            return None
        return Content(self.sha256, self.bytes, self.words)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt."""

    task_id: UUID
    attempt: int
    cause: str
    error: str | None
    next_retry_at: datetime | None


class Store:
    """The demo's tables and tasks in one database."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def alone(self) -> bool:
        """Keep other demos out of this database for as long as the connection lives."""
        return self._one("select pg_try_advisory_lock(hashtextextended('tasklib.demo', 0))")

    def set_up(self) -> None:
        """Make the application's tables anew, and give up what an interrupted run left behind."""
        for state in ("pending", "running", "failed"):
            self.connection.execute(
                "select tasklib.cancel(id) from tasklib.tasks where state = %s and queue = %s"
                " and (state <> 'failed' or next_retry_at is not null)",
                (state, QUEUE),
            )
        script = files("tasklib.cli.demo").joinpath("schema.sql").read_bytes()
        with self.connection.transaction():
            self.connection.execute(script)

    def add_documents(self, paths: Sequence[str]) -> None:
        """Insert documents; the trigger enqueues a task for each, in the same transaction."""
        self.connection.execute(
            "insert into tasklib_demo.document (path) select unnest(%s::text[])", (list(paths),)
        )

    def depth(self) -> Depth:
        """Count the tasks that are left."""
        with self.connection.cursor(row_factory=class_row(Depth)) as cursor:
            cursor.execute(
                """
                select ready + waiting + scheduled + parked + running + retrying as unfinished,
                  running, retrying
                from tasklib.queue_stats where queue = %s
                """,
                (QUEUE,),
            )
            return cursor.fetchone() or Depth(0, 0, 0)

    def held_by(self, worker_name: str) -> set[UUID]:
        """Return the tasks that a worker has in its hands."""
        with self.connection.cursor(row_factory=scalar_row) as cursor:
            cursor.execute(
                """
                select tasks.id
                from tasklib.tasks
                join tasklib.worker_health using (worker_id)
                where tasks.state = 'running' and worker_health.name = %s
                """,
                (worker_name,),
            )
            return set(cursor.fetchall())

    def documents(self) -> list[Document]:
        """Read all documents with their tasks and what these stored."""
        with self.connection.cursor(row_factory=class_row(Document)) as cursor:
            cursor.execute(
                """
                select document.path, task.id as task_id, task.state, task.attempt,
                  task.started_at, found.sha256, found.bytes, found.words
                from tasklib_demo.document
                cross join lateral tasklib.get(document.task_id) as task
                left join tasklib_demo.document_index as found on found.document_id = document.id
                order by document.id
                """
            )
            return cursor.fetchall()

    def failures(self, task_ids: Iterable[UUID]) -> list[Failure]:
        """Read the failed attempts of some tasks."""
        with self.connection.cursor(row_factory=class_row(Failure)) as cursor:
            cursor.execute(
                """
                select task_id, attempt, cause, error, next_retry_at
                from tasklib.failures where task_id = any(%s)
                order by task_id, attempt
                """,
                (list(task_ids),),
            )
            return cursor.fetchall()

    def _one(self, sql: LiteralString) -> Any:
        with self.connection.cursor(row_factory=scalar_row) as cursor:
            return cursor.execute(sql).fetchone()
