"""Corners of running that no clock can be set to hit from outside."""

import asyncio
import threading
import time
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from tasklib import Cancel, TaskQueue, TaskWorker
from tasklib.models import Claimed
from tasklib.registry import Registry
from tasklib.worker.context import Run
from tasklib.worker.execute import Executor
from tasklib.worker.outcome import Outcome

Start = Callable[..., TaskWorker]


async def test_a_task_that_is_interrupted_before_its_first_step_ends() -> None:
    registry, settled, freed = Registry(), list[tuple[Run, Outcome]](), list[Run]()

    @registry.task(name="app.work")
    async def work() -> None: ...

    claimed = Claimed(str(uuid4()), 1, work.name, "default", "{}", 0, 3, None, None, None)
    run = Run(claimed, str(uuid4()), stop_reason="cancel")
    executor = Executor(registry, lambda *ended: settled.append(ended), freed.append)
    executor.start(run)
    executor.interrupt(run)
    for _ in range(3):
        await asyncio.sleep(0)

    assert freed == [run]
    assert [(ended, outcome.state) for ended, outcome in settled] == [(run, "cancelled")]


async def test_a_cancellation_that_a_task_takes_back_hits_nobody_else(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task(name="app.waver", max_retries=0)
    async def waver() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.uncancel()

    @aqueue.task(name="app.wait", max_retries=0)
    async def wait() -> int:
        await asyncio.sleep(0.01)
        return 1

    ids = [await aqueue.enqueue(task) for task in (waver, wait, waver, wait)]
    running(concurrency=10)
    assert await states(aqueue, ids) == ["completed"] * 4


class Wordless(Cancel):
    def __str__(self) -> str:
        raise ValueError("no words")


async def test_an_exception_without_a_text_ends_its_task_alone(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task(name="app.asay", max_retries=0)
    async def asay(well: bool) -> None:
        if not well:
            raise Wordless

    @aqueue.task(name="app.say", max_retries=0)
    def say(well: bool) -> None:
        if not well:
            raise Wordless

    order = [(asay, False), (say, False), (asay, True), (say, True)]
    ids = [await aqueue.enqueue(task, well=well) for task, well in order]
    running()
    assert await states(aqueue, ids) == ["failed", "failed", "completed", "completed"]


@pytest.mark.parametrize(("most", "ends"), [(2, "completed"), (0, "failed")])
async def test_a_system_without_threads_does_not_stop_the_worker(
    aqueue: TaskQueue, running: Start, monkeypatch: pytest.MonkeyPatch, most: int, ends: str
) -> None:
    begin, begun = threading.Thread.start, list[threading.Thread]()

    def limited(self: threading.Thread) -> None:
        if self.name.startswith("tasklib-task"):
            if len(begun) >= most:
                raise RuntimeError("can't start new thread")
            begun.append(self)
        begin(self)

    @aqueue.task(name="app.rest", max_retries=0)
    def rest() -> None:
        time.sleep(0.05)

    @aqueue.task(name="app.arest", max_retries=0)
    async def arest() -> None:
        await asyncio.sleep(0.01)

    monkeypatch.setattr(threading.Thread, "start", limited)
    ids = [await aqueue.enqueue(rest) for _ in range(5)]
    other = await aqueue.enqueue(arest)
    running(concurrency=10)
    assert await states(aqueue, ids) == [ends] * 5
    assert await states(aqueue, [other]) == ["completed"]


async def states(queue: TaskQueue, ids: list[UUID]) -> list[str | None]:
    results = [await queue.get_result(task_id, timeout=10) for task_id in ids]
    return [result and result.state for result in results]
