"""A private PostgreSQL server, durable as in production."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tasklib.embedded import Embedded

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Checkpoints come before a measurement, not in it.
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
}
PASSWORD = secrets.token_hex(8)

Connection = psycopg.Connection[tuple[object, ...]]


@dataclass
class Server:
    """The running server.

    Attributes:
        port: Its port on 127.0.0.1.
        admin: A session in the maintenance database.
        pid: The postmaster.
        folder: Where its data is.
    """

    port: int
    admin: Connection
    pid: int
    folder: Path

    def url(self, database: str) -> str:
        """Return what a program connects with."""
        return f"postgresql://bench:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, name: str, template: str = "template1") -> None:
        """Make a database, anew when it exists."""
        self.drop(name)
        statement = sql.SQL("create database {} template {}")
        self.admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop(self, name: str) -> None:
        """Remove a database with the sessions in it."""
        statement = sql.SQL("drop database if exists {} with (force)")
        self.admin.execute(statement.format(sql.Identifier(name)))

    def set(self, name: str, to: str) -> None:
        """Change a setting for everybody."""
        self.admin.execute(f"alter system set {name} = '{to}'")  # pyright: ignore
        self.admin.execute("select pg_reload_conf()")

    def setting(self, name: str) -> str:
        """Return a setting as the server shows it."""
        return str(value(self.admin, "select current_setting(%s)", name))


def value(connection: Connection, statement: str, *parameters: object) -> object:
    """Return the only value of a query."""
    row = connection.execute(statement, parameters).fetchone()  # pyright: ignore
    assert row is not None
    return row[0]


def free_port() -> int:
    """Return a port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(folder: Path, shared_buffers: str) -> Generator[Server]:
    """Start a server in a folder and remove it afterwards."""
    port = free_port()
    os.environ["TASKLIB_EMBEDDED_PORT"] = str(port)
    settings = {**SETTINGS, "shared_buffers": shared_buffers}
    with ExitStack() as stack:
        embedded = Embedded(folder, settings=settings, throw_away=True)
        url = stack.enter_context(embedded)
        admin = stack.enter_context(psycopg.connect(url, autocommit=True))
        admin.execute(f"create role bench superuser login password '{PASSWORD}'")
        lines = str(value(admin, "select pg_read_file('postmaster.pid')")).splitlines()
        yield Server(port, admin, int(lines[0]), embedded.home)
