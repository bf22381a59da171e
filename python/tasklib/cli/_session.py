"""One connection for one command, to the database that every other part would find, too."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from tasklib import _connections
from tasklib._calls import Call
from tasklib._connections import Connection
from tasklib.config import Config
from tasklib.errors import PermissionDenied

T = TypeVar("T")

PRODUCER = "tasklib_producer"
WORKER = "tasklib_worker"
OBSERVER = "tasklib_observer"
ADMIN = "tasklib_admin"


class Session:
    """Runs calls on one connection, each in a transaction of its own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def run(self, call: Call[T]) -> T:
        """Run a call and read its answer; a database error becomes the class of its code."""
        return _connections.run(self.connection, call)


@dataclass(frozen=True)
class Settings:
    """What the options before the command say."""

    database_url: str | None = None

    @cached_property
    def config(self) -> Config:
        """The configuration: the option, else the environment, else the embedded server."""
        return Config(database_url=self.database_url) if self.database_url else Config()

    @contextmanager
    def session(self, *roles: str) -> Generator[Session]:
        """Connect for the block, which does what any of these roles may."""
        with needing(*roles), connect(self.config) as session:
            yield session


@contextmanager
def needing(*roles: str) -> Generator[None]:
    """Name the roles that may do the block when the one at work may not."""
    try:
        yield
    except PermissionDenied as error:
        error.hint = error.hint or f"This needs the role {' or '.join(roles)}: have it granted."
        raise


@contextmanager
def connect(config: Config) -> Generator[Session]:
    """Open a connection for the block, under a name that people will find there."""
    name = f"tasklib@{platform.node()}:{os.getpid()}"
    with _connections.connect(config, name) as connection:
        yield Session(connection)
