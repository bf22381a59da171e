"""Database sessions that transactional tasks borrow, one for each attempt.

Sessions are kept for the next attempt; what a task did to them is not. Each attempt gets a
connection object of its own, which is closed when the attempt is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from tasklib import _calls, _connections, _worker_calls
from tasklib._connections import AsyncConnection, Connection
from tasklib.config import Config
from tasklib.worker.context import Run
from tasklib.worker.link import first_line, is_infrastructure, pause_after

C = TypeVar("C", Connection, AsyncConnection)
log = logging.getLogger("tasklib.worker")

APPLICATION_NAME = "tasklib task"
CANCEL_SECONDS = 5.0


class Stopped(Exception):
    """The run was told to stop while it waited for a connection."""


class Hold:
    """A connection while an attempt has it.

    Attributes:
        connection: What the task sees.
        is_cut: Whether it was taken away.
    """

    def __init__(self, connection: Connection | AsyncConnection) -> None:
        self.connection = connection
        self.is_cut = False
        self._is_over = False
        self._lock = threading.Lock()
        self._cutting: asyncio.Task[None] | None = None

    def cut(self) -> None:
        """Let nothing more be done on it; called on the loop, and does not wait.

        The thread that uses the connection may be inside of it, so it is not closed here: what runs
        is cancelled, and then the line goes dead under it.
        """
        if self.is_cut:
            return
        self.is_cut = True
        if isinstance(self.connection, psycopg.AsyncConnection):
            self._cutting = asyncio.get_running_loop().create_task(self._acut(self.connection))
        else:
            threading.Thread(
                target=self._cut, args=(self.connection,), name="tasklib-cut", daemon=True
            ).start()

    def end(self) -> None:
        """The attempt gives it back; waits for a cut that is under way."""
        with self._lock:
            self._is_over = True

    def _cut(self, connection: Connection) -> None:
        with self._lock:
            if self._is_over:
                return
            with contextlib.suppress(Exception):
                connection.cancel_safe(timeout=CANCEL_SECONDS)
            _hang_up(connection)

    async def _acut(self, connection: AsyncConnection) -> None:
        with contextlib.suppress(Exception):
            await connection.cancel_safe(timeout=CANCEL_SECONDS)
        if not self._is_over:
            _hang_up(connection)


def _hang_up(connection: Connection | AsyncConnection) -> None:
    with contextlib.suppress(OSError, psycopg.Error):
        line = socket.socket(fileno=os.dup(connection.pgconn.socket))
        with line:
            line.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class _Session(Generic[C]):
    """A session that outlives attempts; ``owner`` is in autocommit, and never shown to a task."""

    owner: C
    is_pooled: bool


class _Kept(Generic[C]):
    """Sessions that are not in use: at most ``config.pool_size``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle: list[_Session[C]] = []
        self._is_closed = False

    def close(self) -> None:
        """Close what is not in use, and what comes back."""
        self._is_closed = True
        while session := self._take():
            session.owner.pgconn.finish()

    def _take(self) -> _Session[C] | None:
        while True:
            try:
                session = self._idle.pop()
            except IndexError:
                return None
            if _connections.is_alive(session.owner.pgconn):
                return session
            session.owner.pgconn.finish()

    def _is_sound(self, session: _Session[C], hold: Hold) -> bool:
        status = session.owner.pgconn.transaction_status
        return status == pq.TransactionStatus.IDLE and not hold.is_cut

    def _put(self, session: _Session[C]) -> None:
        if self._is_closed or len(self._idle) >= self._config.pool_size:
            session.owner.pgconn.finish()
        else:
            self._idle.append(session)


