"""The functions of the module ``tasklib``: one queue for the process, configured by `init`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from tasklib import _calls, _migrate
from tasklib._database import Database
from tasklib._options import checked
from tasklib._waiting import TaskId, as_id, ended, pauses
from tasklib.config import Config, resolve
from tasklib.models import NewTask, State, Task, TaskResult
from tasklib.registry import TaskFunction, default_registry

_lock = threading.Lock()
_database: Database | None = None


def init(config: Config | str | None = None) -> None:
    """Choose the database of this process's tasks.

    Nothing is connected yet. Without it, the first call reads the configuration from the
    environment. Called again, it closes what the last one opened.

    Args:
        config: A configuration, or just a database URL; None reads the environment.
    """
    global _database
    with _lock:
        if _database is not None:
            _database.close()
        _database = Database(config)


def close() -> None:
    """Close this process's connections; the next call opens new ones."""
    if _database is not None:
        _database.close()


def adopt(config: Config) -> None:
    """Use this configuration where `init` was not called: tasks enqueue where they came from."""
    global _database
    with _lock:
        if _database is None:
            _database = Database(config)


def database() -> Database:
    """Return the database of this process, by the environment when `init` was not called."""
    global _database
    with _lock:
        if _database is None:
            _database = Database(None)
        return _database


def migrate(config: Config | str | None = None) -> list[str]:
    """Bring the database to this package's version, in one transaction.

    Args:
        config: A configuration, or just a database URL; None is what `init` was given.

    Returns:
        The names of the migrations applied, oldest first; empty when there was nothing to do.

    Raises:
        MigrationError: The database is ahead of this package, or was changed by hand.
    """
    if config is None:
        config = database().config
    elif isinstance(config, str):
        config = Config(database_url=config)
    return _migrate.migrate(resolve(config).conninfo)


async def submit_task(
    func: Callable[..., Any] | str,
    /,
    *,
    delay_seconds: float = 0,
    scheduled_at: datetime | None = None,
    priority: int | None = None,
    queue: str | None = None,
    tags: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
    concurrency_key: str | None = None,
    connection: object | None = None,
    **kwargs: Any,
) -> UUID:
    """Enqueue a task; its arguments are given by name.

    Args:
        func: A function decorated with ``@task``, or a task's name.
        delay_seconds: Not before so many seconds have passed.
        scheduled_at: Not before this time, which must know its time zone.
        priority: Higher goes first, -1000 to 1000.
        queue: The queue; the decorator's, or ``default``, when left out.
        tags: A JSON object to find the task by.
        unique_key: Among the unfinished tasks of the queue, a key exists once.
        concurrency_key: Tasks of the queue with the same key never run at the same time.
        connection: Enqueue in the transaction of this connection or session: psycopg's,
            SQLAlchemy's or Django's. It is never committed here.
        **kwargs: The task's arguments.

    Returns:
        Its id; that of the holder when ``unique_key`` is taken.

    Raises:
        InvalidArguments: The arguments or options do not fit, or JSON cannot hold them.
        TaskNotRegistered: The function is not a task.
    """
    options = {
        "delay_seconds": delay_seconds or None,
        "scheduled_at": scheduled_at,
        "priority": priority,
        "queue": queue,
        "tags": tags,
        "unique_key": unique_key,
        "concurrency_key": concurrency_key,
    }
    label = func if isinstance(func, str) else getattr(func, "name", "submit_task")
    new = default_registry.new(func, (), kwargs, checked(label, options))
    if connection is None and isinstance(func, TaskFunction):
        connection = func.connection
    registry = func.registry if isinstance(func, TaskFunction) else default_registry
    return await registry.submitter.asubmit(new, connection)


def get_task(task_id: TaskId) -> Task | None:
    """Read a task, blocking; None when there is none with this id."""
    return database().run(_calls.get(as_id(task_id)))


async def aget_task(task_id: TaskId) -> Task | None:
    """Read a task; None when there is none with this id."""
    return await database().arun(_calls.get(as_id(task_id)))


def list_tasks(
    *,
    state: State | None = None,
    name: str | None = None,
    queue: str | None = None,
    tags: Mapping[str, Any] | None = None,
    limit: int = 50,
    before: TaskId | None = None,
) -> list[Task]:
    """Read tasks, newest first, blocking; see `alist_tasks`."""
    after = None if before is None else as_id(before)
    return database().run(_calls.list_tasks(state, name, queue, tags, limit, after))


async def alist_tasks(
    *,
    state: State | None = None,
    name: str | None = None,
    queue: str | None = None,
    tags: Mapping[str, Any] | None = None,
    limit: int = 50,
    before: TaskId | None = None,
) -> list[Task]:
    """Read tasks, newest first, 1000 at most; ``before`` is the last id of the page before."""
    after = None if before is None else as_id(before)
    return await database().arun(_calls.list_tasks(state, name, queue, tags, limit, after))


async def get_result(task_id: TaskId, timeout: float | None = None) -> TaskResult[Any] | None:
    """Wait until a task has ended.

    Args:
        task_id: The task.
        timeout: Seconds to wait at most; None waits for ever, 0 looks once.

    Returns:
        How it ended; None when the time is up.

    Raises:
        TaskNotFound: There is no task with this id.
    """
    for pause in pauses(timeout):
        found = ended(await aget_task(task_id), task_id, default_registry)
        if found or pause is None:
            return found
        await asyncio.sleep(pause)
    return None


def wait_result(task_id: TaskId, timeout: float | None = None) -> TaskResult[Any] | None:
    """Wait until a task has ended, blocking; see `get_result`."""
    for pause in pauses(timeout):
        found = ended(get_task(task_id), task_id, default_registry)
        if found or pause is None:
            return found
        time.sleep(pause)
    return None


def retry_task(task_id: TaskId) -> str:
    """Make a failed or cancelled task pending again, blocking.

    Returns:
        Its new state.

    Raises:
        InvalidState: It runs or has completed.
        UniqueKeyHeld: Another unfinished task holds its unique key.
    """
    return database().run(_calls.retry(as_id(task_id)))


async def aretry_task(task_id: TaskId) -> str:
    """Make a failed or cancelled task pending again; see `retry_task`."""
    return await database().arun(_calls.retry(as_id(task_id)))


def cancel_task(task_id: TaskId) -> str:
    """Cancel a task, blocking; one that runs is asked to stop.

    Returns:
        ``cancelled``, ``requested`` or ``finished`` (too late).
    """
    return database().run(_calls.cancel(as_id(task_id)))


async def acancel_task(task_id: TaskId) -> str:
    """Cancel a task; see `cancel_task`."""
    return await database().arun(_calls.cancel(as_id(task_id)))


class _Default:
    """Puts the tasks of ``@tasklib.task`` into whatever database `init` chose last."""

    def submit(self, new: NewTask, connection: object | None) -> UUID:
        return database().submit(new, connection)

    async def asubmit(self, new: NewTask, connection: object | None) -> UUID:
        return await database().asubmit(new, connection)


default_registry.submitter = _Default()
task = default_registry.task
around = default_registry.around
