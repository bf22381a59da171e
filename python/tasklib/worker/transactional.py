"""Run tasks whose own transaction completes them, so that their effects happen exactly once.

The last statement of the transaction is `tasklib.complete`, which refuses when the lease is lost.
So whatever happens to the worker, the effects and the completion are stored together or not at all.
What is left to do here is to know which of the two it was, and to give back an attempt that nobody
works on any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import psycopg

from tasklib import _connections, _worker_calls
from tasklib._calls import Call
from tasklib.config import Config
from tasklib.errors import (
    AlreadyFinished,
    InvalidArguments,
    LeaseLost,
    NoTransaction,
    TaskNotFound,
    WorkerNotRegistered,
)
from tasklib.registry import TaskFunction
from tasklib.worker import outcome as ends
from tasklib.worker.context import Run
from tasklib.worker.hooks import body
from tasklib.worker.link import Link, is_infrastructure
from tasklib.worker.outcome import Outcome
from tasklib.worker.sessions import AsyncSessions, Hold, Sessions, Stopped

log = logging.getLogger("tasklib.worker")

COMMITTED = Outcome("completed", "", answer="ok")
# The server says that it goes down, or that it was told to end the session.
_SHUTDOWN = ("57P01", "57P02", "57P03")


class Transactions:
    """Runs transactional tasks; made inside the event loop of their worker."""

    def __init__(self, config: Config) -> None:
        self._sessions = Sessions(config)
        self._async_sessions = AsyncSessions(config)
        self._link = Link(config, "tasklib outcomes")
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Close the connections that no task uses; the others close when theirs has ended."""
        self._sessions.close()
        self._async_sessions.close()
        self._link.drop()

    def run(self, run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any]) -> Outcome:
        """Run a sync task in the calling thread.

        Returns:
            How it ended, which the database mostly knows already.

        Raises:
            BaseException: What the task raised; everything that it did is rolled back.
        """
        try:
            with self._sessions.lent(run) as hold:
                end = _run(run, task, kwargs, hold)
        except Stopped:
            return ends.RELEASED
        if isinstance(end, Outcome):
            return end
        if self._loop.is_closed():  # the worker left before its task
            return ends.RELEASED
        return asyncio.run_coroutine_threadsafe(self._ask(run, end), self._loop).result()

    async def arun(self, run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any]) -> Outcome:
        """Run an async task; see `run`."""
        try:
            async with self._async_sessions.lent(run) as hold:
                end = await _arun(run, task, kwargs, hold)
        except Stopped:
            return ends.RELEASED
        return end if isinstance(end, Outcome) else await self._ask(run, end)

    async def _ask(self, run: Run, unknown: _Unknown) -> Outcome:
        """Find out how an attempt ended whose transaction is over.

        To end it otherwise waits for a commit that is under way, and succeeds only if that comes to
        nothing. If it does not, to complete it cannot change anything any more, but says whether
        that had been done.
        """
        log.warning("asking whether %s was completed", run.claimed.name, extra=run.log)
        otherwise = unknown.otherwise
        if run.stop_reason == "timeout":
            otherwise = ends.timed_out(run.claimed.timeout_seconds)
        try:
            status = await self._link.persist(_finish(run, otherwise))
            if status == "ok":
                return replace(otherwise, answer=status)
            status = await self._link.persist(_finish(run, ends.completed("null")))
        except WorkerNotRegistered:
            status = "stale"
        return Outcome("completed", "", answer=status)


@dataclass(frozen=True, slots=True)
class _Unknown:
    """Only the database knows how an attempt ended.

    Attributes:
        otherwise: How it shall end if it has not.
    """

    otherwise: Outcome


