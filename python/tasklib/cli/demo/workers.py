"""Worker processes of the demo: ordinary `tasklib worker` commands, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from uuid import UUID

from .tasks import QUEUE

CONCURRENCY = 4
# How long a silent worker keeps its tasks. 60 s by default; nobody wants to watch that.
LEASE_SECONDS = 2


class Fleet:
    """Some workers with their logs, ended when the block ends."""

    def __init__(self, url: str, logs: Path) -> None:
        self.url = url
        self.logs = logs
        self.killed: tuple[str, int] | None = None
        self._numbers = count(1)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self) -> str:
        """Start one more worker, and return its name."""
        name = f"demo-{os.getpid()}-{next(self._numbers)}"
        words = f"worker tasklib.cli.demo.tasks --queues {QUEUE} --concurrency {CONCURRENCY}"
        with self._log(name) as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "tasklib.cli", *words.split(), "--name", name],
                env={
                    **os.environ,
                    "TASKLIB_DATABASE_URL": self.url,
                    "TASKLIB_LOCK_TIMEOUT_SECONDS": str(LEASE_SECONDS),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return name

    def kill_one_at_work(self, held_by: Callable[[str], set[UUID]]) -> set[UUID]:
        """Kill the first worker with -9 while it holds tasks, and start another in its place.

        It is stopped first: what it holds then, it holds when it dies.

        Args:
            held_by: Tells which tasks the worker of a name has in its hands.

        Returns:
            The tasks that died with it; none when it had nothing to do, and then it lives on.
        """
        name, process = next(iter(self._running.items()))
        process.send_signal(signal.SIGSTOP)
        held = held_by(name)
        if not held:
            process.send_signal(signal.SIGCONT)
            return held
        process.kill()
        process.wait()
        del self._running[name]
        self.killed = (name, process.pid)
        self.start()
        return held

    def dead(self) -> list[str]:
        """Return the names of workers that ended without being told to."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def tail(self, name: str) -> str:
        """Return the end of a worker's log."""
        return (self.logs / f"{name}.log").read_text(errors="replace")[-2000:]

    def _log(self, name: str) -> IO[bytes]:
        return (self.logs / f"{name}.log").open("wb")
