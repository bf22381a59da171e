"""What every test can ask for: a server, and a migrated database of its own on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, Cursor
from psycopg.conninfo import make_conninfo
from pytest_postgresql import factories
from pytest_postgresql.factories import client
from pytest_postgresql.janitor import DatabaseJanitor

import pgbouncer
from pgbouncer import PgBouncer
from servers import Server, serve
from tasklib._migrate import migrate

# What the machine has configured for other programs must not reach a test.
for name in list(os.environ):
    if name in ("DATABASE_URL", "TASKLIB_DATABASE_URL", "TASKLIB_EMBEDDED") or (
        name.startswith("PG") and name.isupper()
    ):
        del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Through a pooler, leave out what needs a session of its own."""
    if pgbouncer.is_wanted():
        bound = [item for item in items if pgbouncer.needs_a_session(item.nodeid)]
        config.hook.pytest_deselected(items=bound)
        items[:] = [item for item in items if not pgbouncer.needs_a_session(item.nodeid)]


@pytest.fixture(scope="session")
def server() -> Generator[Server]:
    """A PostgreSQL server for this run."""
    with serve() as running:
        yield running


def _install(
    *, host: str, port: int, user: str, dbname: str, password: str | None, **_: object
) -> None:
    """Fill the template database, once for each process of the run."""
    migrate(make_conninfo(host=host, port=port, user=user, dbname=dbname, password=password))


class _Janitor(DatabaseJanitor):
    """One that lets sessions leave: a server that still finds one looks again only after 0.1 s."""

    @staticmethod
    def _terminate_connection(cur: Cursor[Any], dbname: str) -> None:
        DatabaseJanitor._terminate_connection(cur, dbname)
        end = time.monotonic() + 5
        there = "select from pg_stat_activity where datname = %s"
        while cur.execute(there, (dbname,)).fetchone() and time.monotonic() < end:
            time.sleep(0.001)


client.DatabaseJanitor = _Janitor  # pyright: ignore[reportPrivateImportUsage]

postgresql_noproc = factories.postgresql_noproc(depends_on="server", load=[_install])
# A clone of the template for each test: 0.05 to 0.2 s, and nothing that a test does to it (other
# migrations, roles' rights, a million rows, sessions that it left open) reaches the next one.
postgresql = factories.postgresql("postgresql_noproc")


@pytest.fixture(scope="session")
def pooler(server: Server) -> Generator[PgBouncer | None]:
    """The pooler between the tests and their server, when it was asked for."""
    if not pgbouncer.is_wanted():
        yield None
        return
    with PgBouncer(server.dsn) as running:
        yield running


@pytest.fixture
def database(server: Server, postgresql: Connection, pooler: PgBouncer | None) -> str:
    """The connection string of a fresh, migrated database."""
    direct = server.conninfo(postgresql.info.dbname)
    return pooler.reach(direct) if pooler else direct


@pytest.fixture
def make_conn(database: str) -> Generator[Callable[..., Connection[Any]]]:
    """Open more sessions on the test's database; they are closed at its end."""
    opened: list[Connection[Any]] = []
    usual = {"autocommit": True}
    if pgbouncer.is_wanted():
        usual |= {"prepare_threshold": None}

    def connect(**options: Any) -> Connection[Any]:
        opened.append(psycopg.connect(database, **(usual | options)))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def conn(make_conn: Callable[..., Connection[Any]]) -> Connection[Any]:
    """A session on the test's database, in autocommit mode."""
    return make_conn()
