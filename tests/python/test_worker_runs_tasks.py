"""A worker runs async tasks on its loop and sync ones in threads, several at a time."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import tasklib
from tasklib import NotInTask, TaskQueue, TaskWorker

Start = Callable[..., TaskWorker]


async def test_async_and_sync_tasks_run_at_the_same_time(aqueue: TaskQueue, running: Start) -> None:
    together = threading.Barrier(2, timeout=10)
    loop = asyncio.get_running_loop()

    @aqueue.task
    def in_thread() -> bool:
        together.wait()
        return threading.current_thread() is not threading.main_thread()

    @aqueue.task
    async def on_loop() -> bool:
        await asyncio.to_thread(together.wait)
        return asyncio.get_running_loop() is loop

    running(concurrency=2)
    ids = await aqueue.enqueue_many([(in_thread, {}), (on_loop, {})])
    results = [await aqueue.get_result(task_id, timeout=10) for task_id in ids]

    assert [result and result.value for result in results] == [True, True]


async def test_no_more_tasks_run_than_asked_for(aqueue: TaskQueue, running: Start) -> None:
    now, most = 0, 0

    @aqueue.task
    async def work() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    ids = await aqueue.enqueue_many([(work, {})] * 50)
    running(concurrency=3)
    for task_id in ids:
        await aqueue.get_result(task_id, timeout=10)

    assert most == 3


async def test_higher_priority_goes_first(aqueue: TaskQueue, running: Start) -> None:
    order: list[int] = []

    @aqueue.task
    async def work(n: int) -> None:
        order.append(n)

    ids = await aqueue.enqueue_many([(work.options(priority=n % 3), {"n": n}) for n in range(9)])
    running()
    for task_id in ids:
        await aqueue.get_result(task_id, timeout=10)

    assert order == [2, 5, 8, 1, 4, 7, 0, 3, 6]


async def test_tasks_with_the_same_key_never_overlap(aqueue: TaskQueue, running: Start) -> None:
    order: list[tuple[str, int]] = []

    @aqueue.task
    async def work(n: int) -> None:
        order.append(("begins", n))
        await asyncio.sleep(0.01)
        order.append(("ends", n))

    keyed = work.options(concurrency_key="account 1")
    running(concurrency=8)
    ids = await aqueue.enqueue_many([(keyed, {"n": n}) for n in range(6)])
    for task_id in ids:
        await aqueue.get_result(task_id, timeout=10)

    assert order == [(what, n) for n in range(6) for what in ("begins", "ends")]


async def test_a_worker_takes_from_every_queue_that_its_tasks_name(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task(queue="mail")
    async def send() -> str:
        return "sent"

    @aqueue.task
    async def work() -> str:
        return "worked"

    running()
    ids = [await aqueue.enqueue(send), await aqueue.enqueue(work)]

    results = [await aqueue.get_result(task_id, timeout=10) for task_id in ids]
    assert [result and result.value for result in results] == ["sent", "worked"]


async def test_a_worker_leaves_other_queues_alone(aqueue: TaskQueue, running: Start) -> None:
    @aqueue.task
    async def work() -> None: ...

    running(queues=["mail"])
    elsewhere = await aqueue.enqueue(work)
    here = await aqueue.enqueue(work.options(queue="mail"))

    assert await aqueue.get_result(here, timeout=10) is not None
    assert await aqueue.get_result(elsewhere, timeout=0.2) is None


async def test_the_current_task_is_known_inside_it(aqueue: TaskQueue, running: Start) -> None:
    @aqueue.task
    def look() -> list[Any]:
        task = tasklib.current_task()
        return [str(task.id), task.name, task.queue, task.attempt, dict(task.tags), task.cancelled]

    @aqueue.task
    async def alook() -> list[Any]:
        await asyncio.sleep(0)
        task = tasklib.current_task()
        return [str(task.id), task.name, task.queue, task.attempt, dict(task.tags), task.cancelled]

    running(concurrency=2)
    for kind in (look, alook):
        task_id = await aqueue.enqueue(kind.options(tags={"a": 1}))
        result = await aqueue.get_result(task_id, timeout=10)
        assert result is not None
        assert result.value == [str(task_id), kind.name, "default", 1, {"a": 1}, False]


async def test_coroutines_do_not_see_each_others_context(aqueue: TaskQueue, running: Start) -> None:
    @aqueue.task
    async def work(n: int) -> bool:
        before = tasklib.current_task().id
        await asyncio.sleep(0.3)
        return tasklib.current_task().id == before

    ids = await aqueue.enqueue_many([(work, {"n": n}) for n in range(4)])
    running(concurrency=4)
    results = [await aqueue.get_result(task_id, timeout=20) for task_id in ids]

    assert [result and result.value for result in results] == [True] * 4


def test_outside_a_task_there_is_no_current_one() -> None:
    with pytest.raises(NotInTask):
        tasklib.current_task()


@pytest.mark.parametrize("is_transactional", [False, True])
async def test_progress_is_seen_while_a_task_runs(
    aqueue: TaskQueue, running: Start, is_transactional: bool
) -> None:
    seen = threading.Event()

    @aqueue.task(transactional=is_transactional)
    def work() -> None:
        tasklib.current_task().progress(0.25, "a\x00quarter\ud800")
        seen.wait(10)

    running()
    task_id = await aqueue.enqueue(work)
    async with asyncio.timeout(5):
        while True:
            task = await aqueue.get_task(task_id)
            assert task is not None
            if task.progress is not None:
                break
            await asyncio.sleep(0.05)
    seen.set()

    assert (task.progress, task.progress_message) == (
        0.25,
        "a\N{REPLACEMENT CHARACTER}quarter\N{REPLACEMENT CHARACTER}",
    )


async def test_a_sleeping_worker_starts_a_new_task_at_once(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task
    async def work() -> float:
        return time.monotonic()

    running()
    await asyncio.sleep(2)  # long enough for it to have gone to sleep
    waits: list[float] = []
    for _ in range(5):
        enqueued = time.monotonic()
        result = await aqueue.get_result(await aqueue.enqueue(work), timeout=5)
        assert result is not None
        waits.append(result.value - enqueued)
        await asyncio.sleep(0.3)

    assert sorted(waits)[2] < 0.1


async def test_without_a_listener_it_polls(database: str) -> None:
    config = tasklib.Config(database_url=database, listen=False)
    async with TaskQueue(config) as queue:

        @queue.task
        async def work() -> str:
            return "done"

        worker = queue.worker(poll_interval=0.1, handle_signals=False)
        run = asyncio.create_task(worker.run())
        await asyncio.sleep(0.5)
        result = await queue.get_result(await queue.enqueue(work), timeout=2)
        await worker.stop()
        await run

    assert result is not None
    assert result.value == "done"


async def test_a_worker_runs_once(aqueue: TaskQueue) -> None:
    worker = aqueue.worker(drain=True, handle_signals=False)
    await worker.run()

    with pytest.raises(tasklib.TaskLibError, match="started before"):
        await worker.run()


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"poll_interval": 0}])
def test_a_worker_refuses_what_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(tasklib.ConfigurationError):
        TaskWorker(tasklib.Config(database_url="memory://"), **options)
