"""One configured database: what both clients and the module-level functions stand on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from uuid import UUID

from tasklib import _callers, _calls
from tasklib._calls import Call
from tasklib._connections import AsyncConnections, Connections
from tasklib._options import merged
from tasklib.config import Config
from tasklib.errors import EventLoopRunning, InvalidArguments, TaskLibError
from tasklib.models import NO_OPTIONS, Backoff, NewTask, Options
from tasklib.registry import Registry, TaskFunction

T = TypeVar("T")
Submitted = TaskFunction[..., Any] | str


class Database:
    """A configuration, the connections for blocking and for async calls, and the task defaults.

    Args:
        config: A configuration, or just a database URL; None reads the environment.
        may_block_loops: Whether blocking calls are let through inside a running event loop.
    """

    def __init__(self, config: Config | str | None, *, may_block_loops: bool = True) -> None:
        self.config = Config(database_url=config) if isinstance(config, str) else config or Config()
        self._blocking = Connections(self.config)
        self._loops = AsyncConnections(self.config)
        self._defaults = configured(self.config)
        self._may_block_loops = may_block_loops

    def run(self, call: Call[T], connection: object | None = None) -> T:
        """Run a call, on the caller's connection when there is one."""
        self._refuse_running_loop()
        if connection is None:
            return self._blocking.run(call)
        return _callers.run(connection, call)

    async def arun(self, call: Call[T], connection: object | None = None) -> T:
        """Run a call, on the caller's connection when there is one."""
        if connection is None:
            return await self._loops.run(call)
        return await _callers.arun(connection, call)

    def submit(self, new: NewTask, connection: object | None) -> UUID:
        """Enqueue one task, blocking."""
        return self.run(_calls.enqueue(self._completed(new)), connection)

    async def asubmit(self, new: NewTask, connection: object | None) -> UUID:
        """Enqueue one task."""
        return await self.arun(_calls.enqueue(self._completed(new)), connection)

    def many(
        self, registry: Registry, tasks: Iterable[tuple[Submitted, Mapping[str, Any]]]
    ) -> Call[list[UUID]]:
        """Check pairs of a task and its arguments, and make the call that enqueues them.

        Raises:
            TaskLibError: Of the class that the first bad pair alone would raise; it names the pair.
        """
        checked: list[NewTask] = []
        for index, (task, kwargs) in enumerate(tasks):
            try:
                checked.append(self._completed(registry.new(task, (), kwargs)))
            except TaskLibError as error:
                message = f"tasks[{index}]: {error.args[0]}"
                raise type(error)(message, hint=error.hint) from error
        return _calls.enqueue_many(checked)

    @staticmethod
    def one_connection(
        tasks: Iterable[tuple[Submitted, Mapping[str, Any]]], connection: object | None
    ) -> object | None:
        """Return the connection for all tasks: the one given, or the one bound to each of them.

        Raises:
            InvalidArguments: Some tasks are bound to another one.
        """
        bound = {id(found): found for task, _ in tasks for found in [connection_of(task)]}
        if connection is not None:
            bound.pop(id(None), None)
            bound[id(connection)] = connection
        if len(bound) > 1:
            raise InvalidArguments(
                "the tasks are bound to different connections",
                hint="Give one for all: enqueue_many(tasks, connection=...).",
            )
        return next(iter(bound.values()), None)

    def open(self) -> None:
        """Make sure that the database can be reached."""
        self._refuse_running_loop()
        self._blocking.open()

    async def aopen(self) -> None:
        """Make sure that the database can be reached."""
        await self._loops.open()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._blocking.close()
        self._loops.close()

    def _completed(self, new: NewTask) -> NewTask:
        if self._defaults is NO_OPTIONS:
            return new
        return NewTask(new.name, new.kwargs, merged(self._defaults, new.options))

    def _refuse_running_loop(self) -> None:
        if self._may_block_loops:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise EventLoopRunning(
            "SyncTaskQueue blocks, and an event loop is running in this thread",
            hint="Use TaskQueue there, and await its methods.",
        )


def configured(config: Config) -> Options:
    """Return the task options that a configuration changes; the database has the same defaults."""
    known = Config.model_fields
    backoff = Backoff(
        base_seconds=config.base_retry_delay_seconds,
        multiplier=config.retry_backoff_multiplier,
        cap_seconds=config.max_retry_delay_seconds,
        jitter=config.retry_jitter,
    )
    retries = config.max_retries
    changed = Options(
        max_retries=None if retries == known["max_retries"].default else retries,
        backoff=None if backoff == Backoff() else backoff,
    )
    return NO_OPTIONS if changed == NO_OPTIONS else changed


def connection_of(task: Submitted) -> object | None:
    """Return the connection that ``task.options(connection=...)`` bound."""
    return None if isinstance(task, str) else getattr(task, "connection", None)
