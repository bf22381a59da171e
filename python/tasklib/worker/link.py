"""The worker's connection for claiming, finishing and notifications; it comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, TypeVar
from uuid import uuid4

import psycopg

from tasklib import _calls, _connections, _statements, _worker_calls
from tasklib._calls import Call
from tasklib._connections import AsyncConnection
from tasklib._statements import Statements
from tasklib.config import Config
from tasklib.errors import DatabaseUnavailable, NotInstalled

T = TypeVar("T")
log = logging.getLogger("tasklib.worker")

CALL_SECONDS = 30.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
HEARING_SECONDS = 2.0
PROBE = "probe "

# Serialization, deadlock, resources, operator, locks, read-only after a failover, a plan that
# changed under a prepared statement, the system: none says anything about the call itself.
_TRANSIENT = ("08", "40", "53", "55", "57", "58", "XX", "25006", "0A000")


class NotSent(DatabaseUnavailable):
    """There was no connection: the call was certainly not done."""


def is_infrastructure(error: BaseException) -> bool:
    """Tell whether an error is about the server or the way to it: never the task's failure."""
    if isinstance(error, (DatabaseUnavailable, TimeoutError, OSError)):
        return True
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error.sqlstate.startswith(_TRANSIENT)
    # A connection that breaks off says no code.
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def first_line(error: BaseException) -> str:
    """Return what an error says, short enough for a log; its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def pause_after(failures: int) -> float:
    """Return seconds to wait after so many failures in a row: growing, capped, never in step."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


