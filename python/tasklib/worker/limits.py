"""When a worker makes room for a fresh one: after so many attempts, or with so much memory."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

log = logging.getLogger("tasklib.worker")

LOOK_SECONDS = 0.1
_STATM = Path("/proc/self/statm")


class Limits:
    """What ends a worker between tasks, without anybody having asked it to stop.

    Args:
        max_tasks: Attempts that it may take; None takes any number.
        max_memory: Bytes that it may occupy when it takes more; None looks at nothing. It takes one
            in any case: else one that is too large from its start would be replaced for ever, and
            nothing would run.

    Attributes:
        reached: Which limit it is that was reached, in words; None while none is.
    """

    def __init__(self, max_tasks: int | None, max_memory: int | None) -> None:
        self.reached: str | None = None
        self._max_tasks = max_tasks
        self._max_memory = max_memory
        self._next_look = 0.0

    def left(self, claimed: int) -> int:
        """Return how many attempts may still be taken, after so many."""
        if self.reached is not None:
            return 0
        return sys.maxsize if self._max_tasks is None else self._max_tasks - claimed

    def look(self, claimed: int) -> None:
        """See whether a limit is reached; cheap enough for every turn of the worker."""
        if self.reached is not None:
            return
        if self._max_tasks is not None and claimed >= self._max_tasks:
            self.reach(f"{claimed} attempts")
        elif self._max_memory is not None and claimed and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            occupied = resident_bytes()
            if occupied > self._max_memory:
                self.reach(f"{occupied / 2**20:.0f} MiB of memory")

    def reach(self, what: str) -> None:
        """Take nothing more, for this reason."""
        if self.reached is None:
            self.reached = what
            log.info("making room for a fresh worker after %s", what)


def resident_bytes() -> int:
    """Return how much memory this process occupies; where that is not told, the most so far."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
