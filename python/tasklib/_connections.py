"""Run calls: on connections of our own, or on one that the caller brought.

There is no pool with threads or tasks of its own: a connection that is not in use lies in a list.
So there is nothing to start, nothing that belongs to an event loop, and nothing to warn at exit.
"""

from __future__ import annotations

import asyncio
import os
import queue
import weakref
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import TupleRow, tuple_row

from tasklib import _calls, _statements
from tasklib._calls import Call
from tasklib._statements import PREPARE_AFTER, Statements
from tasklib._store import open_store
from tasklib.config import Config
from tasklib.errors import DatabaseUnavailable, InvalidArguments, TaskLibError, from_sqlstate

T = TypeVar("T")
Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]

WAIT_SECONDS = 30.0

# A peer that vanished without a word is noticed within a minute instead of two hours.
_LIVENESS = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


def conninfo(config: Config, application_name: str = "tasklib") -> str:
    """Return what to connect with; what the user said about liveness stays."""
    given = open_store(config).conninfo
    known = conninfo_to_dict(given)
    ours = {"application_name": application_name, **_LIVENESS}
    return make_conninfo(given, **{key: ours[key] for key in ours if key not in known})


def connect(config: Config, application_name: str = "tasklib") -> Connection:
    """Open a connection of our own, in autocommit.

    A pooler shares sessions, and statements that one client prepared are another's surprise: it
    announces a process id that it made up, and then nothing is prepared.

    Raises:
        DatabaseUnavailable: The server cannot be reached.
    """
    with _reaching():
        connection = psycopg.Connection.connect(
            conninfo(config, application_name), autocommit=True, prepare_threshold=None
        )
    if config.prepared_statements:
        try:
            is_pooled = run(connection, _calls.backend_pid()) != connection.info.backend_pid
        except BaseException:
            connection.close()
            raise
        connection.prepare_threshold = None if is_pooled else PREPARE_AFTER
    return connection


async def aconnect(config: Config, application_name: str = "tasklib") -> AsyncConnection:
    """Open a connection of our own for the event loop; see `connect`."""
    # Finding the store may start a server and migrate it: not on the loop.
    target = await asyncio.to_thread(conninfo, config, application_name)
    with _reaching():
        connection = await psycopg.AsyncConnection.connect(
            target, autocommit=True, prepare_threshold=None
        )
    if config.prepared_statements:
        try:
            is_pooled = await arun(connection, _calls.backend_pid()) != connection.info.backend_pid
        except BaseException:
            connection.pgconn.finish()
            raise
        connection.prepare_threshold = None if is_pooled else PREPARE_AFTER
    return connection


def run(connection: psycopg.Connection[Any], call: Call[T]) -> T:
    """Run a call on a connection; the transaction stays the caller's."""
    with translated(), connection.cursor(row_factory=tuple_row) as cursor:
        return call.read(cursor.execute(call.sql, call.params).fetchall())


