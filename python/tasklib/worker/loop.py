"""The worker: claim what there is room for, run it, say how it ended, and around again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable

from tasklib._default import adopt, database
from tasklib.config import Config
from tasklib.errors import ConfigurationError, TaskLibError
from tasklib.registry import Registry, default_registry
from tasklib.worker import context
from tasklib.worker.fetch import Settings
from tasklib.worker.finish import WorkerStats
from tasklib.worker.shift import Shift
from tasklib.worker.signals import handled

log = logging.getLogger("tasklib.worker")


class TaskWorker:
    """Runs the tasks of a registry until it is stopped.

    Args:
        config: The database, the lease, the defaults of tasks; None is that of `tasklib.init`.
        concurrency: How many tasks run at a time.
        poll_interval: Seconds between looks where notifications cannot be had.
        queues: The queues to take from, best first; None is every queue that a registered task
            names, and ``default``.
        registry: The tasks; None is that of ``@tasklib.task``.
        name: What people see in ``tasklib.worker_health``; host and process id when left out.
        shutdown_timeout: Seconds that running tasks get after `stop`; None is the configuration's.
        drain: End when nothing is due any more.
        handle_signals: Let SIGTERM and SIGINT stop the worker; a second one makes it leave at once.
        max_tasks: End for a fresh worker to take over after so many attempts.
        max_memory: The same when this process occupies more than so many bytes; seen between tasks.
        on_start: Called once, when the database knows the worker.
        replaceable: Whether a fresh process takes over when `run` ends with `wants_replacement`.
            Then it also ends, once its other tasks have, because of a thread that goes on long
            after the timeout of its task.

    Attributes:
        stats: What it did so far.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        concurrency: int = 1,
        poll_interval: float = 1.0,
        queues: Iterable[str] | None = None,
        registry: Registry | None = None,
        name: str | None = None,
        shutdown_timeout: float | None = None,
        drain: bool = False,
        handle_signals: bool = True,
        max_tasks: int | None = None,
        max_memory: int | None = None,
        on_start: Callable[[], object] | None = None,
        replaceable: bool = False,
    ) -> None:
        for name_of, limit in (("max_tasks", max_tasks), ("max_memory", max_memory)):
            if limit is not None and limit < 1:
                raise ConfigurationError(f"{name_of}={limit!r}: it is above 0, or left out")
        if not (concurrency >= 1 and poll_interval > 0):
            raise ConfigurationError(
                f"concurrency={concurrency!r}, poll_interval={poll_interval!r}: both are above 0"
            )
        self.config = config or database().config
        self.registry = default_registry if registry is None else registry
        self.stats = WorkerStats()
        if queues is not None:
            queues = [queues] if isinstance(queues, str) else list(queues)
            if not queues:
                raise ConfigurationError(
                    "queues is empty: the worker would never find anything",
                    hint="Leave it out for every queue that a registered task names.",
                )
        timeout = shutdown_timeout
        self._settings = Settings(
            config=self.config,
            registry=self.registry,
            queues=self.registry.queues() if queues is None else queues,
            concurrency=concurrency,
            poll_interval=poll_interval,
            name=name or f"{socket.gethostname()}:{os.getpid()}",
            shutdown_timeout=self.config.shutdown_timeout_seconds if timeout is None else timeout,
            drain=drain,
            max_tasks=max_tasks,
            max_memory=max_memory,
            on_start=on_start,
            replaceable=replaceable,
        )
        self._handle_signals = handle_signals
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shift: Shift | None = None
        self._is_stopping = False
        self._ended = asyncio.Event()

    @property
    def wants_replacement(self) -> bool:
        """Whether `run` ended by itself, for a fresh process to go on with what is left."""
        shift = self._shift
        return shift is not None and shift.limits.reached is not None and not self._is_stopping

    @property
    def registration(self) -> str | None:
        """The worker id under which it claims; None while the database knows none."""
        return self._shift and self._shift.registration

    async def run(self) -> None:
        """Work until `stop`, a signal, or, with ``drain``, until nothing is due.

        Raises:
            DatabaseUnavailable: The database could not be reached in the first half minute. Once
                started, the worker waits for its database as long as it takes.
            NotInstalled: The database was not migrated.
            SystemExit: A second signal came.
        """
        if self._shift is not None:
            raise TaskLibError("this worker was started before", hint="Make a new TaskWorker.")
        if context.is_child:
            raise ConfigurationError(
                "a worker was started in a child process, which has imported the program",
                hint="Put what starts the worker under `if __name__ == '__main__':`.",
            )
        adopt(self.config)
        self._loop = asyncio.get_running_loop()
        self._shift = Shift(self._settings, self.stats)
        work = asyncio.create_task(self._shift.work(), name="tasklib-worker")
        left_by: list[int] = []

        def on_signal(number: int) -> None:
            name = signal.Signals(number).name
            if self._is_stopping:
                log.warning("%s again: leaving at once, what runs is given back", name)
                left_by.append(number)
                work.cancel()
            else:
                log.info("%s: running tasks may end; a second one leaves at once", name)
            self.request_stop()

        if self._is_stopping:
            self._shift.stop()
        try:
            with handled(on_signal, wanted=self._handle_signals):
                await work
        except asyncio.CancelledError:
            if left_by:
                raise SystemExit(128 + left_by[0]) from None
            raise
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Take no more tasks, let the running ones end, and return when `run` has ended."""
        self.request_stop()
        if self._shift is not None:
            await self._ended.wait()

    def request_stop(self) -> None:
        """Begin to stop, from any thread; does not wait."""
        self._is_stopping = True
        if self._loop is not None and self._shift is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._shift.stop)
