"""The course of the demo, from an empty schema to a table that was checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from tasklib import Config, SyncTaskQueue, _calls

from .._app import Refusal
from .._session import Session, connect
from .check import Outcome
from .progress import Progress, progress
from .store import Store
from .tasks import count_kinds, summarize
from .workers import Fleet

POLL_SECONDS = 0.2
LIMIT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Asked:
    """The tasks that Python enqueued."""

    census: UUID
    summary: UUID
    summary_again: UUID


def run(url: str, paths: Sequence[str], workers: int) -> Outcome:
    """Run the main job over some files, with a document that is broken and a worker that dies."""
    with TemporaryDirectory(prefix="tasklib-demo-") as scratch, connect(url) as connection:
        store = Store(connection)
        if not store.alone():
            raise Refusal("another demo is running on this server", hint="Wait for its table.")
        store.set_up()

        broken = Path(scratch, "vanished.txt")
        middle = len(paths) // 2
        store.add_documents([*paths[:middle], str(broken), *paths[middle:]])
        asked = _enqueue_from_python(url, len(paths))

        began = time.monotonic()
        with progress() as shown, Fleet(url, Path(scratch)) as fleet:
            for _ in range(workers):
                fleet.start()
            held = _watch(store, fleet, shown)
        seconds = time.monotonic() - began

        session = Session(connection)
        summary, census = (session.run(_calls.get(id)) for id in (asked.summary, asked.census))
        assert summary is not None
        assert census is not None
        return Outcome(
            documents=store.indexed(),
            counts=store.counts(),
            failures=store.failures(),
            broken_path=str(broken),
            summary=summary,
            summary_asked_again=asked.summary_again,
            census=census,
            census_position=store.position_of_start(asked.census),
            held_by_killed=held,
            completed_of_held=store.completed(held),
            killed=fleet.killed,
            seconds=seconds,
        )


def _enqueue_from_python(url: str, documents: int) -> Asked:
    with SyncTaskQueue(Config(database_url=url)) as queue:
        later = summarize.options(delay_seconds=1.0, unique_key="summary")
        return Asked(
            census=queue.enqueue(count_kinds),
            summary=queue.enqueue(later, documents),
            summary_again=queue.enqueue(later, documents),
        )


def _watch(store: Store, fleet: Fleet, shown: Progress) -> set[UUID]:
    """Follow the tasks to the end, and kill a worker on the way; return what it held."""
    held: set[UUID] = set()
    end = time.monotonic() + LIMIT_SECONDS
    while True:
        counts = store.counts()
        shown.show(counts)
        if counts.finished == counts.total:
            return held
        if not held and counts.finished > counts.total // 4:
            held = fleet.kill_one_at_work(store.held_by)
            if held and fleet.killed:
                shown.say(f"killed {fleet.killed[0]} with {len(held)} tasks in its hands")
        for name in fleet.dead():
            raise Refusal(f"{name} ended by itself:\n{fleet.tail(name)}")
        if time.monotonic() > end:
            raise Refusal(f"not finished after {LIMIT_SECONDS} s: {counts}")
        time.sleep(POLL_SECONDS)
