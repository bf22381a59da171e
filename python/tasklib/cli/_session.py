"""One connection for one command: found as everywhere else, with errors that people understand."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import psycopg

from tasklib._calls import Call
from tasklib._store import open_store
from tasklib.config import Config, redacted
from tasklib.errors import DatabaseUnavailable, from_sqlstate

T = TypeVar("T")

CONNECT_SECONDS = 10


class Session:
    """Runs calls on one connection, each in a transaction of its own."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def run(self, call: Call[T]) -> T:
        """Run a call and read its answer; a database error becomes the class of its code."""
        with _translated():
            return call.read(self.connection.execute(call.sql, call.params).fetchall())


@dataclass(frozen=True)
class Settings:
    """What the options before the command say."""

    database_url: str | None = None

    @cached_property
    def config(self) -> Config:
        """The configuration: the option, else the environment, else the embedded server."""
        return Config(database_url=self.database_url) if self.database_url else Config()

    @cached_property
    def conninfo(self) -> str:
        """What psycopg connects with; starts the embedded server when that is the database."""
        with _translated():
            return open_store(self.config).conninfo

    @property
    def shown(self) -> str:
        """The database for people, without its password."""
        return redacted(self.conninfo) or "the database that PGHOST or PGSERVICE names"

    @contextmanager
    def session(self) -> Generator[Session]:
        """Connect for the block."""
        with connect(self.conninfo) as connection:
            yield Session(connection)


@contextmanager
def connect(conninfo: str) -> Generator[psycopg.Connection[Any]]:
    """Open a connection for the block, in autocommit mode and with a name that people find."""
    with _translated():
        connection = psycopg.connect(
            conninfo,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name=f"tasklib@{platform.node()}:{os.getpid()}",
            prepare_threshold=None,
        )
    with connection:
        yield connection


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        known = from_sqlstate(error.sqlstate, error.diag) if error.sqlstate else None
        raise known or DatabaseUnavailable(str(error).strip()) from error
    except psycopg.Error as error:
        if known := from_sqlstate(error.sqlstate, error.diag):
            raise known from error
        raise
