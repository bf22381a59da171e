"""Worker processes under measurement: started, warm, watched through what their tasks write."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import machine
import stores
from peers import Peer
from programs.beat import EVERY
from server import Server

StoreT = TypeVar("StoreT", bound=stores.Store)

PATIENCE_SECONDS = 90.0
SETTLE_SECONDS = 1.5
PSS_EACH_SECONDS = 0.25
WARM_TASKS = 200


class Failure(Exception):
    """A measurement that came to nothing; the others go on."""


@dataclass
class Crew(Generic[StoreT]):
    """The workers of one peer on one store.

    Attributes:
        peak_mib: The most memory of one worker with its helpers, seen so far.
    """

    peer: Peer
    store: StoreT
    scratch: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)  # pyright: ignore
    peak_mib: float = 0.0
    _looked: float = 0.0

    def start(self) -> None:
        """Start one more worker."""
        with (self.scratch / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    self.peer.command("work"),
                    env=self.peer.environment(self.store.url, self.scratch),
                    cwd=self.scratch,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """End all workers, by force if need be."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            # Each was started as the leader of its own group, which helpers are in.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start_warm(self, count: int, settle: float) -> None:
        """Start workers, one after the other, and leave them idle when each has run some tasks."""
        for _ in range(count):
            self.start()
            self._warm()
        (self.scratch / "lines").write_bytes(b"")
        time.sleep(settle)

    def _warm(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        sent = len(self.lines())
        while len({pid for pid, _ in self.lines()}) < len(self.processes):
            self.peer.ask(self.store.url, "pings", WARM_TASKS, 0)
            sent += WARM_TASKS
            self.look(until)
            while len(self.lines()) < sent:
                self.look(until)
                time.sleep(0.01)

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
        """See to the memory, now and then, and to whether all is well.

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
        self.weigh()

    def weigh(self) -> None:
        """See to the memory."""
        for process in self.processes:
            self.peak_mib = max(self.peak_mib, machine.pss_mib(machine.tree(process.pid)))

    def said(self) -> str:
        """Return the end of the workers' log."""
        return (self.scratch / "log").read_text(errors="replace")[-1500:]

    def wait_done(self, tasks: int, until: float) -> None:
        """Return when all tasks are stored as finished."""
        while self.beats() < tasks - EVERY * len(self.processes):
            self.look(until)
            time.sleep(0.002)
        while not self.store.is_finished():
            self.look(until)
            time.sleep(0.002)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all workers with their helpers."""
        return machine.cpu_seconds(pid for each in self.processes for pid in machine.tree(each.pid))


class Stopwatch:
    """Time, CPU and the others' share of the machine, from its making on."""

    def __init__(self, crew: Crew[StoreT]) -> None:
        self._crew = crew
        self._others = machine.Others(crew.store.pids)
        self._worker = crew.cpu_seconds()
        self._server = crew.store.cpu_seconds()
        self.started = time.monotonic()

    def figures(self, tasks: int) -> dict[str, float]:
        """Return the rate and what a task cost until now."""
        seconds = time.monotonic() - self.started
        server = (self._crew.store.cpu_seconds() - self._server) / tasks * 1e6
        worker = (self._crew.cpu_seconds() - self._worker) / tasks * 1e6
        return {
            "rate": tasks / seconds,
            "server_us": server,
            "worker_us": worker,
            "cpu_us": server + worker,
            "other_cores": self._others.cores(),
        }


@contextmanager
def crew(
    server: Server, peer: Peer, processes: int, settle: float = SETTLE_SECONDS
) -> Generator[Crew[stores.Database | stores.Redis]]:
    """Give warm, idle workers on a fresh store."""
    with tempfile.TemporaryDirectory(prefix="tasklib-bench-") as scratch:
        folder = Path(scratch)
        with stores.store(server, peer, folder) as store:
            team = Crew(peer, store, folder)
            try:
                team.start_warm(processes, settle)
                yield team
            finally:
                team.stop()


@contextmanager
def database_crew(
    server: Server, peer: Peer, processes: int, settle: float = SETTLE_SECONDS
) -> Generator[Crew[stores.Database]]:
    """Give the same for a peer whose store is a database."""
    with crew(server, peer, processes, settle) as team:
        assert isinstance(team.store, stores.Database)
        yield team  # pyright: ignore
