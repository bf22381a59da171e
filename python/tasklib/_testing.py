"""What `tasklib.testing` does, apart from it so that pytest does not import it unasked."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tasklib import _calls
from tasklib._default import database
from tasklib._migrate import migrate
from tasklib._store import open_store
from tasklib.config import Config, resolve
from tasklib.models import Claimed, NewTask, Task
from tasklib.registry import Registry
from tasklib.worker.context import Run, enter
from tasklib.worker.hooks import body

# Rows that an installation needs stay; the proofs of housekeeping are about the real clock.
_KEPT = ("migration", "config", "housekeeping", "backlog_round")
_REAL_TIME = ("migration", "horizon", "time_mark")


@dataclass(frozen=True, slots=True)
class Inlined:
    """One task that was run where it was submitted."""

    id: UUID
    name: str
    kwargs: dict[str, Any]
    value: Any


class Inliner:
    """Takes the place of a database: runs what is submitted."""

    def __init__(self, registry: Registry) -> None:
        self.ran: list[Inlined] = []
        self._registry = registry

    def submit(self, new: NewTask, connection: object | None) -> UUID:
        """Run a task; an async one on a loop of its own."""
        task = self._registry.resolve(new.name)
        if task.is_async:
            return _elsewhere(lambda: asyncio.run(self._arun(new)))
        return contextvars.copy_context().run(self._run, new)

    async def asubmit(self, new: NewTask, connection: object | None) -> UUID:
        """Run a task, on this loop."""
        if self._registry.resolve(new.name).is_async:
            context = contextvars.copy_context()
            return await asyncio.create_task(self._arun(new), context=context)
        return self.submit(new, connection)

    def _run(self, new: NewTask) -> UUID:
        run, kwargs = self._begin(new)
        return self._note(run, kwargs, body(self._registry.resolve(new.name))(**kwargs))

    async def _arun(self, new: NewTask) -> UUID:
        run, kwargs = self._begin(new)
        return self._note(run, kwargs, await body(self._registry.resolve(new.name))(**kwargs))

    def _begin(self, new: NewTask) -> tuple[Run, dict[str, Any]]:
        queue, retries = new.options.queue or "default", new.options.max_retries or 0
        claimed = Claimed(
            str(uuid4()), 1, new.name, queue, new.kwargs, 0, retries, None, None, None
        )
        run = Run(claimed, str(uuid4()))
        enter(run)
        return run, self._registry.resolve(new.name).arguments.load(new.kwargs)

    def _note(self, run: Run, kwargs: dict[str, Any], value: object) -> UUID:
        task = self._registry.resolve(run.claimed.name)
        task.arguments.dump_result(value)
        self.ran.append(Inlined(UUID(run.claimed.id), task.name, kwargs, value))
        return UUID(run.claimed.id)


def _elsewhere(function: Callable[[], UUID]) -> UUID:
    """Call a function in a thread, where no event loop runs yet."""
    answers: list[UUID] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            answers.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


@contextmanager
def run_database() -> Generator[Config]:
    """Make a database for this test run, and remove it afterwards."""
    url = os.environ.get("TASKLIB_TEST_DATABASE_URL")
    if not url:
        config = Config(database_url="memory://testing")
        open_store(config)
        yield config
        return
    name = f"tasklib_test_{os.getpid()}_{uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            config = Config(database_url=make_conninfo(url, dbname=name))
            migrate(resolve(config).conninfo)
            yield config
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def empty(config: Config) -> None:
    """Remove all tasks, workers and settings."""
    with _owner(config) as connection:
        names = connection.execute(
            """
            select tablename from pg_tables
            where schemaname = 'tasklib' and tablename <> all (%s)
            """,
            [list(_KEPT)],
        ).fetchall()
        tables = sql.SQL(", ").join(sql.Identifier("tasklib", name) for (name,) in names)
        connection.execute(sql.SQL("truncate {}").format(tables))
        connection.execute("select tasklib.set_strict(false)")


def shift(config: Config | None, seconds: float) -> None:
    """Move every stored time back, and forget the marks that were proven by the clock."""
    with _owner(config or database().config) as connection:
        columns = connection.execute(
            """
            select relation.relname, array_agg(attribute.attname::text)
            from pg_attribute as attribute
              join pg_class as relation on relation.oid = attribute.attrelid
            where relation.relnamespace = 'tasklib'::regnamespace
              and relation.relkind = 'r'
              and attribute.atttypid = 'timestamptz'::regtype
              and not attribute.attisdropped
              and relation.relname <> all (%s)
            group by relation.relname
            """,
            [list(_REAL_TIME)],
        ).fetchall()
        for table, names in columns:
            moves = sql.SQL(", ").join(
                sql.SQL("{0} = {0} - %(seconds)s * interval '1 second'").format(
                    sql.Identifier(name)
                )
                for name in names
            )
            statement = sql.SQL("update {} set {}").format(sql.Identifier("tasklib", table), moves)
            connection.execute(statement, {"seconds": seconds})
        connection.execute("delete from tasklib.time_mark")


def pending(
    name: str,
    kwargs: Mapping[str, Any] | None,
    queue: str | None,
    tags: Mapping[str, Any] | None,
) -> tuple[list[Task], list[Task]]:
    """Return all pending tasks of a name, and those that fit."""
    tasks = database().run(
        _calls.list_tasks("pending", name, queue, tags, _calls.MOST_LISTED, None)
    )
    wanted = dict(kwargs or {})

    def fits(task: Task) -> bool:
        given = task.kwargs
        return isinstance(given, dict) and all(
            key in given and given[key] == value for key, value in wanted.items()
        )

    return tasks, [task for task in tasks if fits(task)]


@contextmanager
def _owner(config: Config) -> Generator[psycopg.Connection[Any]]:
    with psycopg.connect(open_store(config).conninfo) as connection:
        yield connection
