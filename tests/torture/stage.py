"""Where it happens: a private server, a pooler and proxies in front of it, and how they break."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import sabotage
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgbouncer import PgBouncer, program
from proxy import Proxy
from tasklib import _binaries
from tasklib._account import Account, for_data
from tasklib._migrate import migrate
from tasklib.embedded import Embedded

SETTINGS = {
    # What a killed process has written the kernel still has: nothing here could lose it. Recovery,
    # which happens all the time, would take ten times as long.
    "fsync": "off",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "200",
    # The code of each error, for what is looked for in the log.
    "log_line_prefix": "%m [%p] %e ",
    "deadlock_timeout": "200ms",
}
POOLER = """
server_login_retry = 1
server_idle_timeout = 60
default_pool_size = 30
"""
LINE = re.compile(r"^\S+ \S+ \S+ \[\d+\] (\w{5}) (\w+):  (.*)")
# Refusals of the queue; sessions, statements and connections that the faults ended.
EXPECTED = ("TL", "57", "08", "00")
UNKNOWN = "-"


class Stage:
    """The server with all that is in front of it; a context manager.

    Attributes:
        ways: Connection strings by how they lead to the server.
        proxies: The proxies, by name.
        pooler: PgBouncer; None where there is none.
        log: The server's log.
    """

    def __init__(self, folder: Path, seed: int, mutant: str | None, *, fsync: bool) -> None:
        self._folder = folder
        self._seed = seed
        self._mutant = mutant
        self._settings = {**SETTINGS, "fsync": "on" if fsync else "off"}
        self._stack = ExitStack()
        self.ways: dict[str, str] = {}
        self.proxies: dict[str, Proxy] = {}
        self.pooler: PgBouncer | None = None

    def __enter__(self) -> Stage:
        try:
            self._enter()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self) -> None:
        store = Embedded(self._folder / "store", settings=self._settings, throw_away=True)
        self.dsn = self._stack.enter_context(store)
        self._home = store.home
        self._data = store.home / "pg"
        self._account: Account = for_data(store.home)
        major = int((self._data / "PG_VERSION").read_text())
        self._binaries = self._account.usable(_binaries.find(major))
        self.log = store.home / "server.log"
        migrate(self.dsn)
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute((Path(__file__).with_name("audit.sql")).read_bytes())
            sabotage.apply_to_database(self._mutant, admin)
        parts = conninfo_to_dict(self.dsn)
        socket = Path(str(parts["host"])) / f".s.PGSQL.{parts['port']}"
        self.ways["direct"] = self.dsn
        for name in ("proxy", "other proxy"):
            proxy = self._stack.enter_context(Proxy(socket, seed=self._seed))
            self.proxies[name] = proxy
            self.ways[name] = make_conninfo(self.dsn, host="127.0.0.1", port=proxy.port)
        if program() is None:
            self.ways["pooler"] = self.dsn
        else:
            self.pooler = self._stack.enter_context(PgBouncer(self.dsn, more=POOLER))
            self.ways["pooler"] = self.pooler.conninfo(self.dsn)

    def url(self, way: str, role: str) -> str:
        """Return what a process of a role connects with."""
        return make_conninfo(self.ways[way], user=role)

    def connect(self, patience: float = 60.0) -> psycopg.Connection[Any]:
        """Open a session of our own; wait for a server that is starting."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return psycopg.connect(self.dsn, autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def restart(self) -> bool:
        """End the server as if the machine had lost its power, and start it again."""
        command = ["pg_ctl", "restart", "-m", "immediate", "-w", "-t", "60", "-l", self.log.name]
        program, *words = command
        code, said = self._account.run(
            [self._binaries.folder / program, *words], cwd=self._home, PGDATA=str(self._data)
        )
        if code:
            raise RuntimeError(f"the server does not come back: {said[-500:]}")
        return True

    def log_codes(self) -> tuple[Counter[str], list[str]]:
        """Return how often each SQLSTATE stands in the server's log, and lines nobody expects."""
        codes: Counter[str] = Counter()
        odd: list[str] = []
        for line in self.log.read_text(errors="replace").splitlines():
            found = LINE.match(line)
            if found is None or found[2] not in ("ERROR", "FATAL", "PANIC"):
                continue
            codes[found[1]] += 1
            if not found[1].startswith(EXPECTED) or found[2] == "PANIC":
                odd.append(line)
        return codes, odd
