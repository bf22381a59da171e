"""An attempt that shall end: by its timeout, or because somebody cancelled the task."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import tasklib
from tasklib import TaskQueue, TaskWorker
from tasklib.worker import shift

Start = Callable[..., TaskWorker]


async def test_an_async_task_is_interrupted_at_its_timeout(
    aqueue: TaskQueue, running: Start
) -> None:
    cleaned = asyncio.Event()

    @aqueue.task(timeout_seconds=0.1, max_retries=0)
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    running()
    result = await aqueue.get_result(await aqueue.enqueue(work), timeout=10)

    assert result is not None
    assert (result.state, result.error) == (
        "failed",
        "TimeoutError: the attempt did not end within 0.1 s",
    )
    assert cleaned.is_set()


async def test_a_sync_task_is_told_of_its_timeout_and_keeps_its_slot(
    aqueue: TaskQueue, running: Start
) -> None:
    stop, told = threading.Event(), threading.Event()

    @aqueue.task(timeout_seconds=0.1, max_retries=0)
    def work() -> None:
        task = tasklib.current_task()
        while not stop.wait(0.01):
            if task.cancelled:
                told.set()

    @aqueue.task
    async def other() -> None: ...

    running(concurrency=1)
    late = await aqueue.enqueue(work)
    after = await aqueue.enqueue(other)
    result = await aqueue.get_result(late, timeout=10)
    assert result is not None
    assert result.state == "failed"
    assert "TimeoutError" in (result.error or "")
    assert await asyncio.to_thread(told.wait, 5)
    assert await aqueue.get_result(after, timeout=0.3) is None

    stop.set()
    assert await aqueue.get_result(after, timeout=10) is not None


@pytest.mark.parametrize("replaceable", [True, False])
async def test_a_worker_whose_thread_does_not_come_back_makes_room_for_a_fresh_one(
    aqueue: TaskQueue, monkeypatch: pytest.MonkeyPatch, replaceable: bool
) -> None:
    monkeypatch.setattr(shift, "STUCK_SECONDS", 0.2)
    stop = threading.Event()

    @aqueue.task(timeout_seconds=0.1, max_retries=0)
    def hang() -> None:
        stop.wait(60)

    @aqueue.task
    async def other() -> None:
        await asyncio.sleep(2)

    worker = aqueue.worker(concurrency=2, handle_signals=False, replaceable=replaceable)
    run = asyncio.create_task(worker.run())
    hung, neighbour = await aqueue.enqueue(hang), await aqueue.enqueue(other)
    result = await aqueue.get_result(hung, timeout=10)
    assert result is not None
    assert "TimeoutError" in (result.error or "")
    ended = await aqueue.get_result(neighbour, timeout=10)
    assert ended is not None
    assert ended.state == "completed"

    await asyncio.wait({run}, timeout=5 if replaceable else 1)
    assert (run.done(), worker.wants_replacement) == (replaceable, replaceable)
    stop.set()
    await worker.stop()
    await run


async def test_a_timeout_is_retried(aqueue: TaskQueue, running: Start) -> None:
    @aqueue.task(timeout_seconds=0.1)
    async def work() -> None:
        await asyncio.sleep(60)

    running()
    task_id = await aqueue.enqueue(work)
    async with asyncio.timeout(10):
        while not (task := await aqueue.get_task(task_id)) or task.is_pending or task.is_running:
            await asyncio.sleep(0.05)

    assert (task.state, task.is_terminal) == ("failed", False)


async def test_a_running_async_task_ends_when_it_is_cancelled(
    aqueue: TaskQueue, running: Start
) -> None:
    started = asyncio.Event()

    @aqueue.task
    async def work() -> None:
        started.set()
        await asyncio.sleep(60)

    running()
    task_id = await aqueue.enqueue(work)
    await asyncio.wait_for(started.wait(), 10)
    asked = time.monotonic()
    assert await aqueue.cancel_task(task_id) == "requested"
    result = await aqueue.get_result(task_id, timeout=10)

    assert result is not None
    assert result.state == "cancelled"
    assert time.monotonic() - asked < 2.5


async def test_a_running_sync_task_sees_that_it_is_cancelled(
    aqueue: TaskQueue, running: Start
) -> None:
    started = threading.Event()

    @aqueue.task
    def work() -> None:
        started.set()
        while not tasklib.current_task().cancelled:
            time.sleep(0.01)
        raise RuntimeError("stopped early")

    running()
    task_id = await aqueue.enqueue(work)
    await asyncio.to_thread(started.wait, 10)
    await aqueue.cancel_task(task_id)
    result = await aqueue.get_result(task_id, timeout=10)

    assert result is not None
    assert result.state == "cancelled"


async def test_a_result_wins_over_a_cancellation(aqueue: TaskQueue, running: Start) -> None:
    started, end = threading.Event(), threading.Event()

    @aqueue.task
    def work() -> str:
        started.set()
        end.wait(10)
        return "done"

    running()
    task_id = await aqueue.enqueue(work)
    await asyncio.to_thread(started.wait, 10)
    await aqueue.cancel_task(task_id)
    end.set()
    result = await aqueue.get_result(task_id, timeout=10)

    assert result is not None
    assert (result.state, result.value) == ("completed", "done")


async def test_an_interruption_that_a_task_makes_itself_is_a_failure(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task(max_retries=0)
    async def work() -> None:
        raise asyncio.CancelledError

    running()
    result = await aqueue.get_result(await aqueue.enqueue(work), timeout=10)

    assert result is not None
    assert result.state == "failed"
    assert "CancelledError" in (result.error or "")


async def test_a_task_that_ignores_its_interruption_has_failed_all_the_same(
    aqueue: TaskQueue, running: Start, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tasklib.worker.execute.GRACE_SECONDS", 0.1)
    end = asyncio.Event()

    @aqueue.task(timeout_seconds=0.1, max_retries=0)
    async def stubborn() -> None:
        while not end.is_set():
            try:
                await asyncio.wait_for(end.wait(), 60)
            except asyncio.CancelledError:
                continue

    running()
    result = await aqueue.get_result(await aqueue.enqueue(stubborn), timeout=5)
    end.set()

    assert result is not None
    assert result.state == "failed"
