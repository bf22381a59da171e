"""Threads for sync tasks, which a process can leave behind when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable


class Threads:
    """As many threads as there is work at a time, each kept for the next.

    Daemon threads, unlike those of ``concurrent.futures``: a task that does not return must not
    keep a process alive that was told to leave. What a job returns is called on the loop; what
    several threads return while the loop is busy wakes it once.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._loop = loop
        self._jobs: queue.SimpleQueue[Callable[[], Callable[[], None]] | None] = queue.SimpleQueue()
        self._returned: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._count = 0
        self._free = 0

    def submit(self, job: Callable[[], Callable[[], None]]) -> None:
        """Run a job, which does not raise, in a thread; then what it returned on the loop.

        Raises:
            RuntimeError: The system lets no thread start, and there is none yet.
        """
        with self._lock:
            if self._free <= 0:
                self._start_one()
            self._free -= 1
        self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end; one that runs a job ends after it, and nobody waits for it."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _start_one(self) -> None:
        name = f"{self._name}-{self._count + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            if not self._count:
                raise
            return  # the job waits for one of those that there are
        self._count += 1
        self._free += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            returned = job()
            with self._lock:
                self._free += 1
                self._returned.append(returned)
                is_first = len(self._returned) == 1
            if is_first:
                # The loop is closed when the worker left before its task.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._call_returned)

    def _call_returned(self) -> None:
        with self._lock:
            ready, self._returned = self._returned, deque()
        for call in ready:
            call()
