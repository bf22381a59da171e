"""Take due tasks from the database, and know when to look again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from tasklib import _worker_calls
from tasklib.config import Config
from tasklib.errors import DatabaseUnavailable, WorkerNotRegistered
from tasklib.registry import Registry
from tasklib.worker.board import Board
from tasklib.worker.context import Run
from tasklib.worker.finish import WorkerStats
from tasklib.worker.link import Link, NotSent, is_infrastructure
from tasklib.worker.listen import Listener
from tasklib.worker.pace import ARMED_SECONDS, Pace
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
    on_start: Callable[[], object] | None = None


class Unregistered(Exception):
    """The registration that should have claimed is no more."""

    def __init__(self, worker_id: UUID) -> None:
        super().__init__(worker_id)
        self.worker_id = worker_id


class Fetcher:
    """Claims under the current registration.

    Attributes:
        look_now: Look again although it is not time: a slot or a key became free.
        is_dry: Nothing is due: a look right after housekeeping found nothing. Draining only.
    """

    def __init__(
        self, settings: Settings, link: Link, board: Board, listener: Listener, stats: WorkerStats
    ) -> None:
        self.look_now = False
        self.is_dry = False
        self._has_ticked = False
        self._settings = settings
        self._link = link
        self._board = board
        self._listener = listener
        self._stats = stats
        self._pace = Pace()
        self._loop = asyncio.get_running_loop()

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self.look_now or self._loop.time() >= self._pace.next_look

    @property
    def next_look(self) -> float:
        """The loop's time of the next look."""
        return self._pace.next_look

    def woken(self) -> None:
        """There was a notification."""
        self._pace.woken(self._loop.time())

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
        self._board.register(worker_id)
        log.info(
            "worker %s takes tasks of %d names from %s",
            worker_id,
            len(settings.registry.tasks),
            ", ".join(settings.queues),
            extra={"worker_id": str(worker_id)},
        )

    async def fetch(self, room: int) -> list[Run]:
        """Claim as many tasks as there is room for; none while the database is away.

        Raises:
            Unregistered: The registration has ended.
        """
        worker_id = self._board.current
        if worker_id is None:
            await self.register()
            return []
        is_planned = self._loop.time() >= self._pace.next_look
        self.look_now = False
        try:
            claimed = await self._link.run(
                _worker_calls.claim(worker_id, self._settings.queues, room)
            )
        except WorkerNotRegistered as error:
            raise Unregistered(worker_id) from error
        except Exception as error:
            if not is_infrastructure(error):
                raise
            await self._link.rest(error)
            if isinstance(error, DatabaseUnavailable) and not isinstance(error, NotSent):
                # It may have handed out tasks that nobody here knows: see Board.
                await self.register()
            return []
        self._stats.claimed += len(claimed)
        runs = [self._board.add(each, worker_id) for each in claimed]
        for run in runs:
            run.started = self._loop.time()
        await self._plan(len(runs), room, is_planned, worker_id)
        return runs

    async def _plan(self, found: int, room: int, is_planned: bool, worker_id: UUID) -> None:
        now = self._loop.time()
        if self._settings.drain:
            await self._keep_house(found)
        if found >= room:
            self._pace.found_enough(now)
        elif not self._listener.is_listening:
            wait = self._settings.poll_interval
            is_hasty = found or self._settings.drain
            self._pace.next_look = now + (min(SOON_SECONDS, wait) if is_hasty else wait)
        elif found:
            self._pace.found_some(now)
        elif is_planned:
            sleep = await self._tell_that_it_sleeps(worker_id) if self._pace.goes_to_sleep else None
            self._pace.found_nothing(self._loop.time(), sleep)

    async def _keep_house(self, found: int) -> None:
        """Make due what is due: only a look after that tells that there is nothing."""
        self.is_dry = self._has_ticked and not found
        self._has_ticked = False
        if not found:
            ticked = await self._link.persist(_worker_calls.tick())
            self._has_ticked = ticked is not None and not ticked.more

    async def _tell_that_it_sleeps(self, worker_id: UUID) -> float | None:
        call = _worker_calls.idle(worker_id, self._settings.queues, ARMED_SECONDS)
        with contextlib.suppress(WorkerNotRegistered):
            return await self._link.persist(call)
        return None
