"""Run calls on a connection of our own, without a cursor.

What a driver does around a statement (cursors, adapters for every type, row factories) takes longer
than a server nearby takes to answer. Calls hold texts and numbers, so they need none of it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import generators
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from tasklib._calls import Call, Rows

T = TypeVar("T")
C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any])

# A text is prepared when it comes again so often. There are few but for odd mixes of options.
PREPARE_AFTER = 5
MOST_PREPARED = 100

_PLACEHOLDER = re.compile(r"%\((\w+)\)s")
# The plan was made for a row type, or prepared in a session, that is no more.
_OUTDATED = (b"0A000", b"26000")


class Statements(Generic[C]):
    """A connection in autocommit, and what is prepared on it, if it may prepare statements.

    Args:
        connection: Nobody else uses it during a call.
    """

    def __init__(self, connection: C) -> None:
        self.connection = connection
        self.pgconn: PGconn = connection.pgconn
        self._encoding: str = connection.info.encoding
        self._transformer = Transformer(connection)
        self._prepares: bool = connection.prepare_threshold is not None
        self._seen: dict[str, int] = {}
        self._prepared: dict[str, bytes] = {}
        self._names = 0

    def send(self, call: Call[Any]) -> bool:
        """Send a call, for `execute` to read the answer; only one whose text is prepared.

        Returns:
            Whether it was sent.

        Raises:
            psycopg.OperationalError: The server is not there; whether it got the call is unknown.
        """
        prepared = self._prepared.get(call.sql)
        if prepared is None:
            return False
        self.pgconn.send_query_prepared(prepared, self._values(call, _numbered(call.sql)[1]))
        self.pgconn.flush()  # as far as it goes at once
        return True

    def execute(self, call: Call[Any], *, is_sent: bool = False) -> Generator[Any, Any, Rows]:
        """Do a call step by step; the connection's ``wait`` drives it.

        Args:
            call: What to do.
            is_sent: `send` has sent it.

        Raises:
            psycopg.Error: What the server says, or that it is not there.
        """
        text, names = _numbered(call.sql)
        values = self._values(call, names)
        if self._is_worth_preparing(call.sql):
            self._names += 1
            name = b"tasklib_%d" % self._names
            self.pgconn.send_prepare(name, text)
            self._check((yield from self._answer()))
            self._prepared[call.sql] = name
        prepared = self._prepared.get(call.sql)
        if prepared is not None:
            if not is_sent:
                self.pgconn.send_query_prepared(prepared, values)
            result = yield from self._answer()
            if result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) not in _OUTDATED:
                return self._rows(result)
            # It was refused before anything was done.
            self._prepared.clear()
        self.pgconn.send_query_params(text, values)
        return self._rows((yield from self._answer()))

    def _answer(self) -> Generator[Any, Any, PGresult]:
        results = yield from generators.execute(self.pgconn)
        if not results:  # a notification was heard meanwhile that made somebody give it up
            raise psycopg.OperationalError("the connection was closed during the call")
        return results[-1]

    def notifications(self) -> Iterator[tuple[str, str]]:
        """Take the notifications that have been read: channel and payload."""
        while heard := self.pgconn.notifies():
            yield (
                heard.relname.decode(self._encoding),
                heard.extra.decode(self._encoding),
            )

    def _values(self, call: Call[Any], names: list[str]) -> list[bytes | None]:
        return [self._encoded(call.params[name]) for name in names]

    def _is_worth_preparing(self, text: str) -> bool:
        if not self._prepares or text in self._prepared or len(self._prepared) >= MOST_PREPARED:
            return False
        seen = self._seen[text] = self._seen.get(text, 0) + 1
        return seen > PREPARE_AFTER

    def _rows(self, result: PGresult) -> Rows:
        self._check(result)
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _check(self, result: PGresult) -> None:
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, self._encoding)

    def _encoded(self, value: object) -> bytes | None:
        if isinstance(value, str):
            if "\0" in value:
                raise psycopg.DataError("a text for PostgreSQL cannot contain NUL characters")
            return value.encode(self._encoding)
        if value is None:
            return None
        if isinstance(value, bool):
            return b"true" if value else b"false"
        if isinstance(value, (int, float)):
            return str(value).encode()
        raise TypeError(f"calls take texts and numbers, not {type(value).__name__}")


def run(statements: Statements[psycopg.Connection[Any]], call: Call[T]) -> T:
    """Run a call in a transaction of its own."""
    return call.read(statements.connection.wait(statements.execute(call)))


async def arun(
    statements: Statements[psycopg.AsyncConnection[Any]], call: Call[T], *, is_sent: bool = False
) -> T:
    """Run a call in a transaction of its own, from an event loop; ``is_sent`` as for `execute`."""
    steps = statements.execute(call, is_sent=is_sent)
    return call.read(await statements.connection.wait(steps))


@lru_cache(maxsize=1000)
def _numbered(sql: str) -> tuple[bytes, list[str]]:
    """Return a text with ``$1`` for ``%(name)s``, and the names in that order."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    return _PLACEHOLDER.sub(number, sql).replace("%%", "%").encode(), names
