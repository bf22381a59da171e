"""Take due tasks from the database, and know when to look again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from tasklib import _admin_calls, _migrate, _worker_calls
from tasklib._calls import Call
from tasklib._worker_calls import Exchanged, Idle
from tasklib.config import Config
from tasklib.errors import (
    INSTALL_HINT,
    DatabaseUnavailable,
    NotInstalled,
    TaskLibError,
    WorkerNotRegistered,
)
from tasklib.registry import Registry
from tasklib.worker.board import Board
from tasklib.worker.context import Run
from tasklib.worker.finish import Batch, Finisher, WorkerStats, as_ended
from tasklib.worker.keeper import Keeper
from tasklib.worker.link import Link, NotSent, is_infrastructure
from tasklib.worker.pace import ARMED_SECONDS, Load, Pace
from tasklib.worker.types import task_types, worker_info

log = logging.getLogger("tasklib.worker")

# A draining worker waits for nobody; one that just ran dry looks again soon.
SOON_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker was asked to be."""

    config: Config
    registry: Registry
    queues: list[str]
    concurrency: int
    poll_interval: float
    name: str
    shutdown_timeout: float
    drain: bool
    max_tasks: int | None = None
    max_memory: int | None = None
    replaceable: bool = False
    on_start: Callable[[], object] | None = None


class Unregistered(Exception):
    """The registration that should have claimed is no more."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(worker_id)
        self.worker_id = worker_id


class Unheard(Exception):
    """What came by itself is treated as if it had not been heard."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The answer to a call, not yet looked into.

    Attributes:
        worker_id: The registration that called.
        batch: What it sent along.
        answer: What the database said.
    """

    worker_id: str
    batch: Batch
    answer: Exchanged

    def __len__(self) -> int:
        """Return how many tasks it brought."""
        return len(self.answer.rows)


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that is on its way: what to run to get its answer, and what it said."""

    worker_id: str
    call: Call[Exchanged]
    room: int


