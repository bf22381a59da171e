"""A worker that has done enough, or grown too much, makes room for a fresh one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasklib import ConfigurationError, TaskQueue
from tasklib.worker import limits


@pytest.mark.parametrize("limit", [{"max_tasks": 3}, {"max_tasks": 3, "concurrency": 10}])
async def test_it_takes_no_more_than_it_may(aqueue: TaskQueue, limit: dict[str, Any]) -> None:
    @aqueue.task
    async def work() -> None: ...

    await aqueue.enqueue_many([(work, {})] * 10)
    worker = aqueue.worker(handle_signals=False, **limit)

    await asyncio.wait_for(worker.run(), 60)

    assert worker.wants_replacement
    assert (worker.stats.claimed, worker.stats.completed, worker.stats.released) == (3, 3, 0)


async def test_what_runs_may_end_when_it_has_grown(
    aqueue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = 1
    monkeypatch.setattr(limits, "resident_bytes", lambda: occupied)
    go = asyncio.Event()

    @aqueue.task
    async def slow() -> None:
        await go.wait()

    @aqueue.task
    async def grow() -> None:
        nonlocal occupied
        occupied = 1001

    await aqueue.enqueue(slow)
    await aqueue.enqueue(grow)
    worker = aqueue.worker(handle_signals=False, concurrency=2, max_memory=1000)
    run = asyncio.create_task(worker.run())
    while not worker.stats.completed:
        await asyncio.sleep(0.01)
    await asyncio.sleep(2 * limits.LOOK_SECONDS)
    later = await aqueue.enqueue(grow)
    await asyncio.sleep(0.5)
    go.set()
    await asyncio.wait_for(run, 60)

    assert worker.wants_replacement
    assert worker.stats.completed in (2, 3), "one more may have been taken before it looked again"
    found = await aqueue.get_task(later)
    assert found is not None
    assert found.state == ("pending" if worker.stats.completed == 2 else "completed")


async def test_one_that_is_too_large_from_its_start_still_runs_a_task(aqueue: TaskQueue) -> None:
    @aqueue.task
    async def work() -> None: ...

    worker = aqueue.worker(handle_signals=False, max_memory=1)
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(3 * limits.LOOK_SECONDS)
    assert not run.done(), "or fresh ones would follow each other for ever"

    await aqueue.enqueue(work)
    await asyncio.wait_for(run, 60)
    assert worker.wants_replacement
    assert worker.stats.completed == 1


async def test_a_worker_that_was_stopped_or_is_dry_wants_nobody(aqueue: TaskQueue) -> None:
    @aqueue.task
    async def work() -> None: ...

    await aqueue.enqueue(work)
    dry = aqueue.worker(handle_signals=False, drain=True, max_tasks=5, max_memory=1 << 40)
    await asyncio.wait_for(dry.run(), 60)
    assert not dry.wants_replacement

    stopped = aqueue.worker(handle_signals=False, max_tasks=5)
    run = asyncio.create_task(stopped.run())
    await stopped.stop()
    await run
    assert not stopped.wants_replacement


async def test_it_says_when_the_database_knows_it(aqueue: TaskQueue) -> None:
    said: list[str] = []
    worker = aqueue.worker(handle_signals=False, drain=True, on_start=lambda: said.append("ready"))

    await asyncio.wait_for(worker.run(), 60)

    assert said == ["ready"]


@pytest.mark.parametrize("limit", [{"max_tasks": 0}, {"max_memory": -1}])
def test_a_limit_is_above_0(aqueue: TaskQueue, limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        aqueue.worker(**limit)


def test_memory_is_measured() -> None:
    before = limits.resident_bytes()
    hoard = b"x" * (64 << 20)
    assert limits.resident_bytes() - before > len(hoard) // 2
