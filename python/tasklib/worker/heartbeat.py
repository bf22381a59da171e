"""The thread that keeps the worker's leases, whatever the event loop does.

It has a connection of its own, watches for cancel requests, stores progress and does housekeeping,
and it is the last part of a worker to stop.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from tasklib import _connections, _worker_calls
from tasklib._calls import Call
from tasklib._connections import Connection
from tasklib.config import Config
from tasklib.errors import LeaseLost, TaskLibError, WorkerNotRegistered
from tasklib.worker.board import Board
from tasklib.worker.context import Run
from tasklib.worker.link import is_infrastructure, pause_after

T = TypeVar("T")
log = logging.getLogger("tasklib.worker")

ROUND_SECONDS = 1.0


class Heartbeat(threading.Thread):
    """Renews every registration on the board each quarter of its lease.

    Args:
        config: The database, and the lease.
        board: What to keep alive.
        cancel: Called with tasks that were asked to stop; from this thread.
        lost: Called with a registration that is no more; from this thread.
    """

    def __init__(
        self,
        config: Config,
        board: Board,
        cancel: Callable[[list[UUID]], None],
        lost: Callable[[UUID], None],
    ) -> None:
        super().__init__(name="tasklib-heartbeat", daemon=True)
        self._config = config
        self._board = board
        self._cancel = cancel
        self._lost = lost
        self._connection: Connection | None = None
        self._renewed: dict[UUID, float] = {}
        self._end = threading.Event()
        self._failures = 0

    def stop(self) -> None:
        """End the thread; waits for its last call, but not for long."""
        self._end.set()
        self.join(timeout=5)

    def run(self) -> None:
        """Do a round each second until stopped."""
        pause = 0.0
        while not self._end.wait(pause):
            try:
                pause = self._round()
                self._failures = 0
            except Exception as error:
                pause = pause_after(self._failures)
                self._failures += 1
                self._drop()
                level = logging.WARNING if is_infrastructure(error) else logging.ERROR
                what = type(error).__name__
                log.log(level, "heartbeat failed (%s); next try in %.1f s", what, pause)
        self._drop()

    def _round(self) -> float:
        for worker_id in self._board.registrations():
            try:
                self._renew(worker_id)
            except WorkerNotRegistered:
                self._renewed.pop(worker_id, None)
                self._lost(worker_id)
        for run in self._board.runs():
            if run.progress is not None and not run.is_settled:
                self._store_progress(run)
        if not self._board.registrations():
            return ROUND_SECONDS
        ticked = self._call(_worker_calls.tick())
        if ticked is not None and ticked.more:
            return 0.0
        # Out of step with other workers: they take turns at housekeeping.
        return ROUND_SECONDS * random.uniform(0.75, 1.0)  # noqa: S311

    def _renew(self, worker_id: UUID) -> None:
        """Send a heartbeat when a quarter of the lease has passed; else look for cancellations."""
        now = time.monotonic()
        due = self._renewed.get(worker_id, -1e9) + self._config.lock_timeout_seconds / 4
        # Half a round early: the next look may come a whole round later.
        if now + ROUND_SECONDS / 2 >= due:
            asked = self._call(_worker_calls.heartbeat(worker_id))
            self._renewed[worker_id] = now
        elif self._board.runs():
            asked = self._call(_worker_calls.cancel_requests(worker_id))
        else:
            return
        if asked:
            self._cancel(asked)

    def _store_progress(self, run: Run) -> None:
        progress, run.progress = run.progress, None
        if progress is None:
            return
        claimed = run.claimed
        try:
            self._call(
                _worker_calls.set_progress(claimed.id, run.worker_id, claimed.attempt, *progress)
            )
        except LeaseLost:
            pass
        except TaskLibError as error:
            if is_infrastructure(error):
                run.progress = run.progress or progress
                raise
            log.warning("progress was refused (%s)", type(error).__name__, extra=run.log)

    def _call(self, call: Call[T]) -> T:
        if self._connection is None:
            self._connection = _connections.connect(self._config, "tasklib heartbeat")
        return _connections.run(self._connection, call)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None
