"""What the worker holds at the moment."""

from __future__ import annotations

from collections.abc import Iterable

from tasklib.models import Claimed
from tasklib.worker.context import Run, StopReason


class Board:
    """The registrations of this worker and the attempts under them.

    Usually there is one registration. There are more after a claim whose answer was lost: what it
    handed out is unknown here, so the old registration takes nothing new, lives until what is
    known under it has ended, and then gives back the rest by deregistering.

    Attributes:
        current: The registration that claims; None when there has to be a new one.
        registrations: Every registration that has to be kept alive.
        runs: Everything that was handed out and is not over.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self.registrations: list[str] = []
        self.runs: set[Run] = set()

    def register(self, worker_id: str) -> None:
        """Claim under this registration from now on."""
        self.registrations.append(worker_id)
        self.current = worker_id

    def retired(self) -> list[str]:
        """Return old registrations under which nothing known runs any more."""
        if self.registrations == [self.current]:
            return []
        busy = {self.current, *(run.worker_id for run in self.runs)}
        return [known for known in self.registrations if known not in busy]

    def forget(self, worker_id: str) -> list[Run]:
        """Drop a registration that ended; return the runs that it took along."""
        if worker_id in self.registrations:
            self.registrations.remove(worker_id)
        if worker_id == self.current:
            self.current = None
        return [run for run in self.runs if run.worker_id == worker_id]

    def add(self, claimed: Claimed, worker_id: str, now: float) -> Run:
        """Note an attempt that was handed out."""
        run = Run(claimed, worker_id, started=now)
        self.runs.add(run)
        return run

    def find(self, task_ids: Iterable[str]) -> list[Run]:
        """Return the runs of these tasks."""
        wanted = set(task_ids)
        return [run for run in self.runs if run.claimed.id in wanted]


def tell_to_stop(runs: Iterable[Run], reason: StopReason) -> list[Run]:
    """Tell runs to stop; return those that were not told before."""
    told: list[Run] = []
    for run in runs:
        if run.stop_reason is None:
            run.stop_reason = reason
            told.append(run)
    return told