class Fetcher:
    """Claims under the current registration, and sends along what has ended under it.

    Attributes:
        look_now: Look again although it is not time: a slot or a key became free.
        is_dry: Nothing is due: a look right after housekeeping found nothing. Draining only.
    """

    def __init__(
        self,
        settings: Settings,
        link: Link,
        board: Board,
        finisher: Finisher,
        keeper: Keeper,
        load: Load,
        stats: WorkerStats,
    ) -> None:
        self.look_now = False
        self.is_dry = False
        self._offered_on: str | None = None
        self._has_ticked = False
        self._asked: Asked | None = None
        self._settings = settings
        self._link = link
        self._board = board
        self._finisher = finisher
        self._keeper = keeper
        self._load = load
        self._stats = stats
        self._pace = Pace()
        self._loop = asyncio.get_running_loop()

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self.gathers_for == 0 and (
            self.look_now or self._loop.time() >= self._pace.next_look
        )

    @property
    def gathers_for(self) -> float:
        """Seconds for which tasks and outcomes gather, as they come faster than calls for a few."""
        return max(0.0, self._pace.gathers_until - self._loop.time())

    @property
    def next_look(self) -> float:
        """The loop's time of the next look."""
        return self._pace.next_look

    def notified(self, payload: str | None) -> bool:
        """Take a notification, or the end of them; return whether it is a reason to look now."""
        by_name = payload is None or (self._board.current or "nobody") in payload
        return self._pace.called(self._loop.time(), by_name=by_name)

    @property
    def asked(self) -> int:
        """For how many tasks `ask` has asked; the next thing to do is then to `fetch` them."""
        return self._asked.room if self._asked else 0

    def ask(self, room: int) -> None:
        """Send the call that `fetch` would make in a moment, if that can be done at once.

        A lone task waits for its worker to come to itself: meanwhile the database can work.
        """
        worker_id = self._board.current
        says_more = self._pace.goes_to_sleep(self._loop.time())
        if self._asked is None and worker_id is not None and not says_more:
            call = _worker_calls.exchange(worker_id, self._settings.queues, room)
            if self._link.send(call):
                self._asked = Asked(worker_id, call, room)

    def look_again(self) -> None:
        """Look now: tasks may have become due without a look having told of them."""
        self.look_now, self.is_dry = True, False

    async def check_schema(self, seconds: float) -> None:
        """Refuse to work with a schema that is older than this package.

        Args:
            seconds: How long to try to reach the database.

        Raises:
            NotInstalled: It is, or there is none.
        """
        there = await self._link.persist(_admin_calls.schema_version(), seconds)
        here = _migrate.latest()
        if there is None or there < here:
            raise NotInstalled(
                f"the database is at {there or 'nothing'}, this package at {here}",
                hint=INSTALL_HINT,
            )

    async def register(self, seconds: float | None = None) -> None:
        """Begin a registration, and claim under it from now on.

        Args:
            seconds: How long to try; None tries for ever.
        """
        settings = self._settings
        call = _worker_calls.register_worker(
            settings.name,
            settings.config.lock_timeout_seconds,
            task_types(settings.registry, settings.config),
            worker_info(settings.queues, settings.concurrency),
        )
        worker_id = await self._link.persist(call, seconds)
        self._offered_on = None
        self._pace.found_enough(self._loop.time())  # nobody knows yet that this one sleeps
        self._board.register(worker_id)
        self._keeper.renewed(worker_id)
        log.info(
            "worker %s takes tasks of %d names from %s",
            worker_id,
            len(settings.registry.tasks),
            ", ".join(settings.queues),
            extra={"worker_id": worker_id},
        )

    async def fetch(self, room: int, batch: Batch) -> Delivery | None:
        """Claim as many tasks as there is room for; none while the database is away.

        Args:
            room: How many tasks could start soon; after `ask`, what `asked` says.
            batch: What has ended under the current registration; sent with the same call. Nothing
                after `ask`.

        Returns:
            What has to be taken in by `receive`.

        Raises:
            Unregistered: The registration has ended.
        """
        asked, self._asked = self._asked, None
        worker_id = asked.worker_id if asked else self._board.current
        if worker_id is None:
            await self.register()
            return None
        if self._offers_on_another:
            self._finisher.put_back(batch)
            await self._succeed(worker_id)
            return None
        now = self._loop.time()
        is_planned = now >= self._pace.next_look
        idle = None
        if self._link.is_listening and asked is None:
            runs_nothing = all(run.is_settled for run in self._board.runs)
            channel = self._link.channel if runs_nothing else None
            if batch and self._pace.is_trickle:
                idle, is_planned = Idle(ARMED_SECONDS, for_long=False, channel=channel), True
            elif (
                is_planned
                and not batch
                and self._pace.goes_to_sleep(now, may_offer=channel is not None)
            ):
                idle = Idle(ARMED_SECONDS, self._pace.is_listed_next(now), channel)
        self.look_now = False
        if asked is not None:
            call = asked.call
        else:
            ended = as_ended(batch) if batch else None
            call = _worker_calls.exchange(worker_id, self._settings.queues, room, ended, idle)
        if idle is not None and idle.channel is not None:
            self._offered_on = idle.channel
        try:
            answer = await self._link.run(call)
        except WorkerNotRegistered as error:
            self._finisher.put_back(batch)
            if not await self._is_registered(worker_id):
                raise Unregistered(worker_id) from error
            # Another server, or one that was started anew: what runs keeps its lease, and goes on.
            await self.register()
            return None
        except Exception as error:
            await self._recover(error, batch)
            return None
        except BaseException:
            self._finisher.put_back(batch)
            raise
        self._stats.claimed += len(answer.rows)
        await self._plan(answer, room, idle, is_planned=is_planned)
        if self._offers_on_another:
            self.look_again()  # the connection broke just before, and the offer names that one
        return Delivery(worker_id, batch, answer)

    def handed_over(self, payload: str) -> Delivery | None:
        """Take a task that a commit handed over.

        Returns:
            As `fetch`; None when its registration has ended, and it was given back with it.

        Raises:
            Unheard: It is not to be run, but to be given back with the registration.
        """
        now = self._loop.time()
        try:
            worker_id, row = _worker_calls.handed_over(payload)
        except (ValueError, TypeError) as error:
            raise Unheard(f"what was handed over cannot be read ({error})") from error
        if worker_id not in self._board.registrations:
            return None
        if now > self._pace.next_look + self._settings.config.lock_timeout_seconds / 2:
            raise Unheard("this process was stopped for long, and the lease may have run out")
        self._stats.claimed += 1
        self._pace.handed_over(now)
        return Delivery(worker_id, [], Exchanged([row]))

    def receive(self, delivery: Delivery) -> list[Run]:
        """Take in what a call brought: how the attempts of its batch ended, and new ones."""
        if delivery.batch:
            self._finisher.note(delivery.batch, delivery.answer.statuses)
        claimed, now = delivery.answer.claimed, self._loop.time()
        if claimed:
            self._load.claimed(max(len(task.kwargs) for task in claimed))
        return [self._board.add(task, delivery.worker_id, now) for task in claimed]

    @property
    def _offers_on_another(self) -> bool:
        """Whether the offer to take a task names another connection than the one there is."""
        return self._offered_on not in (None, self._link.channel)

    async def _succeed(self, worker_id: str) -> None:
        """Register anew: a task may have been handed over to a connection that is no more.

        It is unknown here: see `Board`.
        """
        try:
            await self.register(0)
        except Exception as error:
            if not is_infrastructure(error):
                raise
            await self._link.rest(error)
            return
        with contextlib.suppress(WorkerNotRegistered):
            await self._link.persist(_worker_calls.withdraw(worker_id), 0)

    async def _recover(self, error: Exception, batch: Batch) -> None:
        if is_infrastructure(error):
            self._finisher.put_back(batch)
            await self._link.rest(error)
            if isinstance(error, DatabaseUnavailable) and not isinstance(error, NotSent):
                # It may have handed out tasks that nobody here knows: see Board.
                await self.register()
        elif batch and isinstance(error, (TaskLibError, psycopg.Error)):
            # One row may have spoilt the whole call.
            await self._finisher.send(batch)
        else:
            raise error

    async def _is_registered(self, worker_id: str) -> bool:
        try:
            await self._link.persist(_worker_calls.heartbeat(worker_id))
        except WorkerNotRegistered:
            return False
        return True

    async def _plan(
        self, answer: Exchanged, room: int, idle: Idle | None, *, is_planned: bool
    ) -> None:
        found, now = len(answer.rows), self._loop.time()
        if self._settings.drain:
            await self._keep_house(found)
        if idle is not None and idle.for_long and self._board.current is not None:
            self._keeper.renewed(self._board.current)
        if found >= room:
            self._pace.found_enough(now)
        elif not self._link.is_listening:
            wait = self._settings.poll_interval
            is_hasty = found or self._settings.drain
            self._pace.next_look = now + (min(SOON_SECONDS, wait) if is_hasty else wait)
        elif found:
            self._pace.found_some(now, found)
        elif is_planned:
            is_listed = idle is not None and idle.for_long
            has_offered = idle is not None and idle.channel is not None
            self._pace.found_nothing(now, answer.wait, is_listed=is_listed, has_offered=has_offered)

    async def _keep_house(self, found: int) -> None:
        """Make due what is due: only a look after that tells that there is nothing."""
        self.is_dry = self._has_ticked and not found
        self._has_ticked = False
        if not found:
            ticked = await self._link.persist(_worker_calls.tick())
            self._has_ticked = ticked is not None and not ticked.more
