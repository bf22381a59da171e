"""One attempt while it runs, and what its code sees of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID

from tasklib._calls import decoded
from tasklib.errors import InvalidArguments, NotInTask, NoTransaction
from tasklib.models import Claimed
from tasklib.worker.outcome import storable

if TYPE_CHECKING:
    from tasklib.worker.sessions import Hold

StopReason = Literal["cancel", "timeout", "lost", "shutdown"]

is_child = False
"""Whether this process runs tasks for a worker, and shall not start one."""


@dataclass(eq=False, slots=True)
class Run:
    """One attempt that this worker holds.

    Attributes:
        claimed: What was handed out.
        worker_id: The registration that holds the lease.
        started: The loop's time when it was claimed; once it has begun, when it did.
        stop_reason: Why it shall end early; read by other threads.
        is_settled: Whether its outcome is decided; a thread may go on after its timeout.
        progress: What was last reported and not yet stored.
        handle: The asyncio task that runs it, when it is async and has begun.
        has_waited: Whether its coroutine was ever suspended.
        timer: What ends it at its timeout.
        hold: The connection of its transaction, while it has one.
    """

    claimed: Claimed
    worker_id: str
    started: float = 0.0
    stop_reason: StopReason | None = None
    is_settled: bool = False
    progress: tuple[float, str | None] | None = None
    handle: asyncio.Task[None] | None = None
    has_waited: bool = False
    timer: asyncio.TimerHandle | None = None
    hold: Hold | None = None

    @property
    def log(self) -> dict[str, object]:
        """The ids for log records; arguments never get there."""
        claimed = self.claimed
        return {
            "task_id": claimed.id,
            "task_name": claimed.name,
            "attempt": claimed.attempt,
            "queue": claimed.queue,
            "worker_id": self.worker_id,
        }


class CurrentTask:
    """The attempt that the calling code is part of."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return f"<task {self.id} {self.name} attempt {self.attempt}>"

    @property
    def id(self) -> UUID:
        """The task's id: the same in every attempt, so a good key for calls to the outside."""
        return UUID(self._run.claimed.id)

    @property
    def name(self) -> str:
        """The task's name."""
        return self._run.claimed.name

    @property
    def queue(self) -> str:
        """The queue that it was claimed from."""
        return self._run.claimed.queue

    @property
    def attempt(self) -> int:
        """Which hand-out this is, from 1; releases and snoozes count."""
        return self._run.claimed.attempt

    @property
    def worker_id(self) -> UUID:
        """The registration that holds the lease: what `tasklib.complete` in SQL wants to know."""
        return UUID(self._run.worker_id)

    @property
    def retry_count(self) -> int:
        """How many attempts were charged before this one."""
        return self._run.claimed.retry_count

    @property
    def max_retries(self) -> int:
        """How many retries the task has in all."""
        return self._run.claimed.max_retries

    @property
    def tags(self) -> Mapping[str, Any]:
        """The tags given when it was enqueued."""
        return cast("dict[str, Any]", decoded(self._run.claimed.tags) or {})

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers given when it was enqueued."""
        return cast("dict[str, Any]", decoded(self._run.claimed.headers) or {})

    @property
    def cancelled(self) -> bool:
        """Whether this attempt shall end: cancelled, timed out, or the worker lost or left it.

        An async task is interrupted by itself; a sync one looks here from time to time.
        """
        return self._run.stop_reason is not None

    @property
    def connection(self) -> Any:
        """The connection whose transaction completes this task, until the function returns.

        A `psycopg.Connection` for sync tasks, a `psycopg.AsyncConnection` for async ones.

        Raises:
            NoTransaction: The task is not transactional, or its function has returned.
        """
        hold = self._run.hold
        if hold is None:
            raise NoTransaction(
                f"{self.name} has no transaction",
                hint="Only @task(transactional=True) has one, in a worker, and until it returns.",
            )
        return hold.connection

    def progress(self, fraction: float, text: str | None = None) -> None:
        """Report how far the task is; stored within a second, without waiting for it.

        Args:
            fraction: 0 to 1.
            text: What it is doing, for people.

        Raises:
            InvalidArguments: The fraction is not a number from 0 to 1.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise InvalidArguments(f"progress {fraction!r} is not between 0 and 1")
        self._run.progress = (float(fraction), None if text is None else storable(str(text)))


_current: ContextVar[CurrentTask] = ContextVar("tasklib_current_task")


def current_task() -> CurrentTask:
    """Return the task that the calling code is part of.

    Raises:
        NotInTask: No worker is running this code.
    """
    try:
        return _current.get()
    except LookupError:
        raise NotInTask(
            "current_task() was called outside a task",
            hint="Only code that a worker runs has a current task.",
        ) from None


def enter(run: Run) -> None:
    """Make a run the current task of the calling context."""
    _current.set(CurrentTask(run))
