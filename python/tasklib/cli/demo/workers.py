"""Worker processes of the demo: ordinary `tasklib worker` commands, one of which is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from tasklib import Config

from .._app import Refusal
from .tasks import QUEUE

CONCURRENCY = 4
# How long a silent worker keeps its tasks. 60 s by default; nobody wants to watch that.
LEASE_SECONDS = 2


class Fleet:
    """Some workers with their logs, ended when the block ends."""

    def __init__(self, config: Config, logs: Path) -> None:
        self.config = config
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
        with self._log_of(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "tasklib.cli", *words.split(), "--name", name],
                env={
                    **os.environ,
                    "TASKLIB_DATABASE_URL": self.config.database_url or "",
                    "TASKLIB_LOCK_TIMEOUT_SECONDS": str(LEASE_SECONDS),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return name

    def kill_one(self, held_by: Callable[[str], set[UUID]]) -> set[UUID]:
        """Kill the worker that has most tasks in its hands with -9, and start another.

        Args:
            held_by: Tells which tasks the worker of a name has in its hands.

        Returns:
            The tasks that it left behind.
        """
        while True:
            time.sleep(0.2)  # all of them shall have taken what they want
            self.check()
            name = max(self._running, key=lambda name: len(held_by(name)))
            # Asked before the kill: its keeper hands them back as soon as it is dead.
            if held := held_by(name):
                break
        process = self._running.pop(name)
        process.kill()
        process.wait()
        self.killed = (name, process.pid)
        self.start()
        return held

    def check(self) -> None:
        """Raise when a worker ended without being told to."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self._log_of(name).read_text(errors="replace")
                raise Refusal(f"{name} ended by itself:\n{log[-2000:]}")

    def _log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"
