"""Worker processes under measurement: started, warm, watched through what their tasks write."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import machine
from peers import Peer
from programs.beat import EVERY
from server import Connection, Server, value

PATIENCE_SECONDS = 60.0
SETTLE_SECONDS = 1.5
PSS_EACH_SECONDS = 0.25


class Failure(Exception):
    """A measurement that came to nothing; the others go on."""


@dataclass
class Crew:
    """The workers of one peer on one database.

    Attributes:
        watcher: A session that looks; its backend is not counted as the server's CPU.
        peak_mib: The most memory of one worker with its helpers, seen so far.
    """

    peer: Peer
    server: Server
    database: str
    scratch: Path
    watcher: Connection
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list["subprocess.Popen[bytes]"])
    peak_mib: float = 0.0
    _looked: float = 0.0

    @property
    def url(self) -> str:
        """What its programs connect with."""
        return self.server.url(self.database)

    def start(self) -> None:
        """Start one more worker."""
        log = (self.scratch / "log").open("ab")
        environment = self.peer.environment(self.url, self.scratch)
        self.processes.append(
            subprocess.Popen(
                self.peer.command("work"),
                env=environment,
                cwd=self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
        log.close()

    def stop(self) -> None:
        """End all workers, at once if need be."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            pids = machine.tree(process.pid)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(_pidfd(pid), signal.SIGKILL)
                process.wait()

    def warm(self) -> None:
        """Run some tasks in every worker, then leave them idle for a moment."""
        sent, until = 0, time.monotonic() + PATIENCE_SECONDS
        while len({pid for pid, _ in self.lines()}) < len(self.processes) or sent < 300:
            self.peer.ask(self.url, "pings", 50, 0)
            sent += 50
            while len(self.lines()) < sent:
                self.look(until)
                time.sleep(0.01)
        (self.scratch / "lines").write_bytes(b"")
        time.sleep(SETTLE_SECONDS)

    def lines(self) -> list[tuple[int, float]]:
        """Return the process and the milliseconds until its start of each task with ``at``."""
        path = self.scratch / "lines"
        if not path.exists():
            return []
        words = [line.split() for line in path.read_bytes().splitlines()]
        return [(int(pid), int(nanoseconds) / 1e6) for pid, nanoseconds in words]

    def beats(self) -> int:
        """Return how many tasks without ``at`` ran, rounded down to hundreds in each worker."""
        path = self.scratch / "beats"
        return path.stat().st_size * EVERY if path.exists() else 0

    def look(self, until: float) -> None:
        """See to the memory and to whether all is well.

        Raises:
            Failure: It is not, or the time is up.
        """
        now = time.monotonic()
        if now > until:
            raise Failure(f"{self.peer.name}: out of time; {self.said()}")
        if now - self._looked < PSS_EACH_SECONDS:
            return
        self._looked = now
        for process in self.processes:
            if process.poll() is not None:
                raise Failure(f"{self.peer.name}: the worker ended; {self.said()}")
            self.peak_mib = max(self.peak_mib, machine.pss_mib(machine.tree(process.pid)))

    def said(self) -> str:
        """Return the end of the workers' log."""
        return (self.scratch / "log").read_text(errors="replace")[-1500:]

    def wait_done(self, tasks: int, until: float) -> None:
        """Return when all tasks are stored as finished."""
        while self.beats() < tasks - EVERY * len(self.processes):
            self.look(until)
            time.sleep(0.002)
        while value(self.watcher, self.peer.left):
            self.look(until)
            time.sleep(0.002)

    def worker_cpu(self) -> float:
        """Return the CPU seconds of all workers with their helpers."""
        return machine.cpu_seconds(pid for each in self.processes for pid in machine.tree(each.pid))

    def server_cpu(self, *others: Connection) -> float:
        """Return the CPU seconds of the server, but for the watcher and other sessions of ours."""
        return self.server.cpu_seconds([c.info.backend_pid for c in (self.watcher, *others)])


def _pidfd(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


@contextmanager
def crew(server: Server, peer: Peer, processes: int) -> Generator[Crew]:
    """Give warm, idle workers on a fresh database."""
    database = f"run_{peer.name}"
    server.create(database, f"peer_{peer.name}")
    with tempfile.TemporaryDirectory(prefix="tasklib-bench-") as scratch:
        team = Crew(peer, server, database, Path(scratch), server.connect(database))
        try:
            for _ in range(processes):
                team.start()
            if processes:
                team.warm()
            yield team
        finally:
            team.stop()
            team.watcher.close()
            server.drop(database)
