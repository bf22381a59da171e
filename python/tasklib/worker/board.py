"""What the worker holds at the moment: shared between the loop and the heartbeat thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from uuid import UUID

from tasklib.models import Claimed
from tasklib.worker.context import Run, StopReason


class Board:
    """The registrations of this worker and the attempts under them.

    Usually there is one registration. There are more after a claim whose answer was lost: what it
    handed out is unknown here, so the old registration takes nothing new, lives until what is
    known under it has ended, and then gives back the rest by deregistering.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[UUID, int], Run] = {}
        self._registrations: list[UUID] = []
        self._current: UUID | None = None

    @property
    def current(self) -> UUID | None:
        """The registration that claims; None when there has to be a new one."""
        return self._current

    def register(self, worker_id: UUID) -> None:
        """Claim under this registration from now on."""
        with self._lock:
            self._registrations.append(worker_id)
            self._current = worker_id

    def registrations(self) -> list[UUID]:
        """Return every registration that has to be kept alive."""
        with self._lock:
            return list(self._registrations)

    def retired(self) -> list[UUID]:
        """Return old registrations under which nothing known runs any more."""
        with self._lock:
            busy: set[UUID | None] = {run.worker_id for run in self._runs.values()}
            busy.add(self._current)
            return [known for known in self._registrations if known not in busy]

    def forget(self, worker_id: UUID) -> list[Run]:
        """Drop a registration that ended; return the runs that it took along."""
        with self._lock:
            if worker_id in self._registrations:
                self._registrations.remove(worker_id)
            if worker_id == self._current:
                self._current = None
            return [run for run in self._runs.values() if run.worker_id == worker_id]

    def add(self, claimed: Claimed, worker_id: UUID) -> Run:
        """Note an attempt that was handed out."""
        run = Run(claimed, worker_id)
        with self._lock:
            self._runs[claimed.id, claimed.attempt] = run
        return run

    def remove(self, run: Run) -> None:
        """Note that an attempt is over, in the database and here."""
        with self._lock:
            self._runs.pop((run.claimed.id, run.claimed.attempt), None)

    def runs(self) -> list[Run]:
        """Return everything that was handed out and is not over."""
        with self._lock:
            return list(self._runs.values())

    def find(self, task_ids: Iterable[UUID]) -> list[Run]:
        """Return the runs of these tasks."""
        wanted = set(task_ids)
        return [run for run in self.runs() if run.claimed.id in wanted]


def tell_to_stop(runs: Iterable[Run], reason: StopReason) -> list[Run]:
    """Tell runs to stop; return those that were not told before."""
    told: list[Run] = []
    for run in runs:
        if run.stop_reason is None:
            run.stop_reason = reason
            told.append(run)
    return told
