"""A task that fails is tried again, later each time, until its budget is spent."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest

import tasklib
from tasklib import Retry, SyncTaskQueue
from tasklib.testing import advance


def pause(queue: SyncTaskQueue, task_id: Any, conn: Any) -> timedelta | None:
    """Return how long the last attempt's failure makes the task wait."""
    failed_at, retry_at = conn.execute(
        "select failed_at, next_retry_at from tasklib.failures where task_id = %s "
        "order by attempt desc limit 1",
        (task_id,),
    ).fetchone()
    return retry_at and timedelta(seconds=round((retry_at - failed_at).total_seconds(), 1))


def test_a_task_that_always_raises_waits_5_10_20_seconds_and_has_failed_for_good(
    queue: SyncTaskQueue, drain: Any, conn: Any
) -> None:
    @queue.task
    def boom() -> None:
        raise ValueError("no luck")

    task_id = queue.enqueue(boom)
    # A drain that takes longer than a pause makes the next attempt, too.
    for _ in range(4):
        drain(queue)
        advance(20, config=queue.config)

    pauses = conn.execute(
        "select extract(epoch from next_retry_at - failed_at)::float8 from tasklib.failures "
        "where task_id = %s order by attempt",
        (task_id,),
    ).fetchall()
    assert pauses == [(5,), (10,), (20,), (None,)]
    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.retry_count, task.is_terminal) == ("failed", 3, True)
    assert task.next_retry_at is None
    assert task.error is not None
    assert task.error.startswith("Traceback (most recent call last):")
    assert task.error.endswith("ValueError: no luck\n")
    assert "tasklib/worker" not in task.error


def test_a_task_that_waits_for_its_retry_has_failed_until_that_is_due(
    queue: SyncTaskQueue, drain: Any
) -> None:
    @queue.task(backoff={"base_seconds": 3600})
    def boom() -> None:
        raise ValueError

    task_id = queue.enqueue(boom)
    drain(queue)
    waiting = queue.get_task(task_id)
    advance(3600, config=queue.config)
    due = queue.get_task(task_id)

    assert waiting is not None
    assert (waiting.state, waiting.attempt, waiting.is_terminal) == ("failed", 1, False)
    assert waiting.next_retry_at is not None
    assert due is not None
    assert due.is_pending


def test_the_decorators_backoff_holds_for_tasks_enqueued_by_sql(
    queue: SyncTaskQueue, drain: Any, conn: Any
) -> None:
    @queue.task(name="app.boom", backoff={"base_seconds": 1, "multiplier": 3}, max_retries=1)
    def boom() -> None:
        raise ValueError

    (task_id,) = conn.execute("select tasklib.enqueue('app.boom')").fetchone()
    drain(queue)
    assert pause(queue, task_id, conn) == timedelta(seconds=1)
    advance(1, config=queue.config)
    drain(queue)

    task = queue.get_task(task_id)
    assert task is not None
    assert (task.is_terminal, task.max_retries) == (True, 1)


def test_the_configurations_retries_hold_for_all_tasks(database: str, drain: Any) -> None:
    config = tasklib.Config(database_url=database, max_retries=0)
    with SyncTaskQueue(config) as queue:

        @queue.task
        def boom() -> None:
            raise ValueError

        task_id = queue.enqueue(boom)
        drain(queue)
        result = queue.get_result(task_id, timeout=0)

    assert result is not None
    assert result.state == "failed"


@pytest.mark.parametrize(
    ("options", "is_final"),
    [
        ({"give_up_on": KeyError}, True),
        ({"give_up_on": LookupError}, True),
        ({"give_up_on": ValueError}, False),
        ({"retry_for": (OSError, KeyError)}, False),
        ({"retry_for": OSError}, True),
        ({"retry_for": LookupError, "give_up_on": KeyError}, True),
    ],
)
def test_the_class_of_an_exception_decides(
    queue: SyncTaskQueue, drain: Any, options: dict[str, Any], is_final: bool
) -> None:
    @queue.task(**options)
    def boom() -> None:
        raise KeyError("k")

    task_id = queue.enqueue(boom)
    drain(queue)

    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.is_terminal) == ("failed", is_final)


