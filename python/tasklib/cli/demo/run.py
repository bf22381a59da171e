"""The course of the demo, from an empty schema to a table that was checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from tasklib import Config, SyncTaskQueue, Task, _calls

from .._app import Refusal
from .._session import Session, connect
from .check import Outcome
from .progress import Progress, progress
from .store import Store
from .tasks import count_kinds, summarize
from .workers import Fleet

POLL_SECONDS = 0.1
LIMIT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Asked:
    """The tasks that Python enqueued."""

    census: UUID
    summary: UUID
    summary_again: UUID


def run(config: Config, paths: Sequence[str], workers: int) -> Outcome:
    """Have tasks read some files, with a document that is broken and a worker that dies."""
    with TemporaryDirectory(prefix="tasklib-demo-") as scratch, connect(config) as session:
        store = Store(session.connection)
        if not store.alone():
            raise Refusal("another demo is running on this server", hint="Wait for its table.")
        store.set_up()

        broken = Path(scratch, "vanished.txt")
        half = len(paths) // 2
        store.add_documents([*paths[:half], str(broken)])
        asked = _enqueue_from_python(config, len(paths))

        began = time.monotonic()
        with progress(len(paths) + 3) as shown, Fleet(config, Path(scratch)) as fleet:
            for _ in range(workers):
                fleet.start()
            # The summary waits for all documents, so one task is left in any case.
            _watch(store, fleet, shown, enqueued=half + 3, until=max(1, half // 2))
            held = _kill_one_at_work(config, store, fleet, paths[half:])
            if fleet.killed:
                shown.say(f"killed {fleet.killed[0]} with {len(held)} tasks in its hands")
            _watch(store, fleet, shown, enqueued=len(paths) + 3, until=0)
        seconds = time.monotonic() - began

        documents = store.documents()
        return Outcome(
            documents=documents,
            broken_path=str(broken),
            failures=store.failures(document.task_id for document in documents),
            census=_finished(session, asked.census),
            summary=_finished(session, asked.summary),
            summary_asked_again=asked.summary_again,
            held_by_killed=held,
            killed=fleet.killed,
            seconds=seconds,
        )


def _finished(session: Session, task_id: UUID) -> Task:
    task = session.run(_calls.get(task_id))
    assert task is not None
    return task


def _enqueue_from_python(config: Config, documents: int) -> Asked:
    with SyncTaskQueue(config) as queue:
        later = summarize.options(delay_seconds=1.0, unique_key="summary")
        return Asked(
            census=queue.enqueue(count_kinds),
            summary=queue.enqueue(later, documents),
            summary_again=queue.enqueue(later, documents),
        )


def _kill_one_at_work(
    config: Config, store: Store, fleet: Fleet, paths: Sequence[str]
) -> set[UUID]:
    """Add the other documents, and kill a worker that is busy with them; return what it held.

    A lock keeps tasks from writing for that moment: so it dies in the middle of its work however
    fast this machine is.
    """
    with connect(config) as other, other.connection.transaction():
        other.connection.execute("lock table tasklib_demo.document_index in share mode")
        store.add_documents(paths)
        return fleet.kill_one(store.held_by)


def _watch(store: Store, fleet: Fleet, shown: Progress, *, enqueued: int, until: int) -> None:
    """Show how far the tasks are, until no more than so many are unfinished."""
    end = time.monotonic() + LIMIT_SECONDS
    while True:
        depth = store.depth()
        shown.show(enqueued - depth.unfinished, depth)
        if depth.unfinished <= until:
            return
        fleet.check()
        if time.monotonic() > end:
            raise Refusal(f"not finished after {LIMIT_SECONDS} s: {depth}")
        time.sleep(POLL_SECONDS)
