"""A primary and its standby: killed, promoted, cut off from each other, rebuilt."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from tasklib import _account, _binaries, _postmaster
from tasklib._binaries import Binaries

SECONDS = 30.0
SETTINGS = {
    "autovacuum_naptime": "5s",
    # Processes are killed here, not machines: what was written is in the kernel's hands.
    "fsync": "off",
    "hot_standby": "on",
    "listen_addresses": "",
    "log_min_messages": "log",
    "max_connections": "100",
    "max_wal_senders": "5",
    "shared_buffers": "32MB",
    "unix_socket_permissions": "0700",
    "wal_keep_size": "256MB",
    "wal_level": "replica",
    # pg_rewind asks for it.
    "wal_log_hints": "on",
    # A standby that was promoted, or lost its primary, asks again soon.
    "wal_retrieve_retry_interval": "200ms",
}


def wait_until(is_so: Callable[[], object], what: str, seconds: float = SECONDS) -> float:
    """Look again and again until something is so; return how long that took."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() < start + seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start


class Node:
    """One server: a primary, or a standby of another node."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"node{number}"
        self.port = 5500 + number
        self.folder = folder
        self.data = folder / self.name
        self.log = folder / f"{self.name}.log"
        self._account = _account.for_data(folder)
        self._binaries = self._account.usable(_programs())

    @property
    def socket(self) -> Path:
        """Its socket, for the proxy."""
        return self.folder / f".s.PGSQL.{self.port}"

    def conninfo(self, **more: Any) -> str:
        """Return how to reach it directly."""
        known = {"host": str(self.folder), "port": self.port, "user": "tasklib"}
        return make_conninfo("", **known | {"dbname": "tasklib"} | more)

    def ask(self, question: str, *params: object) -> Any:
        """Run a statement in a session of its own; return the first value of its only row."""
        with psycopg.connect(self.conninfo(), autocommit=True) as conn:
            cursor = conn.execute(question, params or None)
            if cursor.description is None:
                return None
            (row,) = cursor.fetchall()
            return row[0]

    # ---- life and death --------------------------------------------------------------------------

    def create(self) -> None:
        """Make a new, empty server."""
        self._run("initdb", "-D", self.data, "-U", "tasklib", "-A", "trust", "-E", "UTF8", "-N")
        self._run(
            *("postgres", "--single", "-D", self.data, "postgres"),
            text="create database tasklib;\n",
        )

    def copy(self, primary: Node) -> None:
        """Become a standby of another node, from a copy of all of it."""
        shutil.rmtree(self.data, ignore_errors=True)
        self._run(
            *("pg_basebackup", "-D", self.data, "-X", "stream", "-c", "fast", "--no-sync", "-R"),
            *("-d", primary.conninfo(application_name=self.name)),
        )

    def rewind(self, primary: Node) -> None:
        """Become a standby of the node that was promoted meanwhile, from what is here."""
        # Until the first checkpoint, its control file names the old timeline.
        primary.ask("checkpoint")
        self._run(
            *("pg_rewind", "-D", self.data, "--no-sync"),
            *("--source-server", primary.conninfo()),
        )
        auto = self.data / "postgresql.auto.conf"
        # It came with the other node's own settings.
        conninfo = primary.conninfo(application_name=self.name).replace("'", "''")
        auto.write_text(f"primary_conninfo = '{conninfo}'\n")
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        for path in (auto, signal_file):
            self._account.own(path)

    def start(self) -> None:
        """Start it, and wait until it takes sessions."""
        settings = SETTINGS | {"unix_socket_directories": str(self.folder), "port": str(self.port)}
        words = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run("pg_ctl", "start", "-w", "-D", self.data, "-l", self.log, "-o", words)

    def stop(self) -> None:
        """Shut it down in order; harmless when it does not run."""
        if self.is_running:
            self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", self.data)

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        found = _postmaster.read(self.data)
        return found is not None and _postmaster.is_running(found, self.data)

    def kill(self) -> None:
        """End all of its processes at the same moment, as a machine does that loses its power."""
        found = _postmaster.read(self.data)
        if found is None or not _postmaster.is_running(found, self.data):
            return
        victims = [found.pid, *_children(found.pid)]
        # First stopped: none shall see that another one has died.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        wait_until(lambda: not any(map(_is_there, victims)), "the processes are gone")
        # Where nobody reaps, the dead would pass for alive.
        for left in (self.data / "postmaster.pid", self.socket, Path(f"{self.socket}.lock")):
            left.unlink(missing_ok=True)

    # ---- replication -----------------------------------------------------------------------------

    def promote(self) -> None:
        """Make it the primary, and wait until it takes writes."""
        self.ask("select pg_promote(true, 30)")
        wait_until(lambda: not self.ask("select pg_is_in_recovery()"), f"{self.name} is promoted")

    def wait_for_changes(self) -> None:
        """Let sessions to come see the settings that were changed."""
        self.ask("select pg_reload_conf()")

    def replicate(self, standby: Node, *, synchronous: bool) -> None:
        """Wait until a standby follows; with ``synchronous``, commits wait for it from now on."""
        names = standby.name if synchronous else ""
        self.ask(f"alter system set synchronous_standby_names = '{names}'")
        self.wait_for_changes()
        state = "sync" if synchronous else "async"
        wait_until(
            lambda: self.ask(
                "select count(*) from pg_stat_replication where application_name = %s "
                "and state = 'streaming' and sync_state = %s",
                standby.name,
                state,
            ),
            f"{standby.name} follows {self.name}",
        )

    def catch_up(self, standby: Node) -> None:
        """Wait until everything that has been committed is on the standby."""
        written = self.ask("select pg_current_wal_flush_lsn()::text")
        wait_until(
            lambda: standby.ask("select pg_last_wal_replay_lsn() >= %s::pg_lsn", written),
            f"{standby.name} catches up",
        )

    def part(self) -> None:
        """Stop following: what the primary commits from now on does not arrive here."""
        self.ask("alter system set primary_conninfo = ''")
        self.wait_for_changes()
        wait_until(
            lambda: not self.ask("select count(*) from pg_stat_wal_receiver where pid is not null"),
            f"{self.name} receives nothing",
        )

    def _run(self, program: str, *words: object, text: str = "") -> None:
        command = [self._binaries.folder / program, *map(str, words)]
        code, said = self._account.run(command, cwd=self.folder, text=text)
        assert code == 0, f"{program}: {said}\n{self._tail()}"

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


class Pair:
    """Two nodes, of which one is the primary; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tasklib-failover-"))
        _account.for_data(self.folder).own(self.folder)
        self.nodes = [Node(self.folder, number) for number in (1, 2)]
        self.primary, self.standby = self.nodes

    def __enter__(self) -> Self:
        self.primary.create()
        self.primary.start()
        self.standby.copy(self.primary)
        self.standby.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def promote(self) -> None:
        """Let the standby take the place of the primary, which is dead."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        # It may have come over from the old primary, and would wait for somebody who is dead.
        self.primary.ask("alter system reset synchronous_standby_names")
        self.primary.wait_for_changes()

    def take_back(self, *, rewind: bool) -> None:
        """Make a standby of the node that was the primary before."""
        old = self.standby
        if rewind:
            # It has to end in order first, and may have to recover for that.
            if not old.is_running:
                old.start()
            old.stop()
            old.rewind(self.primary)
        else:
            old.kill()
            old.copy(self.primary)
        old.start()


def _programs() -> Binaries:
    """Return the server's programs; those of another version where some are missing (npm's)."""
    for folder in (_binaries.find().folder, *_binaries.candidates()):
        if all((folder / name).exists() for name in ("pg_basebackup", "pg_rewind")):
            found = _binaries.inspect(folder)
            if found is not None:
                return found
    raise AssertionError("no server with pg_basebackup and pg_rewind is on this machine")


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
