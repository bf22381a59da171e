"""The two clients: `TaskQueue` for event loops, `SyncTaskQueue` for everything else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar
from uuid import UUID

from typing_extensions import Unpack

from tasklib import _calls
from tasklib._calls import Call
from tasklib._database import Database, Submitted, connection_of
from tasklib._waiting import TaskId, as_id, ended, pauses
from tasklib.config import Config
from tasklib.models import State, Task, TaskResult
from tasklib.registry import Registry

if TYPE_CHECKING:
    from tasklib.worker import TaskWorker

T = TypeVar("T")


class WorkerOptions(TypedDict, total=False):
    """What ``queue.worker`` takes; see `tasklib.TaskWorker`."""

    concurrency: int
    poll_interval: float
    queues: Iterable[str] | None
    name: str | None
    shutdown_timeout: float | None
    drain: bool
    handle_signals: bool
    max_tasks: int | None
    max_memory: int | None
    on_start: Callable[[], object] | None
    replaceable: bool


class TaskQueue:
    """The client for asyncio programs, with tasks of its own.

    Args:
        config: A configuration, or just a database URL; None reads the environment.
    """

    def __init__(self, config: Config | str | None = None) -> None:
        self._database = Database(config)
        self.config = self._database.config
        self.registry = Registry(self._database)
        self.task = self.registry.task
        self.around = self.registry.around

    async def connect(self) -> Self:
        """Make sure that the database can be reached; calls connect by themselves, too."""
        await self._database.aopen()
        return self

    async def close(self) -> None:
        """Close the connections."""
        self._database.close()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def enqueue(self, task: Submitted, /, *args: Any, **kwargs: Any) -> UUID:
        """Enqueue a task; options come with ``task.options(...)``.

        Returns:
            Its id; that of the holder when its ``unique_key`` is taken.

        Raises:
            InvalidArguments: The arguments do not fit, or JSON cannot hold them.
            TaskNotRegistered: It is a plain function.
        """
        new = self.registry.new(task, args, kwargs)
        return await self._database.asubmit(new, connection_of(task))

    async def enqueue_many(
        self,
        tasks: Iterable[tuple[Submitted, Mapping[str, Any]]],
        *,
        connection: object | None = None,
    ) -> list[UUID]:
        """Enqueue pairs of a task and its arguments, all or none, at most 10,000.

        Returns:
            The ids, in the order of the pairs.
        """
        given = list(tasks)
        connection = self._database.one_connection(given, connection)
        return await self._database.arun(self._database.many(self.registry, given), connection)

    async def get_task(self, task_id: TaskId) -> Task | None:
        """Read a task; None when there is none with this id."""
        return await self.run(_calls.get(as_id(task_id)))

    async def list_tasks(
        self,
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
        return await self.run(_calls.list_tasks(state, name, queue, tags, limit, after))

    async def get_result(
        self, task_id: TaskId, timeout: float | None = None
    ) -> TaskResult[Any] | None:
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
            found = ended(await self.get_task(task_id), task_id, self.registry)
            if found or pause is None:
                return found
            await asyncio.sleep(pause)
        return None

    async def retry_task(self, task_id: TaskId) -> str:
        """Make a failed or cancelled task pending again, under its id and with a fresh budget.

        Returns:
            Its new state.

        Raises:
            InvalidState: It runs or has completed.
            UniqueKeyHeld: Another unfinished task holds its unique key.
        """
        return await self.run(_calls.retry(as_id(task_id)))

    async def cancel_task(self, task_id: TaskId) -> str:
        """Cancel a task; one that runs is asked to stop.

        Returns:
            ``cancelled``, ``requested`` or ``finished`` (too late).
        """
        return await self.run(_calls.cancel(as_id(task_id)))

    async def run(self, call: Call[T]) -> T:
        """Run a call of the SQL interface."""
        return await self._database.arun(call)

    def worker(self, **options: Unpack[WorkerOptions]) -> TaskWorker:
        """Return a worker for this queue's tasks; see `tasklib.TaskWorker`."""
        from tasklib.worker import TaskWorker

        return TaskWorker(self.config, registry=self.registry, **options)


class SyncTaskQueue:
    """The blocking client, with tasks of its own; `TaskQueue` without the awaiting.

    Args:
        config: A configuration, or just a database URL; None reads the environment.

    Raises:
        EventLoopRunning: From every method that blocks, inside a running event loop.
    """

    def __init__(self, config: Config | str | None = None) -> None:
        self._database = Database(config, may_block_loops=False)
        self.config = self._database.config
        self.registry = Registry(self._database)
        self.task = self.registry.task
        self.around = self.registry.around

    def connect(self) -> Self:
        """Make sure that the database can be reached; calls connect by themselves, too."""
        self._database.open()
        return self

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def enqueue(self, task: Submitted, /, *args: Any, **kwargs: Any) -> UUID:
        """Enqueue a task; see `TaskQueue.enqueue`."""
        return self._database.submit(self.registry.new(task, args, kwargs), connection_of(task))

    def enqueue_many(
        self,
        tasks: Iterable[tuple[Submitted, Mapping[str, Any]]],
        *,
        connection: object | None = None,
    ) -> list[UUID]:
        """Enqueue pairs of a task and its arguments; see `TaskQueue.enqueue_many`."""
        given = list(tasks)
        connection = self._database.one_connection(given, connection)
        return self._database.run(self._database.many(self.registry, given), connection)

    def get_task(self, task_id: TaskId) -> Task | None:
        """Read a task; None when there is none with this id."""
        return self.run(_calls.get(as_id(task_id)))

    def list_tasks(
        self,
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
        return self.run(_calls.list_tasks(state, name, queue, tags, limit, after))

    def get_result(self, task_id: TaskId, timeout: float | None = None) -> TaskResult[Any] | None:
        """Wait until a task has ended; see `TaskQueue.get_result`."""
        for pause in pauses(timeout):
            found = ended(self.get_task(task_id), task_id, self.registry)
            if found or pause is None:
                return found
            time.sleep(pause)
        return None

    def retry_task(self, task_id: TaskId) -> str:
        """Make a failed or cancelled task pending again; see `TaskQueue.retry_task`."""
        return self.run(_calls.retry(as_id(task_id)))

    def cancel_task(self, task_id: TaskId) -> str:
        """Cancel a task; see `TaskQueue.cancel_task`."""
        return self.run(_calls.cancel(as_id(task_id)))

    def run(self, call: Call[T]) -> T:
        """Run a call of the SQL interface."""
        return self._database.run(call)

    def worker(self, **options: Unpack[WorkerOptions]) -> TaskWorker:
        """Return a worker for this queue's tasks; see `tasklib.TaskWorker`."""
        from tasklib.worker import TaskWorker

        return TaskWorker(self.config, registry=self.registry, **options)
