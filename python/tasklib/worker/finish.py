"""Tell the database how attempts ended: what has gathered goes in one call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from tasklib import _worker_calls
from tasklib.errors import TaskLibError, WorkerNotRegistered
from tasklib.worker import outcome as ends
from tasklib.worker.context import Run
from tasklib.worker.link import Link
from tasklib.worker.outcome import Outcome

log = logging.getLogger("tasklib.worker")

BATCH = 1000
BATCH_BYTES = 8_000_000

Ended = tuple[Run, Outcome]


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
    """Sends outcomes until their fate is known."""

    def __init__(self, link: Link, stats: WorkerStats) -> None:
        self._link = link
        self._stats = stats
        self._ended: list[Ended] = []

    def __bool__(self) -> bool:
        """Whether there is something to send."""
        return bool(self._ended)

    def add(self, run: Run, outcome: Outcome) -> None:
        """Send this with the next call."""
        self._ended.append((run, outcome))

    async def flush(self) -> list[Run]:
        """Send what has gathered; return the runs that are over in the database."""
        batch = self._taken()
        by_worker: dict[object, list[Ended]] = {}
        for ended in batch:
            if not ended[1].answer:
                by_worker.setdefault(ended[0].worker_id, []).append(ended)
        try:
            for group in by_worker.values():
                statuses = await self._send(group)
                for (run, outcome), status in zip(group, statuses, strict=True):
                    self._note(run, outcome, status)
        except BaseException:
            # Leaving in the middle: nothing may be forgotten; what was stored answers `already`.
            self._ended[:0] = batch
            raise
        for run, outcome in batch:
            if outcome.answer:
                self._note(run, outcome, outcome.answer)
        return [run for run, _ in batch]

    def _taken(self) -> list[Ended]:
        size = 0
        for count, (_, outcome) in enumerate(self._ended):
            size += len(outcome.text)
            if count == BATCH or (size > BATCH_BYTES and count):
                batch, self._ended = self._ended[:count], self._ended[count:]
                return batch
        batch, self._ended = self._ended, []
        return batch

    async def _send(self, group: Sequence[Ended]) -> list[str]:
        """Send the outcomes of one registration, again and again until they are answered."""
        call = _worker_calls.finish(
            group[0][0].worker_id,
            [run.claimed.id for run, _ in group],
            [run.claimed.attempt for run, _ in group],
            [outcome.text for _, outcome in group],
        )
        try:
            return await self._link.persist(call)
        except WorkerNotRegistered:
            return ["stale"] * len(group)
        except (TaskLibError, psycopg.Error) as error:
            if len(group) > 1:
                # One row spoils the batch: each is sent alone, so that it fails alone.
                return [status for ended in group for status in await self._send([ended])]
            return [await self._send_instead(*group[0], error)]

    async def _send_instead(
        self, run: Run, outcome: Outcome, error: TaskLibError | psycopg.Error
    ) -> str:
        log.warning("an outcome was refused (%s)", type(error).__name__, extra=run.log)
        if outcome.reason == "refused":
            return "refused"
        message = f"InvalidResult: the database refused the outcome of the attempt: {error}"
        instead = ends.failed(message, "refused", retry=False)
        return (await self._send([(run, instead)]))[0]

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