async def arun(connection: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    """Run a call on an async connection; the transaction stays the caller's."""
    with translated():
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(call.sql, call.params)
            return call.read(await cursor.fetchall())


def is_alive(pgconn: PGconn) -> bool:
    """Tell, without asking the server, whether it has closed an idle connection."""
    try:
        # The first may read the server's last words, the second finds that nothing follows.
        pgconn.consume_input()
        pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def translated() -> Generator[None]:
    """Raise TaskLib's errors for those of the driver, by SQLSTATE."""
    try:
        yield
    except (psycopg.DataError, UnicodeEncodeError) as error:
        known = as_tasklib_error(error)
        raise known or InvalidArguments(str(error)) from error
    except Exception as error:
        known = as_tasklib_error(error)
        if known is None:
            raise
        raise known from error


def as_tasklib_error(error: BaseException) -> TaskLibError | None:
    """Translate a driver's error: psycopg's, psycopg2's, or one that Django wrapped."""
    for source in (error, error.__cause__):
        sqlstate = getattr(source, "sqlstate", None) or getattr(source, "pgcode", None)
        if sqlstate and not isinstance(source, TaskLibError):
            return from_sqlstate(sqlstate, getattr(source, "diag", None))
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return DatabaseUnavailable(str(error).strip() or "the connection broke")
    return None


@contextmanager
def _reaching() -> Generator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(str(error).strip(), sqlstate=error.sqlstate) from error


class Connections:
    """Connections for blocking calls, opened when needed, at most ``config.pool_size``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle: list[Statements[Connection]] = []
        self._pid = os.getpid()
        # One entry for each connection that may be taken: a semaphore, but not one made of Python.
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(config.pool_size):
            self._room.put(None)
        weakref.finalize(self, _close_all, self._idle)

    def run(self, call: Call[T]) -> T:
        """Run a call in a transaction of its own."""
        statements = self._taken()
        try:
            with translated():
                answer = _statements.run(statements, call)
        except BaseException as error:
            _keep_if_sound(self._idle, statements, error)
            raise
        else:
            self._idle.append(statements)
            return answer
        finally:
            self._room.put(None)

    def open(self) -> None:
        """Make sure that the database can be reached."""
        statements = self._taken()
        try:
            self._idle.append(statements)
        finally:
            self._room.put(None)

    def close(self) -> None:
        """Close what is not in use; the next call opens anew."""
        _close_all(self._idle)

    def _taken(self) -> Statements[Connection]:
        try:
            self._room.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise _all_busy(self._config) from None
        try:
            return _take(self) or Statements(connect(self._config))
        except BaseException:
            self._room.put(None)
            raise


class AsyncConnections:
    """Connections for calls from event loops.

    An idle connection belongs to no loop, so a program that calls ``asyncio.run`` again and again
    goes on with the connections it has.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle: list[Statements[AsyncConnection]] = []
        self._pid = os.getpid()
        self._rooms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._rooms = weakref.WeakKeyDictionary()
        weakref.finalize(self, _close_all, self._idle)

    async def run(self, call: Call[T]) -> T:
        """Run a call in a transaction of its own."""
        async with self._connection() as statements:
            with translated():
                return await _statements.arun(statements, call)

    async def open(self) -> None:
        """Make sure that the database can be reached."""
        async with self._connection():
            pass

    def close(self) -> None:
        """Close what is not in use, from any thread or loop; the next call opens anew."""
        _close_all(self._idle)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Statements[AsyncConnection]]:
        room = self._rooms.setdefault(
            asyncio.get_running_loop(), asyncio.Semaphore(self._config.pool_size)
        )
        if not room.locked():
            await room.acquire()  # at once: a timeout would cost turns of the loop
        else:
            try:
                await asyncio.wait_for(room.acquire(), WAIT_SECONDS)
            except TimeoutError:
                raise _all_busy(self._config) from None
        try:
            statements = _take(self) or Statements(await aconnect(self._config))
            try:
                yield statements
            except BaseException as error:
                _keep_if_sound(self._idle, statements, error)
                raise
            self._idle.append(statements)
        finally:
            room.release()


def _take(pool: Any) -> Any:
    """Return the idle connection used last that the server has not closed meanwhile."""
    if pool._pid != os.getpid():
        # A forked child must neither use nor close what its parent still talks through.
        _inherited.append(list(pool._idle))
        pool._idle.clear()
        pool._pid = os.getpid()
    while True:
        try:
            statements = pool._idle.pop()
        except IndexError:
            return None
        if is_alive(statements.pgconn):
            return statements
        statements.pgconn.finish()


_inherited: list[list[Any]] = []


def _keep_if_sound(idle: list[Any], statements: Any, error: BaseException) -> None:
    """Keep a connection whose call TaskLib refused; after anything else it may be in any state."""
    is_refusal = isinstance(error, TaskLibError) and (error.sqlstate or "").startswith("TL")
    if is_refusal and statements.pgconn.transaction_status == TransactionStatus.IDLE:
        idle.append(statements)
    else:
        statements.pgconn.finish()


def _close_all(idle: list[Any]) -> None:
    while idle:
        statements = idle.pop()  # named: it must live until it is closed, or it warns
        statements.pgconn.finish()


def _all_busy(config: Config) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"all {config.pool_size} connections were busy for {WAIT_SECONDS:.0f} s",
        hint="Raise Config(pool_size=...), or look for what holds them.",
    )