class Link:
    """One connection, opened when needed; calls on it have an end even on a dead network.

    Args:
        config: The database.
        application_name: What people see in ``pg_stat_activity``.
        on_notification: Called with the payload of every notification, once `listen` was called;
            with None when nothing is heard any more, as the connection broke.
        on_handover: Called with what comes on `channel`.

    Attributes:
        is_listening: Whether a notification would be heard.
        channel: The name of a channel for this connection alone, which nobody can guess; whoever
            makes offers lets it listen there. None while nothing is heard.
    """

    def __init__(
        self,
        config: Config,
        application_name: str,
        on_notification: Callable[[str | None], None] | None = None,
        on_handover: Callable[[str], None] | None = None,
    ) -> None:
        self.is_listening = False
        self.channel: str | None = None
        self._config = config
        self._name = application_name
        self._on_notification = on_notification if config.listen else None
        self._on_handover = on_handover
        self._shall_listen = False
        self._session: Statements[AsyncConnection] | None = None
        self._lock = asyncio.Lock()
        self._sent: Call[Any] | None = None
        self._heard: int | None = None
        self._failures = 0

    @contextmanager
    def hearing(self) -> Generator[None]:
        """Hear notifications during the block, in which no call is made."""
        loop = asyncio.get_running_loop()
        session = self._session
        if not self.is_listening or session is None or self._lock.locked():
            yield
            return
        self._heard = session.pgconn.socket
        loop.add_reader(self._heard, self._hear, session)
        try:
            yield
        finally:
            self._hear_no_more()

    def send(self, call: Call[Any]) -> bool:
        """Send a call at once, whose answer `run` with the same call waits for.

        Any other call that comes first gives up the connection, and this one's answer with it.

        Returns:
            Whether it was sent, or may have been: only on a free connection that knows the text.
        """
        session = self._session
        if session is None or self._lock.locked():
            return False
        try:
            is_sent = session.send(call)
        except psycopg.OperationalError:
            self.drop()
            is_sent = True
        self._sent = call if is_sent else None
        return is_sent

    async def run(self, call: Call[T]) -> T:
        """Run a call once.

        Raises:
            DatabaseUnavailable: The connection broke or was silent for too long; whether the call
                was done is unknown.
        """
        async with self._lock:
            sent, self._sent = self._sent, None
            is_sent = sent is call
            if sent is not None and not is_sent:
                self.drop()
            session = self._session if is_sent else await self._open()
            if session is None:
                raise DatabaseUnavailable("the connection broke")
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    with _connections.translated():
                        answer = await _statements.arun(session, call, is_sent=is_sent)
            except BaseException as error:
                if is_infrastructure(error) or not isinstance(error, Exception):
                    self.drop()
                if isinstance(error, TimeoutError):
                    raise DatabaseUnavailable(f"no answer within {CALL_SECONDS:g} s") from error
                raise
            if self._failures:
                log.info("the database answers again")
                self._failures = 0
            return answer

    async def persist(self, call: Call[T], seconds: float | None = None) -> T:
        """Run a call until it is answered; only for calls that may be repeated.

        Args:
            call: What to run.
            seconds: Give up after so many; None goes on for ever.
        """
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while True:
            try:
                return await self.run(call)
            except Exception as error:
                if not is_infrastructure(error) or isinstance(error, NotInstalled):
                    raise
                if deadline is not None and loop.time() > deadline:
                    raise
                await self.rest(error)

    async def rest(self, error: BaseException) -> None:
        """Wait after an infrastructure error, longer each time, and say so."""
        pause = pause_after(self._failures)
        self._failures += 1
        told = "the database does not answer (%s); next try in %.1f s"
        log.warning(told, first_line(error), pause)
        await asyncio.sleep(pause)

    def drop(self) -> None:
        """Close the connection without a word to the server."""
        self.is_listening = False
        self.channel = None
        self._hear_no_more()
        if self._session is not None:
            self._session.pgconn.finish()
            self._session = None

    async def _open(self) -> Statements[AsyncConnection]:
        # What the server closed meanwhile is known dead before anything is sent.
        if self._session is not None and not _connections.is_alive(self._session.pgconn):
            self.drop()
        if self._session is None:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    connection = await _connections.aconnect(self._config, self._name)
                    self._session = Statements(connection)
                    if self._shall_listen:
                        await self._listen(connection)
            except BaseException as error:
                # A standby, say, lets nobody listen: the next connection tries again.
                self.drop()
                if is_infrastructure(error):
                    raise NotSent(str(error) or "no connection in time") from error
                raise
        return self._session

    # ---- notifications ---------------------------------------------------------------------------

    async def listen(self) -> None:
        """Listen from now on, also on the connections to come; poll where nothing is heard.

        Raises:
            DatabaseUnavailable: The connection broke; the next one listens.
        """
        self._shall_listen = self._on_notification is not None
        async with self._lock:
            session = await self._open()
            if self._shall_listen and not self.is_listening:
                try:
                    async with asyncio.timeout(CALL_SECONDS):
                        await self._listen(session.connection)
                except BaseException:
                    self.drop()
                    raise

    async def _listen(self, connection: AsyncConnection) -> None:
        try:
            self.is_listening = await self._is_direct(connection) and await self._hears(connection)
        except psycopg.Error as error:
            if is_infrastructure(error):
                raise
            log.warning("cannot listen (%s)", type(error).__name__)
        if self.is_listening:
            self.channel = f"tasklib_{token_hex(16)}"
            connection.add_notify_handler(
                lambda heard: self._notified(heard.channel, heard.payload)
            )
        else:
            self._shall_listen = False  # the way to the server will be the same next time
            log.warning("no notification comes through a pooler: polling instead of listening")

    async def _is_direct(self, connection: AsyncConnection) -> bool:
        """Tell whether the session is ours alone: many poolers make up the process id they say."""
        said = connection.info.backend_pid
        return await _connections.arun(connection, _calls.backend_pid()) == said

    async def _hears(self, connection: AsyncConnection) -> bool:
        """Try it: there are poolers that cannot be recognised."""
        await connection.execute(_worker_calls.LISTEN)
        payload = f"{PROBE}{uuid4()}"
        other = await _connections.aconnect(self._config, "tasklib probe")
        try:
            await _connections.arun(other, _worker_calls.probe(payload))
        finally:
            other.pgconn.finish()
        async for heard in connection.notifies(timeout=HEARING_SECONDS):
            if heard.payload == payload:
                return True
        return False

    def _notified(self, channel: str, payload: str) -> None:
        if channel == self.channel:
            if self._on_handover is not None:
                self._on_handover(payload)
        elif self._on_notification is not None and not payload.startswith(PROBE):
            self._on_notification(payload)

    def _hear_no_more(self) -> None:
        # Before the connection is closed: then somebody else may get its number.
        if self._heard is not None:
            asyncio.get_running_loop().remove_reader(self._heard)
            self._heard = None

    def _hear(self, session: Statements[AsyncConnection]) -> None:
        try:
            session.pgconn.consume_input()
        except psycopg.OperationalError:
            self.drop()
            if self._on_notification is not None:
                self._on_notification(None)
            return
        for channel, payload in session.notifications():
            self._notified(channel, payload)