class _Attempt:
    """How far an attempt has come; the same for sync and async tasks."""

    def __init__(self, run: Run, hold: Hold) -> None:
        self._run = run
        self._hold = hold
        self._began = ""
        self._stage: Literal["begin", "work", "complete", "commit"] = "begin"

    def works(self, began: str) -> None:
        """The transaction has begun, and now it is the task's."""
        self._began = began
        self._stage = "work"

    def completion(self, result: str) -> Call[bool]:
        """The function returned; make the call that completes the task."""
        self._stage = "complete"
        claimed = self._run.claimed
        return _worker_calls.complete(
            claimed.id, self._run.worker_id, claimed.attempt, f'{{"value": {result}}}', self._began
        )

    def commits(self, is_same_transaction: bool) -> None:
        """The task is completed, if the transaction commits.

        Raises:
            NoTransaction: It is another one than the task was given.
        """
        if not is_same_transaction:
            raise _ended_itself(self._run)
        self._stage = "commit"

    def judged(self, error: BaseException) -> Outcome | _Unknown:
        """Return how an attempt ended whose transaction ended with an error.

        Raises:
            BaseException: The error, when it is the task's.
        """
        connection, sqlstate = self._hold.connection, getattr(error, "sqlstate", None)
        if self._stage == "commit" and not (
            # What the server refuses, by a deferred constraint say, is rolled back.
            isinstance(error, psycopg.Error) and not connection.closed
        ):
            return _Unknown(ends.RELEASED)
        if self._stage == "complete":
            if isinstance(error, (LeaseLost, AlreadyFinished, TaskNotFound)):
                return _Unknown(ends.impossible(_ended_itself(self._run)))
            if isinstance(error, InvalidArguments):
                return ends.impossible(error)
            if connection.closed and not connection.broken:
                return ends.impossible(NoTransaction("the task closed its connection"))
            if connection.closed and sqlstate is None:
                # The server may not have noticed yet: its transaction holds the attempt until then.
                return _Unknown(ends.RELEASED)
        if isinstance(error, NoTransaction):
            return ends.impossible(error)
        if self._hold.is_cut:
            return ends.RELEASED
        # A server that dies has no time for a code. Should the task's own statement have killed it:
        # releases are not without end.
        is_gone = connection.broken and (sqlstate in _SHUTDOWN or _says_nothing(error))
        if is_gone or (self._stage == "begin" and is_infrastructure(error)):
            told = "%s is given back: its connection broke (%s)"
            log.warning(told, self._run.claimed.name, type(error).__name__, extra=self._run.log)
            return ends.RELEASED
        raise error


def _says_nothing(error: BaseException) -> bool:
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None


def _run(
    run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any], hold: Hold
) -> Outcome | _Unknown:
    attempt = _Attempt(run, hold)
    connection: Any = hold.connection
    try:
        with connection.transaction():
            attempt.works(_connections.run(connection, _worker_calls.transaction_began()))
            with _no_rollback():
                value = body(task)(**kwargs)
            done = attempt.completion(task.arguments.dump_result(value))
            attempt.commits(_connections.run(connection, done))
    except BaseException as error:
        return attempt.judged(error)
    return COMMITTED


async def _arun(
    run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any], hold: Hold
) -> Outcome | _Unknown:
    attempt = _Attempt(run, hold)
    connection: Any = hold.connection
    try:
        async with connection.transaction():
            attempt.works(await _connections.arun(connection, _worker_calls.transaction_began()))
            with _no_rollback():
                value = await body(task)(**kwargs)
            done = attempt.completion(task.arguments.dump_result(value))
            attempt.commits(await _connections.arun(connection, done))
    except BaseException as error:
        return attempt.judged(error)
    return COMMITTED


@contextmanager
def _no_rollback() -> Generator[None]:
    """Refuse psycopg's signal to roll back and go on as if nothing had been wrong."""
    try:
        yield
    except psycopg.Rollback as error:
        raise NoTransaction(
            "psycopg.Rollback left the task, which says nothing about the task itself",
            hint="Raise tasklib.Cancel, tasklib.Retry or another exception: all of them roll back.",
        ) from error


def _ended_itself(run: Run) -> NoTransaction:
    return NoTransaction(
        f"{run.claimed.name} ended its transaction or its attempt itself",
        hint="What it committed stays, so it is not tried again. Leave COMMIT, ROLLBACK and "
        "tasklib.complete to the worker; `with connection.transaction()` makes savepoints.",
    )


def _finish(run: Run, outcome: Outcome) -> Call[str]:
    claimed = run.claimed
    ended = _worker_calls.Ended(run.worker_id, [claimed.id], [claimed.attempt], [outcome.text])
    call = _worker_calls.finish(ended)
    return Call(call.sql, call.params, lambda rows: call.read(rows)[0])
