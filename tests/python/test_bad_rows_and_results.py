"""Rows written by SQL and results of any kind: one bad one fails alone, and clearly."""

import math
from typing import Any

import pytest

from tasklib import SyncTaskQueue


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ('{"count": "5"}', "'count': Input should be a valid integer, got '5'"),
        ("{}", "argument 'count' is missing"),
        ('{"count": 1, "size": 2}', "there is no argument 'size'"),
        ('{"count": 1' + "0" * 5000 + "}", "InvalidArguments"),
    ],
)
def test_wrong_arguments_written_by_sql_fail_for_good_and_say_why(
    queue: SyncTaskQueue, drain: Any, conn: Any, kwargs: str, message: str
) -> None:
    @queue.task(name="app.count")
    def count(count: int) -> int:
        return count

    (bad,) = conn.execute("select tasklib.enqueue('app.count', %s)", (kwargs,)).fetchone()
    good = queue.enqueue(count, 1)
    drain(queue)

    task = queue.get_task(bad)
    assert task is not None
    assert (task.state, task.is_terminal) == ("failed", True)
    assert message in (task.error or "")
    result = queue.get_result(good, timeout=0)
    assert result is not None
    assert result.value == 1


def test_hundreds_of_bad_rows_fail_like_one(queue: SyncTaskQueue, drain: Any) -> None:
    @queue.task(name="app.count")
    def count(count: int) -> None: ...

    @queue.task
    def quick() -> None: ...

    quick_ones = [(quick, {})] * 50  # so that the worker claims ahead
    bad = [(queue.registry.tasks["app.count"].name, {}) for _ in range(500)]
    queue.enqueue_many(quick_ones)
    with SyncTaskQueue(queue.config) as elsewhere:
        elsewhere.enqueue_many(bad)

    assert drain(queue).failed == 500


class Opaque: ...


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "which JSON cannot hold"),
        (Opaque(), "which JSON cannot hold"),
        ("a\0b", "no NUL"),
        ("\ud800", "which JSON cannot hold"),
        ("x" * 1_100_000, "the database refused the outcome"),
    ],
)
def test_a_result_that_cannot_be_stored_fails_for_good_and_says_why(
    queue: SyncTaskQueue, drain: Any, value: Any, message: str
) -> None:
    @queue.task
    def work():
        return value

    task_id = queue.enqueue(work)
    drain(queue)

    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.is_terminal) == ("failed", True)
    assert message in (task.error or "")


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a\0b \ud800 c"), "ValueError: a\ufffdb \ufffd c"),
        (ValueError("x" * 1_000_000), "bytes left out"),
        (BadText(), "BadText"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_task_raises_is_stored(
    queue: SyncTaskQueue, drain: Any, error: BaseException, message: str, is_async: bool
) -> None:
    def boom() -> None:
        raise error

    async def aboom() -> None:
        raise error

    task = queue.task(max_retries=0)(aboom if is_async else boom)
    task_id = queue.enqueue(task)
    stats = drain(queue)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert message in (result.error or "")
    assert len((result.error or "").encode()) <= 65536
    assert stats.failed == 1


def test_one_refused_outcome_does_not_hold_up_the_others(queue: SyncTaskQueue, drain: Any) -> None:
    @queue.task
    def work(size: int) -> str:
        return "x" * size

    ids = queue.enqueue_many([(work, {"size": 1_100_000 if n == 5 else n}) for n in range(10)])
    drain(queue, concurrency=10)

    states = [(queue.get_result(task_id, timeout=0)) for task_id in ids]
    assert [state and state.state for state in states] == [
        "failed" if n == 5 else "completed" for n in range(10)
    ]
