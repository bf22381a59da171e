"""Threads for sync tasks, which a process can leave behind when it ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Threads:
    """As many threads as there is work at a time, each kept for the next.

    Daemon threads, unlike those of ``concurrent.futures``: a task that does not return must not
    keep a process alive that was told to leave.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._free = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job, which does not raise, in a thread."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
            else:
                self._count += 1
                name = f"{self._name}-{self._count}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end; one that runs a job ends after it."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            with self._lock:
                self._free += 1
