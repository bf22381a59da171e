"""What `tasklib top` shows: looks at the queue, and how fast it moves between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasklib import _admin_calls
from tasklib._admin_calls import Record
from tasklib.errors import PermissionDenied

from ._session import Session
from .queues import PRESENT

# Sessions report what they did only about once a second.
RATE_SECONDS = 10.0
# The durations of a day's tasks change slowly, and reading them takes long where there are many.
STATS_SECONDS = 5.0
STATS_SHARE = 0.05

COUNTED = ("enqueued", "finished", "failed_attempts")


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment.

    Attributes:
        rates: By what is counted, how many a second lately; None where that is not known (yet).
        queues: Depths, by queue.
        workers: Alive or silent, each with what it runs under ``tasks``.
        names: How the last day's tasks ended and how long they ran, by name.
    """

    rates: Mapping[str, float | None]
    queues: list[Record]
    workers: list[Record]
    names: list[Record]


@dataclass(slots=True)
class Watcher:
    """Looks again and again, and so often only that it is no burden."""

    session: Session
    _counted: deque[Record] = field(default_factory=deque[Record])
    _names: list[Record] = field(default_factory=list[Record])
    _names_due: float = 0.0
    _sees_text: bool = True

    def look(self) -> Look:
        """Read everything that is due to be read."""
        run = self.session.run
        self._counted.append(run(_admin_calls.counters()))
        workers = [row for row in run(_admin_calls.workers()) if row["status"] in PRESENT]
        running = self._running()
        for worker in workers:
            worker["tasks"] = [row for row in running if row["worker_id"] == worker["worker_id"]]
        return Look(self._rates(), run(_admin_calls.queues()), workers, self._durations())

    def _running(self) -> list[Record]:
        if self._sees_text:
            try:
                return self.session.run(_admin_calls.running(with_text=True))
            except PermissionDenied:
                self._sees_text = False
        return self.session.run(_admin_calls.running(with_text=False))

    def _rates(self) -> dict[str, float | None]:
        newest = self._counted[-1]
        while len(self._counted) > 2 and newest["clock"] - self._counted[1]["clock"] > RATE_SECONDS:
            self._counted.popleft()
        oldest = self._counted[0]
        passed = newest["clock"] - oldest["clock"]
        return {name: _rate(oldest[name], newest[name], passed) for name in COUNTED}

    def _durations(self) -> list[Record]:
        began = time.monotonic()
        if began >= self._names_due:
            self._names = self.session.run(_admin_calls.task_stats())
            ended = time.monotonic()
            self._names_due = ended + max(STATS_SECONDS, (ended - began) / STATS_SHARE)
        return self._names


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    # Somebody may have reset the counters in between.
    if before is None or after is None or seconds <= 0 or after < before:
        return None
    return float(after - before) / seconds