def test_a_task_can_say_when_it_is_tried_again(queue: SyncTaskQueue, drain: Any, conn: Any) -> None:
    @queue.task(give_up_on=Exception)
    def boom() -> None:
        raise Retry("later", in_seconds=77)

    task_id = queue.enqueue(boom)
    drain(queue)

    assert pause(queue, task_id, conn) == timedelta(seconds=77)
    task = queue.get_task(task_id)
    assert task is not None
    assert "later" in (task.error or "")


def test_a_task_cannot_ask_for_more_retries_than_it_has(queue: SyncTaskQueue, drain: Any) -> None:
    @queue.task(max_retries=0)
    def boom() -> None:
        raise Retry(in_seconds=5)

    task_id = queue.enqueue(boom)
    drain(queue)

    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.is_terminal) == ("failed", True)


def test_a_signal_can_be_raised_from_an_error_and_by_its_class(
    queue: SyncTaskQueue, drain: Any, conn: Any
) -> None:
    @queue.task(name="app.retry", give_up_on=OSError)
    def again() -> None:
        try:
            raise OSError("the disk")
        except OSError as error:
            raise Retry from error

    @queue.task(name="app.cancel")
    async def stop() -> None:
        raise tasklib.Cancel

    ids = [queue.enqueue(task) for task in (again, stop)]
    drain(queue)

    retried, cancelled = (queue.get_task(task_id) for task_id in ids)
    assert retried is not None
    assert cancelled is not None
    assert pause(queue, ids[0], conn) == timedelta(seconds=5)
    assert "OSError: the disk" in (retried.error or "")
    assert (cancelled.state, cancelled.error) == ("cancelled", "the task cancelled itself")


def test_a_task_can_put_itself_off_without_being_charged(queue: SyncTaskQueue, drain: Any) -> None:
    attempts: list[int] = []

    @queue.task(max_retries=0)
    def wait() -> str:
        attempts.append(tasklib.current_task().attempt)
        if len(attempts) < 3:
            raise tasklib.Snooze(60)
        return "done"

    task_id = queue.enqueue(wait)
    for _ in range(3):
        drain(queue)
        advance(61, config=queue.config)

    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.retry_count) == ("completed", 0)
    assert attempts == [1, 2, 3]


def test_a_task_can_cancel_itself(queue: SyncTaskQueue, drain: Any) -> None:
    @queue.task
    def give_up() -> None:
        raise tasklib.Cancel("not worth it")

    task_id = queue.enqueue(give_up)
    drain(queue)

    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.error) == ("cancelled", "not worth it")


def test_a_retry_by_hand_makes_a_failed_task_run_again(queue: SyncTaskQueue, drain: Any) -> None:
    ready: list[bool] = []

    @queue.task(max_retries=0)
    def work() -> str:
        if not ready:
            raise ValueError
        return "done"

    task_id = queue.enqueue(work)
    drain(queue)
    ready.append(True)
    assert queue.retry_task(task_id) == "pending"
    drain(queue)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.state, result.value, result.error) == ("completed", "done", None)


def test_a_retry_comes_by_itself(database: str) -> None:
    """Nothing but a running worker is needed; the pause is waited for, not polled away."""
    config = tasklib.Config(database_url=database, base_retry_delay_seconds=0.3)

    async def main() -> tuple[Any, float]:
        async with tasklib.TaskQueue(config) as queue:
            runs: list[float] = []

            @queue.task
            async def flaky() -> int:
                runs.append(time.monotonic())
                if len(runs) == 1:
                    raise ValueError
                return len(runs)

            worker = queue.worker(handle_signals=False)
            running = asyncio.create_task(worker.run())
            result = await queue.get_result(await queue.enqueue(flaky), timeout=10)
            await worker.stop()
            await running
            return result, runs[1] - runs[0]

    result, waited = asyncio.run(main())
    assert result is not None
    assert result.value == 2
    assert 0.3 <= waited < 1.5
