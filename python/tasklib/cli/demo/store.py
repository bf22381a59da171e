"""The demo's view of the database: fill its tables, watch its tasks, read what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row

from .files import Content
from .tasks import QUEUE


@dataclass(frozen=True, slots=True)
class Counts:
    """How far the tasks of one run are."""

    total: int
    completed: int
    running: int
    retrying: int
    failed: int
    cancelled: int

    @property
    def finished(self) -> int:
        """How many will not change any more."""
        return self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class Indexed:
    """What the tasks stored about one document."""

    path: str
    sha256: str | None
    bytes: int | None
    words: int | None
    runs: int | None

    @property
    def content(self) -> Content | None:
        """What they found in it; None when nothing is stored."""
        if self.sha256 is None or self.bytes is None or self.words is None:
            return None
        return Content(self.sha256, self.bytes, self.words)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt."""

    task_id: UUID
    name: str
    attempt: int
    cause: str
    error: str | None
    next_retry_at: datetime | None


class Store:
    """One run of the demo in one database; its tasks are those made since ``began``."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.began = datetime.min

    def alone(self) -> bool:
        """Keep other demos out of this database for as long as the connection lives."""
        return self._one("select pg_try_advisory_lock(hashtextextended('tasklib.demo', 0))")

    def set_up(self) -> None:
        """Make the application's tables anew, and give up what an interrupted run left behind."""
        self.connection.execute(
            "select tasklib.cancel(id) from tasklib.tasks where queue = %s"
            " and (state in ('pending', 'running') or next_retry_at is not null)",
            (QUEUE,),
        )
        script = files("tasklib.cli.demo").joinpath("schema.sql").read_bytes()
        with self.connection.transaction():
            self.connection.execute(script)
        self.began = self._one("select clock_timestamp()")

    def add_documents(self, paths: Sequence[str]) -> None:
        """Insert documents; the trigger enqueues a task for each, in the same transaction."""
        self.connection.execute(
            "insert into tasklib_demo.document (path) select unnest(%s::text[])", (list(paths),)
        )

    def counts(self) -> Counts:
        """Count the tasks of this run by what they are doing."""
        with self.connection.cursor(row_factory=class_row(Counts)) as cursor:
            cursor.execute(
                """
                select count(*) as total,
                  count(*) filter (where state = 'completed') as completed,
                  count(*) filter (where state = 'running') as running,
                  count(*) filter (where next_retry_at is not null) as retrying,
                  count(*) filter (where state = 'failed' and next_retry_at is null) as failed,
                  count(*) filter (where state = 'cancelled') as cancelled
                from tasklib.tasks
                where queue = %s and created_at >= %s
                """,
                (QUEUE, self.began),
            )
            return cursor.fetchone() or Counts(0, 0, 0, 0, 0, 0)

    def held_by(self, worker_name: str) -> set[UUID]:
        """Return the tasks that a worker has in its hands."""
        return self._all(
            """
            select tasks.id from tasklib.tasks
            join tasklib.worker_health using (worker_id)
            where tasks.state = 'running' and tasks.queue = %s and worker_health.name = %s
            """,
            (QUEUE, worker_name),
        )

    def completed(self, ids: set[UUID]) -> int:
        """Count how many of some tasks are completed."""
        return self._one(
            "select count(*) from tasklib.tasks where id = any(%s) and state = 'completed'",
            (list(ids),),
        )

    def position_of_start(self, task_id: UUID) -> int:
        """Tell how many tasks of this run had started before this one, plus one."""
        return self._one(
            """
            select count(*) + 1 from tasklib.tasks as other
            where other.queue = %s and other.created_at >= %s
              and other.started_at < (select started_at from tasklib.tasks where id = %s)
            """,
            (QUEUE, self.began, task_id),
        )

    def failures(self) -> list[Failure]:
        """Read the failed attempts of this run."""
        with self.connection.cursor(row_factory=class_row(Failure)) as cursor:
            cursor.execute(
                """
                select failures.task_id, tasks.name, failures.attempt, failures.cause,
                  failures.error, failures.next_retry_at
                from tasklib.failures
                join tasklib.tasks on tasks.id = failures.task_id
                where tasks.queue = %s and tasks.created_at >= %s
                order by failures.task_id, failures.attempt
                """,
                (QUEUE, self.began),
            )
            return cursor.fetchall()

    def indexed(self) -> list[Indexed]:
        """Read all documents with what the tasks stored about them."""
        with self.connection.cursor(row_factory=class_row(Indexed)) as cursor:
            cursor.execute(
                """
                select path, sha256, bytes, words, runs
                from tasklib_demo.document
                left join tasklib_demo.document_index on document_id = document.id
                order by document.id
                """
            )
            return cursor.fetchall()

    def _one(self, sql: str, params: Sequence[object] = ()) -> Any:
        with self.connection.cursor(row_factory=scalar_row) as cursor:
            return cursor.execute(sql.encode(), params).fetchone()

    def _all(self, sql: str, params: Sequence[object] = ()) -> set[Any]:
        with self.connection.cursor(row_factory=scalar_row) as cursor:
            return set(cursor.execute(sql.encode(), params).fetchall())
