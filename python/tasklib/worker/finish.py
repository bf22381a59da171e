"""Tell the database how attempts ended: what has gathered goes in one call."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from tasklib import _worker_calls
from tasklib._worker_calls import Ended
from tasklib.errors import TaskLibError, WorkerNotRegistered
from tasklib.worker import outcome as ends
from tasklib.worker.board import Board
from tasklib.worker.context import Run
from tasklib.worker.link import Link
from tasklib.worker.outcome import Outcome

log = logging.getLogger("tasklib.worker")

BATCH = 1000
BATCH_BYTES = 8_000_000

Batch = list[tuple[Run, Outcome]]


@dataclass(slots=True)
class WorkerStats:
    """What a worker did since it started.

    Attributes:
        claimed: Attempts handed out to it.
        completed: Attempts that ended well.
        failed: Attempts that failed, whether or not they are tried again.
        cancelled: Tasks that ended as cancelled.
        snoozed: Attempts put off by the task itself.
        released: Attempts given back unfinished.
        lost: Attempts that somebody else had taken over or ended.
    """

    claimed: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    snoozed: int = 0
    released: int = 0
    lost: int = 0


class Finisher:
    """Keeps outcomes until their fate is known."""

    def __init__(self, link: Link, board: Board, stats: WorkerStats) -> None:
        self._link = link
        self._board = board
        self._stats = stats
        self._ended: deque[tuple[Run, Outcome]] = deque()

    def __len__(self) -> int:
        """Return how many outcomes are to be sent."""
        return len(self._ended)

    def add(self, run: Run, outcome: Outcome) -> None:
        """Send this with the next call, unless the database knows it already."""
        if outcome.answer:
            self.note([(run, outcome)], [outcome.answer])
        else:
            self._ended.append((run, outcome))

    def take(self) -> Batch:
        """Return what goes in one call: outcomes of one registration, not too many, not too large.

        Whoever takes it has to `note` it or to `put_back` it.
        """
        batch: Batch = []
        size = 0
        while self._ended and len(batch) < BATCH:
            run, outcome = self._ended[0]
            size += len(outcome.text)
            if batch and (run.worker_id != batch[0][0].worker_id or size > BATCH_BYTES):
                break
            batch.append(self._ended.popleft())
        return batch

    def put_back(self, batch: Batch) -> None:
        """Send a batch again: its fate is unknown, and what was stored answers ``already``."""
        self._ended.extendleft(reversed(batch))

    async def send(self, batch: Batch) -> None:
        """Send a batch by itself, again and again until it is answered."""
        try:
            statuses = await self._answers(batch)
        except BaseException:
            self.put_back(batch)
            raise
        self.note(batch, statuses)

    async def flush(self) -> None:
        """Send everything."""
        while self._ended:
            await self.send(self.take())

    def note(self, batch: Batch, statuses: Sequence[str]) -> None:
        """The runs of a batch are over in the database; count and log how."""
        is_verbose = log.isEnabledFor(logging.DEBUG)
        runs, stats = self._board.runs, self._stats
        for (run, outcome), status in zip(batch, statuses, strict=True):
            runs.discard(run)
            if status == "ok" and outcome.state == "completed" and not is_verbose:
                stats.completed += 1
            else:
                self._note(run, outcome, status)

    async def _answers(self, batch: Batch) -> Sequence[str]:
        try:
            return await self._link.persist(_worker_calls.finish(as_ended(batch)))
        except WorkerNotRegistered:
            return ["stale"] * len(batch)
        except (TaskLibError, psycopg.Error) as error:
            if len(batch) > 1:
                # One row spoils the batch: each is sent alone, so that it fails alone.
                return [status for one in batch for status in await self._answers([one])]
            return [await self._send_instead(*batch[0], error)]

    async def _send_instead(
        self, run: Run, outcome: Outcome, error: TaskLibError | psycopg.Error
    ) -> str:
        log.warning("an outcome was refused (%s)", type(error).__name__, extra=run.log)
        if outcome.reason == "refused":
            return "refused"
        message = f"InvalidResult: the database refused the outcome of the attempt: {error}"
        instead = ends.failed(message, "refused", retry=False)
        return (await self._answers([(run, instead)]))[0]

    def _note(self, run: Run, outcome: Outcome, status: str) -> None:
        if status not in ("ok", "already"):
            self._stats.lost += 1
            level = logging.ERROR if status == "refused" else logging.WARNING
            log.log(level, "the outcome %s came too late: %s", outcome.state, status, extra=run.log)
            return
        setattr(self._stats, outcome.state, getattr(self._stats, outcome.state) + 1)
        if outcome.state == "failed":
            log.warning(
                "attempt %s of %s failed: %s",
                run.claimed.attempt,
                run.claimed.name,
                outcome.reason,
                extra=run.log,
            )
            return
        level = logging.DEBUG if outcome.state == "completed" else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "%s %s", run.claimed.name, outcome.state, extra=run.log)


def as_ended(batch: Batch) -> Ended:
    """Return a batch as the database takes it."""
    return Ended(
        batch[0][0].worker_id,
        [run.claimed.id for run, _ in batch],
        [run.claimed.attempt for run, _ in batch],
        [outcome.text for _, outcome in batch],
    )
