"""One run of a worker from registration to deregistration: claim, start, finish, and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

from tasklib import _worker_calls
from tasklib.errors import WorkerNotRegistered
from tasklib.worker import outcome as ends
from tasklib.worker.board import Board, tell_to_stop
from tasklib.worker.context import Run
from tasklib.worker.execute import Executor
from tasklib.worker.fetch import Fetcher, Settings, Unregistered
from tasklib.worker.finish import Finisher, WorkerStats
from tasklib.worker.heartbeat import Heartbeat
from tasklib.worker.link import Link, is_infrastructure
from tasklib.worker.listen import Listener
from tasklib.worker.outcome import Outcome
from tasklib.worker.pace import LOOKAHEAD_SECONDS, Durations
from tasklib.worker.transactional import Transactions

log = logging.getLogger("tasklib.worker")

START_SECONDS = 30.0
LEAVE_SECONDS = 5.0
UNWIND_SECONDS = 1.0
# What was claimed ahead and has not started after so long goes back, for others to run.
AHEAD_SECONDS = 1.0


class Shift:
    """The state of a running worker; made inside its event loop."""

    def __init__(self, settings: Settings, stats: WorkerStats) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._link = Link(settings.config, "tasklib worker")
        self._board = Board()
        self._executor = Executor(
            settings.registry, self._settle, self._free, Transactions(settings.config)
        )
        self._finisher = Finisher(self._link, stats)
        self._listener = Listener(settings.config, self._on_notification)
        self._heartbeat = Heartbeat(
            settings.config,
            self._board,
            cancel=lambda ids: self._on_loop(self._cancel, ids),
            lost=lambda worker_id: self._on_loop(self._lose, worker_id),
        )
        self._fetcher = Fetcher(settings, self._link, self._board, self._listener, stats)
        self._durations = Durations()
        self._ahead: deque[Run] = deque()
        self._busy: set[Run] = set()
        self._stopping = False
        self._abandoned = False
        self._main: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def work(self) -> None:
        """Do everything, and leave nothing behind."""
        self._main = asyncio.current_task()
        try:
            await self._fetcher.register(START_SECONDS)
            self._heartbeat.start()
            if not self._settings.drain:
                self._listener.start()
            while not self._is_over():
                self._wake.clear()
                if not self._finisher and not self._may_claim():
                    await self._rest()
                    continue
                if self._finisher:
                    await self._finish()
                if self._may_claim():
                    await self._claim()
        except asyncio.CancelledError:
            if not self._abandoned or self._main is None:
                raise
            # The first Pythons 3.11 let no timeout end in a task that counts as being cancelled.
            self._main.uncancel()
        finally:
            await self._leave()

    def stop(self) -> None:
        """Claim nothing more, give back what has not started, and let the rest end in time."""
        if self._stopping:
            return
        self._stopping = True
        running = sum(not run.is_settled for run in self._busy)
        log.info("stopping: %d tasks are running", running)
        self._give_back_ahead()
        self._later(self._settings.shutdown_timeout if running else 0, self._give_up)
        self._wake.set()

    # ---- claiming --------------------------------------------------------------------------------

    def _room(self) -> int:
        slots = self._settings.concurrency
        oldest = min((run.started for run in self._busy), default=self._loop.time())
        is_quick = self._loop.time() - oldest < LOOKAHEAD_SECONDS
        ahead = self._durations.ahead(slots) if is_quick else 0
        return slots + ahead - len(self._busy) - len(self._ahead)

    def _may_claim(self) -> bool:
        return not self._stopping and self._room() > 0 and self._fetcher.is_due

    async def _claim(self) -> None:
        try:
            runs = await self._fetcher.fetch(self._room())
        except Unregistered as error:
            self._lose(error.worker_id)
            return
        self._ahead.extend(runs)
        if self._stopping:  # while the answer was on its way
            self._give_back_ahead()
        self._start_ahead()
        await self._retire()

    def _start_ahead(self) -> None:
        while self._ahead and len(self._busy) < self._settings.concurrency:
            run = self._ahead.popleft()
            if run.stop_reason is not None:  # cancelled or lost before it began
                self._settle(run, ends.RELEASED)
                continue
            self._busy.add(run)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s starts", run.claimed.name, extra=run.log)
            self._executor.start(run)

    # ---- finishing -------------------------------------------------------------------------------

    def _settle(self, run: Run, outcome: Outcome) -> None:
        """Take the outcome of a run; the first one counts."""
        if run.is_settled:
            return
        run.is_settled = True
        if outcome.state != "released":
            self._durations.add(self._loop.time() - run.started)
        self._finisher.add(run, outcome)
        self._wake.set()

    def _free(self, run: Run) -> None:
        """A slot is free: nothing of the run is left here."""
        self._busy.discard(run)
        if not self._stopping:
            self._start_ahead()
        self._fetcher.look_now = True
        self._wake.set()

    async def _finish(self) -> None:
        for run in await self._finisher.flush():
            self._board.remove(run)
        # What these held, a concurrency key say, may have let another task go.
        self._fetcher.look_now = True

    async def _retire(self) -> None:
        for worker_id in self._board.retired():
            await self._deregister(worker_id)

    # ---- waiting and ending ----------------------------------------------------------------------

    async def _rest(self) -> None:
        """Wait until something happens, or until it is time to look."""
        timeout = None
        if not self._stopping and self._room() > 0:
            timeout = max(0.0, self._fetcher.next_look - self._loop.time())
        if self._ahead:
            if self._loop.time() - self._ahead[0].started > AHEAD_SECONDS:
                self._give_back_ahead()
                return
            timeout = AHEAD_SECONDS if timeout is None else min(timeout, AHEAD_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    def _is_over(self) -> bool:
        if self._finisher or self._ahead or any(not run.is_settled for run in self._busy):
            return False
        return self._stopping or self._fetcher.is_dry

    def _give_back_ahead(self) -> None:
        while self._ahead:
            self._settle(self._ahead.popleft(), ends.RELEASED)

    def _give_up(self) -> None:
        """The time to finish is over: what still runs goes to other workers."""
        left = [run for run in self._busy if not run.is_settled]
        if left:
            log.warning("giving up %d tasks that did not end in time", len(left))
        for run in tell_to_stop(left, "shutdown"):
            self._executor.interrupt(run)
        # Clean-up of async tasks may take a moment; their own outcome would be too late.
        self._later(UNWIND_SECONDS, lambda: [self._settle(run, ends.RELEASED) for run in left])
        self._later(UNWIND_SECONDS + LEAVE_SECONDS, self._abandon)

    def _abandon(self) -> None:
        """The database does not take the outcomes: the tasks are run again after the lease."""
        log.error("leaving without an answer from the database")
        self._abandoned = True
        if self._main is not None:
            self._main.cancel()

    def _later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._timers.append(self._loop.call_later(seconds, callback))

    async def _leave(self) -> None:
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        for run in tell_to_stop(self._busy, "shutdown"):
            self._executor.interrupt(run)
        await self._listener.stop()
        if self._finisher and not self._abandoned:
            # Leaving in a hurry: what has ended shall not be run again if that can be helped.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._finisher.flush()
        for worker_id in self._board.registrations():
            await self._deregister(worker_id)
        if self._heartbeat.ident is not None:
            await asyncio.to_thread(self._heartbeat.stop)
        self._executor.close()
        self._link.drop()

    async def _deregister(self, worker_id: UUID) -> None:
        self._board.forget(worker_id)
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._link.persist(_worker_calls.deregister_worker(worker_id), LEAVE_SECONDS)
        except WorkerNotRegistered:
            return
        except Exception as error:
            if not is_infrastructure(error):
                raise
            log.warning(
                "could not deregister: the lease will run out", extra={"worker_id": str(worker_id)}
            )

    # ---- from outside ----------------------------------------------------------------------------

    def _on_notification(self) -> None:
        self._fetcher.woken()
        self._wake.set()

    def _on_loop(self, callback: Callable[[Any], None], argument: Any) -> None:
        # The loop may be gone when the thread speaks last.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)

    def _cancel(self, task_ids: list[UUID]) -> None:
        for run in tell_to_stop(self._board.find(task_ids), "cancel"):
            log.info("%s is asked to stop", run.claimed.name, extra=run.log)
            self._executor.interrupt(run)

    def _lose(self, worker_id: UUID) -> None:
        if worker_id not in self._board.registrations():
            return
        runs = self._board.forget(worker_id)
        log.warning(
            "the registration ended; %d tasks are others' now",
            len(runs),
            extra={"worker_id": str(worker_id)},
        )
        for run in tell_to_stop(runs, "lost"):
            self._executor.interrupt(run)
        self._fetcher.look_now = True
        self._wake.set()
