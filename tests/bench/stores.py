"""Where the tasks of one measurement are: a fresh database, or a fresh Redis."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import install
import machine
import psycopg
from peers import Peer
from server import Connection, Server, free_port, value

NUMBERS = itertools.count(1)


class Store(Protocol):
    """What a measurement asks of a store.

    Attributes:
        url: What programs connect with.
        pids: The root of its processes.
    """

    url: str
    pids: list[int]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of its processes so far, without the sessions of the benchmark."""
        ...

    def is_finished(self) -> bool:
        """Tell whether no task waits or runs."""
        ...

    def settle(self) -> None:
        """Get what could disturb out of the way."""
        ...


class Database:
    """A copy of the database that the peer was installed in."""

    def __init__(self, server: Server, peer: Peer) -> None:
        self.server = server
        self.peer = peer
        self.name = f"run_{peer.name}_{next(NUMBERS)}"
        server.create(self.name, f"peer_{peer.name}")
        self.url = server.url(self.name)
        self.pids = [server.pid]
        self._ours: list[Connection] = []
        self._watcher = self.session(autocommit=True)

    def session(self, *, autocommit: bool = False) -> Connection:
        """Open a session whose CPU is not counted."""
        connection = psycopg.connect(self.url, autocommit=autocommit)
        self._ours.append(connection)
        return connection

    def add(self, connection: Connection, tasks: int, batch: int = 1000) -> None:
        """Add no-op tasks in batches, in the transaction of the connection."""
        for first in range(0, tasks, batch):
            connection.execute(self.peer.load, [min(batch, tasks - first)])  # pyright: ignore

    def cpu_seconds(self) -> float:
        """See `Store`."""
        ours = [connection.info.backend_pid for connection in self._ours]
        tree = machine.tree(self.server.pid)
        return machine.cpu_seconds(tree) - machine.cpu_seconds(ours)

    def is_finished(self) -> bool:
        """See `Store`."""
        return not value(self._watcher, self.peer.left)

    def settle(self) -> None:
        """See `Store`."""
        self._watcher.execute("checkpoint")

    def transactions(self) -> int:
        """Return how many transactions were made in this database, as the server counts them."""
        counted = value(
            self.server.admin,
            "select xact_commit + xact_rollback from pg_stat_database where datname = %s",
            self.name,
        )
        assert isinstance(counted, int)
        return counted

    def close(self) -> None:
        """Close the sessions and remove the database."""
        for connection in self._ours:
            connection.close()
        self.server.drop(self.name)


class Redis:
    """A private server with Redis's own defaults: snapshots now and then, nothing is synced."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self._process = subprocess.Popen(
            [install.redis_server(), "--port", str(port), "--bind", "127.0.0.1"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        self.url = f"redis://127.0.0.1:{port}/0"
        self.pids = [self._process.pid]
        time.sleep(0.5)

    def cpu_seconds(self) -> float:
        """See `Store`."""
        return machine.cpu_seconds(self.pids)

    def is_finished(self) -> bool:
        """Tell that nothing waits; what still runs is not to be had cheaply."""
        return True

    def settle(self) -> None:
        """See `Store`."""

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def store(server: Server, peer: Peer, folder: Path) -> Generator[Database | Redis]:
    """Give a fresh store."""
    made = Database(server, peer) if peer.load else Redis(folder)
    try:
        yield made
    finally:
        made.close()
