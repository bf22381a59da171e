"""One run of a worker from registration to deregistration: claim, start, finish, and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable

from tasklib import _worker_calls
from tasklib.errors import WorkerNotRegistered
from tasklib.worker import outcome as ends
from tasklib.worker.board import Board, tell_to_stop
from tasklib.worker.context import Run
from tasklib.worker.execute import Executor
from tasklib.worker.fetch import Delivery, Fetcher, Settings, Unheard, Unregistered
from tasklib.worker.finish import Finisher, WorkerStats
from tasklib.worker.keeper import Keeper
from tasklib.worker.limits import Limits
from tasklib.worker.link import Link, is_infrastructure
from tasklib.worker.outcome import Outcome
from tasklib.worker.pace import Load
from tasklib.worker.transactional import Transactions

log = logging.getLogger("tasklib.worker")

START_SECONDS = 30.0
LEAVE_SECONDS = 5.0
UNWIND_SECONDS = 1.0
PULSE_SECONDS = 1.0
# What was claimed ahead and has not started after so long goes back, for others to run.
AHEAD_SECONDS = 1.0
# Outcomes wait for no longer than this for more of them, and only while more are about to come.
GATHER_SECONDS = 0.05
# A thread that has not come back so long after the timeout of its task will not soon.
STUCK_SECONDS = 5.0
# What makes a call worth its while when more could be sent or claimed a little later.
ENOUGH = 150
# Tasks that end at once must not keep the loop from everything else.
STARTS_AT_ONCE = 50


class Shift:
    """The state of a running worker; made inside its event loop."""

    def __init__(self, settings: Settings, stats: WorkerStats) -> None:
        self.limits = Limits(settings.max_tasks, settings.max_memory)
        self._settings = settings
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._link = Link(
            settings.config,
            "tasklib worker",
            None if settings.drain else self._notified,
            self._handed_over,
        )
        self._board = Board()
        self._load = Load()
        self._keeper = Keeper(
            settings.config, settings.concurrency, cancel=self._cancel, lost=self._lose
        )
        self._executor = Executor(
            settings.registry,
            self._settle,
            self._free,
            Transactions(settings.config),
            kill_grace=settings.config.kill_grace_seconds,
            on_spawn=self._keeper.group_started,
            on_exit=self._keeper.group_ended,
        )
        self._finisher = Finisher(self._link, self._board, stats)
        self._fetcher = Fetcher(
            settings, self._link, self._board, self._finisher, self._keeper, self._load, stats
        )
        self._ahead: deque[Run] = deque()
        self._busy: set[Run] = set()
        self._incoming = 0
        self._is_starting = False
        self._settled_at = 0.0
        self._stopping = False
        self._abandoned = False
        self._main: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._pulse: asyncio.TimerHandle | None = None

    @property
    def registration(self) -> str | None:
        """The worker id under which it claims; None when there has to be a new one."""
        return self._board.current

    async def work(self) -> None:
        """Do everything, and leave nothing behind."""
        self._main = asyncio.current_task()
        try:
            await self._fetcher.check_schema(START_SECONDS)
            await self._fetcher.register(START_SECONDS)
            await self._keeper.start()
            if self._settings.on_start is not None:
                self._settings.on_start()
            await self._listen()
            while not self._is_over():
                self._wake.clear()
                room = self._fetcher.asked or self._room_now()
                if room or self._must_finish():
                    await self._exchange(room)
                else:
                    await self._rest()
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

    async def _listen(self) -> None:
        try:
            await self._link.listen()
        except Exception as error:
            if not is_infrastructure(error):
                raise
            await self._link.rest(error)

    # ---- claiming and finishing ------------------------------------------------------------------

    def _may_claim(self) -> bool:
        return not self._stopping and self._fetcher.is_due

    def _room_now(self) -> int:
        return self._room_to_claim() if self._may_claim() else 0

    def _room_to_claim(self) -> int:
        """Return how many tasks to claim; none while enough wait here, so that calls are few."""
        target = self._settings.concurrency + self._ahead_allowed()
        room = target - self._held
        if (self._ahead or self._incoming) and room < min(target // 2, ENOUGH):
            return 0
        return max(0, min(room, self.limits.left(self._stats.claimed)))

    @property
    def _held(self) -> int:
        """How many tasks are here, or on their way."""
        return len(self._busy) + len(self._ahead) + self._incoming

    def _ahead_allowed(self) -> int:
        now = self._loop.time()
        oldest = min((run.started for run in self._busy), default=now)
        return self._load.ahead(self._settings.concurrency, now - oldest)

    def _must_finish(self) -> bool:
        """Tell whether to send outcomes now: more of them are coming while others wait here."""
        count, ahead = len(self._finisher), len(self._ahead) + self._incoming
        if not count or not ahead:
            return count > 0 and (self._stopping or self._fetcher.gathers_for == 0)
        is_late = self._loop.time() - self._settled_at > GATHER_SECONDS
        return is_late or count >= min(ahead, ENOUGH)

    async def _exchange(self, room: int) -> None:
        """Send what has ended, and claim, in one call when both are to be done."""
        batch = [] if self._fetcher.asked else self._finisher.take()
        if not room or (batch and batch[0][0].worker_id != self._board.current):
            await self._finisher.send(batch)
            # What these held, a concurrency key say, may have let another task go.
            self._fetcher.look_again()
        else:
            try:
                delivery = await self._fetcher.fetch(room, batch)
            except Unregistered as error:
                if error.worker_id in self._board.registrations:
                    self._keeper.replace()  # which should have known before: it may be stopped
                self._lose(error.worker_id)
                return
            if delivery is not None:
                self._incoming += len(delivery)
                if self._finisher:  # the database shall not wait for that meanwhile
                    self._loop.call_soon(self._receive, delivery)
                else:
                    self._receive(delivery)
                    await asyncio.sleep(0)  # what has just been started goes first
        if len(self._board.registrations) > 1:
            await self._retire()

    def _receive(self, delivery: Delivery) -> None:
        self._incoming -= len(delivery)
        runs = self._fetcher.receive(delivery)
        if delivery.worker_id not in self._board.registrations:  # it ended meanwhile
            tell_to_stop(runs, "lost")
        self._ahead.extend(runs)
        if self._stopping:  # while the answer was on its way
            self._give_back_ahead()
        self._start_ahead()
        if self._pulse is None and self._board.runs:
            self._beat()
        if not self._wake.is_set():
            self._wake.set()

    def _start_ahead(self) -> None:
        """Fill the slots. A run that ends at once frees its slot within its own start."""
        if self._is_starting:
            return
        self._is_starting = True
        slots, busy, ahead = self._settings.concurrency, self._busy, self._ahead
        begun = self._keeper.begun
        is_verbose = log.isEnabledFor(logging.DEBUG)
        for _ in range(STARTS_AT_ONCE):
            if not ahead or len(busy) >= slots:
                break
            run = ahead.popleft()
            if run.stop_reason is not None:  # cancelled or lost before it began
                self._settle(run, ends.RELEASED)
                continue
            busy.add(run)
            begun.add(run)
            if is_verbose:
                log.debug("%s starts", run.claimed.name, extra=run.log)
            self._executor.start(run)
        else:
            self._loop.call_soon(self._start_ahead)
        self._is_starting = False

    def _settle(self, run: Run, outcome: Outcome) -> None:
        """Take the outcome of a run; the first one counts."""
        if run.is_settled:
            return
        run.is_settled = True
        now = self._loop.time()
        if outcome.state != "released":
            self._load.ended(now - run.started)
        if run.stop_reason == "timeout" and run in self._busy:
            self._loop.call_later(STUCK_SECONDS, self._note_stuck, run)
        if not self._finisher:
            self._settled_at = now
        self._finisher.add(run, outcome)
        if not self._wake.is_set():
            self._wake.set()

    def _free(self, run: Run) -> None:
        """A slot is free: nothing of the run is left here."""
        self._busy.discard(run)
        self._keeper.begun.remove(run)
        self._fetcher.look_now = True
        if self._ahead and not self._stopping:
            self._start_ahead()
        if not self._wake.is_set():
            self._wake.set()

    def _note_stuck(self, run: Run) -> None:
        """A slot that does not come back: a fresh process has all of them."""
        if run not in self._busy:
            return
        log.warning(
            "%s still runs %.0f s after its timeout",
            run.claimed.name,
            STUCK_SECONDS,
            extra=run.log,
        )
        if self._settings.replaceable and not self._stopping:
            self.limits.reach("a task that does not end")
            self._give_back_ahead()
            self._wake.set()

    async def _retire(self) -> None:
        for worker_id in self._board.retired():
            await self._deregister(worker_id)
            self._fetcher.look_again()

    # ---- waiting and ending ----------------------------------------------------------------------

    async def _rest(self) -> None:
        """Wait until something happens, or until it is time to look."""
        timeout = None
        now = self._loop.time()
        if not self._stopping and not self._ahead and self._room_to_claim():
            timeout = max(0.0, self._fetcher.next_look - now, self._fetcher.gathers_for)
        elif self._ahead:
            if now - self._ahead[0].started > AHEAD_SECONDS:
                self._give_back_ahead()
                return
            timeout = GATHER_SECONDS if self._finisher else AHEAD_SECONDS
        elif self._finisher:
            timeout = self._fetcher.gathers_for
        with self._link.hearing(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    def _beat(self) -> None:
        """Tell the keeper each second that the loop moves, while anything runs."""
        running = len(self._board.runs)
        self._keeper.running(running)
        for run in self._board.runs:
            if run.progress is not None and not run.is_settled:
                (fraction, message), run.progress = run.progress, None
                self._keeper.progress(
                    id=run.claimed.id,
                    worker_id=run.worker_id,
                    attempt=run.claimed.attempt,
                    fraction=fraction,
                    message=message,
                )
        self._pulse = self._loop.call_later(PULSE_SECONDS, self._beat) if running else None

    def _is_over(self) -> bool:
        self.limits.look(self._stats.claimed)
        if self._finisher or self._ahead or self._incoming or self._fetcher.asked:
            return False
        if any(not run.is_settled for run in self._busy):
            return False
        return self._stopping or self._fetcher.is_dry or self.limits.reached is not None

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
        # What is in a child process ends for sure: released before, it would run twice at a time.
        self._later(UNWIND_SECONDS, lambda: self._release(left))
        grace = max(UNWIND_SECONDS, self._settings.config.kill_grace_seconds)
        self._later(grace + LEAVE_SECONDS, self._abandon)

    def _release(self, runs: Iterable[Run]) -> None:
        for run in runs:
            if not self._executor.ends_surely(run):
                self._settle(run, ends.RELEASED)

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
        await self._executor.close_children()
        if self._finisher and not self._abandoned:
            # Leaving in a hurry: what has ended shall not be run again if that can be helped.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._finisher.flush()
        for worker_id in list(self._board.registrations):
            await self._deregister(worker_id)
        if self._pulse is not None:
            self._pulse.cancel()
        await self._keeper.stop()
        self._executor.close()
        self._link.drop()

    async def _deregister(self, worker_id: str) -> None:
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
                "could not deregister: the lease will run out", extra={"worker_id": worker_id}
            )
        finally:
            self._keeper.drop(worker_id)

    # ---- from outside ----------------------------------------------------------------------------

    def _notified(self, payload: str | None) -> None:
        if self._fetcher.notified(payload):
            if not self._finisher and (room := self._room_now()):
                self._fetcher.ask(room)
            self._wake.set()

    def _handed_over(self, payload: str) -> None:
        # It may come beside what a claim brings: where it had to wait for long, others are closer.
        fits = self._held < self._settings.concurrency + self._ahead_allowed()
        try:
            delivery = self._fetcher.handed_over(payload)
        except Unheard as error:
            log.warning("%s: registering anew", error)
            self._link.drop()
            self._fetcher.look_again()
            self._wake.set()
            return
        if delivery is None:
            return
        if fits and self.limits.left(self._stats.claimed) >= 0:
            self._incoming += 1
            self._receive(delivery)
        else:
            for run in self._fetcher.receive(delivery):
                self._settle(run, ends.RELEASED)

    def _cancel(self, task_ids: list[str]) -> None:
        for run in tell_to_stop(self._board.find(task_ids), "cancel"):
            log.info("%s is asked to stop", run.claimed.name, extra=run.log)
            self._executor.interrupt(run)

    def _lose(self, worker_id: str) -> None:
        if worker_id not in self._board.registrations:
            return
        runs = self._board.forget(worker_id)
        self._keeper.drop(worker_id)
        log.warning(
            "the registration ended; %d tasks are others' now",
            len(runs),
            extra={"worker_id": worker_id},
        )
        for run in tell_to_stop(runs, "lost"):
            self._executor.interrupt(run)
        self._fetcher.look_now = True
        self._wake.set()
