"""What does not fit is refused where it is submitted, and leaves no row."""

import math
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

import tasklib
from tasklib import (
    InvalidArguments,
    InvalidResult,
    SyncTaskQueue,
    TaskLibError,
    TaskNotRegistered,
)


@pytest.fixture
def count_to(queue: SyncTaskQueue) -> tasklib.TaskFunction[..., Any]:
    @queue.task
    def count_to(count: int, name: str = "", *, extra: Any = None) -> None: ...

    return count_to


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"count": "5"}, "'count'.*valid integer, got '5'"),
        ((), {"count": True}, "'count'.*valid integer"),
        ((), {"count": 1.0}, "'count'.*valid integer"),
        ((), {}, "'count' is missing"),
        ((), {"count": 1, "size": 2}, "no argument 'size'"),
        ((1, "a", 2), {}, "too many positional"),
        ((1,), {"count": 1}, "multiple values"),
        ((1,), {"name": "a\0b"}, "no NUL"),
        ((1,), {"name": "\ud800"}, "surrogates"),
        ((1,), {"extra": math.nan}, "not be read back"),
        ((1,), {"extra": [math.inf]}, "not be read back"),
        ((1,), {"extra": {1, 2}}, "not be read back"),
        ((1,), {"extra": (1, 2)}, "not be read back"),
        ((1,), {"extra": {1: 2}}, "not be read back"),
        ((1,), {"extra": datetime.now(UTC)}, "not be read back"),
        ((1,), {"extra": object()}, "unknown type"),
        ((10**5000,), {}, "JSON|range"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    queue: SyncTaskQueue, count_to: Any, args: tuple[Any, ...], kwargs: Any, message: str
) -> None:
    with pytest.raises(InvalidArguments, match=message):
        queue.enqueue(count_to, *args, **kwargs)

    assert queue.list_tasks() == []


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("a\0b", "Take the NUL characters out"),
        ({"a\0": 1}, "Take the NUL characters out"),
        ("a\udc80", "os.fsencode"),
        (b"\xff", "bytes that are not UTF-8"),
        ({1, 2}, "Annotate the parameter"),
    ],
)
def test_the_hint_fits_what_is_wrong(
    queue: SyncTaskQueue, count_to: Any, value: Any, hint: str
) -> None:
    with pytest.raises(InvalidArguments, match=rf"\nHint: .*{hint}"):
        queue.enqueue(count_to, 1, extra=value)
    if "Annotate" not in hint:
        with pytest.raises(InvalidArguments, match=rf"\nHint: .*{hint}"):
            queue.enqueue("app.elsewhere", extra=value)
        with pytest.raises(InvalidResult, match=rf"\nHint: .*{hint}"):
            count_to.arguments.dump_result([value])


@pytest.mark.parametrize("limit", [0, -1, 1001, 5000, True, 1.5, "50", None])
def test_a_limit_out_of_range_is_called_what_it_is_called_here(
    queue: SyncTaskQueue, limit: Any
) -> None:
    with pytest.raises(InvalidArguments, match=rf"^limit={limit!r} is not 1 to 1000\nHint"):
        queue.list_tasks(limit=limit)


def test_the_longest_list_is_the_databases(queue: SyncTaskQueue, conn: Any) -> None:
    assert queue.list_tasks(limit=1000) == []
    with pytest.raises(psycopg.Error) as refused:
        conn.execute("select tasklib.list(max_rows => 1001)")

    assert refused.value.sqlstate == "TL001"


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1001},
        {"priority": "1"},
        {"queue": ""},
        {"delay_seconds": -1},
        {"delay_seconds": math.nan},
        {"delay_seconds": 1e12},
        {"scheduled_at": datetime(2030, 1, 1)},
        {"delay_seconds": 1, "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"timeout_seconds": 0},
        {"max_retries": -1},
        {"backoff": {"base": 1}},
        {"tags": {"a": math.nan}},
        {"tags": [1]},
        {"unique_key": "k" * 300},
        {"colour": "red"},
    ],
)
def test_options_that_do_not_fit_are_refused(
    queue: SyncTaskQueue, count_to: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArguments):
        queue.enqueue(count_to.options(**options), 1)

    assert queue.list_tasks() == []


def test_a_plain_function_is_refused(queue: SyncTaskQueue) -> None:
    def plain() -> None: ...

    with pytest.raises(TaskNotRegistered, match="plain is not a task\nHint: Decorate"):
        queue.enqueue(plain)  # pyright: ignore[reportArgumentType]


async def test_a_plain_function_is_refused_by_submit_task(app: None) -> None:
    def plain() -> None: ...

    with pytest.raises(TaskLibError, match="is not a task"):
        await tasklib.submit_task(plain)


def test_one_bad_task_of_many_refuses_them_all(queue: SyncTaskQueue, count_to: Any) -> None:
    with pytest.raises(InvalidArguments):
        queue.enqueue_many([(count_to, {"count": 1}), (count_to, {"count": "2"})])

    assert queue.list_tasks() == []