class Sessions(_Kept[Connection]):
    """Sessions for sync tasks; used from their threads."""

    @contextmanager
    def lent(self, run: Run) -> Generator[Hold]:
        """Give a run a connection for the time of the block.

        Raises:
            Stopped: The run was told to stop before there was one.
        """
        session = self._take() or self._opened(run)
        connection = psycopg.Connection(session.owner.pgconn, row_factory=tuple_row)
        connection.prepare_threshold = session.owner.prepare_threshold
        run.hold = hold = Hold(connection)
        try:
            yield hold
        finally:
            run.hold = None
            hold.end()
            with connection.lock:
                connection.pgconn = _closed()
            self._take_back(session, hold)

    def _take_back(self, session: _Session[Connection], hold: Hold) -> None:
        try:
            if self._is_sound(session, hold):
                if not session.is_pooled:
                    session.owner.execute(_worker_calls.FORGET_SESSION, prepare=False)
                self._put(session)
                return
        except Exception as error:
            log.warning("a session is not kept (%s)", type(error).__name__)
        session.owner.pgconn.finish()

    def _opened(self, run: Run) -> _Session[Connection]:
        failures = 0
        while True:
            try:
                return self._open()
            except Exception as error:
                pause = _pause(run, error, failures)
            failures += 1
            time.sleep(pause)

    def _open(self) -> _Session[Connection]:
        owner = _connections.connect(self._config, APPLICATION_NAME)
        try:
            pid = _connections.run(owner, _calls.backend_pid())
        except BaseException:
            owner.pgconn.finish()
            raise
        return _Session(owner, pid != owner.info.backend_pid)


class AsyncSessions(_Kept[AsyncConnection]):
    """Sessions for async tasks; used on the loop."""

    @asynccontextmanager
    async def lent(self, run: Run) -> AsyncGenerator[Hold]:
        """Give a run a connection for the time of the block; see `Sessions.lent`."""
        session = self._take() or await self._opened(run)
        connection = psycopg.AsyncConnection(session.owner.pgconn, row_factory=tuple_row)
        connection.prepare_threshold = session.owner.prepare_threshold
        run.hold = hold = Hold(connection)
        try:
            yield hold
        finally:
            run.hold = None
            hold.end()
            await self._take_back(session, hold, connection)

    async def _take_back(
        self, session: _Session[AsyncConnection], hold: Hold, connection: AsyncConnection
    ) -> None:
        try:
            async with connection.lock:
                connection.pgconn = _closed()
            if self._is_sound(session, hold):
                if not session.is_pooled:
                    await session.owner.execute(_worker_calls.FORGET_SESSION, prepare=False)
                self._put(session)
                return
        except (Exception, asyncio.CancelledError) as error:
            # Also an interruption: the attempt is over, and how it ended is not to be forgotten.
            log.warning("a session is not kept (%s)", type(error).__name__)
            connection.pgconn = _closed()
        session.owner.pgconn.finish()

    async def _opened(self, run: Run) -> _Session[AsyncConnection]:
        failures = 0
        while True:
            try:
                return await self._open()
            except Exception as error:
                pause = _pause(run, error, failures)
            failures += 1
            await asyncio.sleep(pause)

    async def _open(self) -> _Session[AsyncConnection]:
        owner = await _connections.aconnect(self._config, APPLICATION_NAME)
        try:
            pid = await _connections.arun(owner, _calls.backend_pid())
        except BaseException:
            owner.pgconn.finish()
            raise
        return _Session(owner, pid != owner.info.backend_pid)


def _pause(run: Run, error: Exception, failures: int) -> float:
    """Return how long to wait for the database; what is no matter of waiting is raised again."""
    if not is_infrastructure(error):
        raise error
    if run.stop_reason is not None:
        raise Stopped from error
    pause = pause_after(failures)
    told = "a task waits for a connection (%s); next try in %.1f s"
    log.warning(told, first_line(error), pause, extra=run.log)
    return pause


@functools.cache
def _closed() -> Any:
    """Return a closed connection of libpq, for objects whose session goes on without them."""
    pgconn = pq.PGconn.connect_start(b"closed")
    pgconn.finish()
    return pgconn
