"""Hostile values for the Python interface: what comes out is a result or a TaskLibError."""

from __future__ import annotations

import datetime
import math
import os
import random
import reprlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

import tasklib
from tasklib import SyncTaskQueue, TaskLibError

CALLS = int(os.environ.get("TASKLIB_TEST_FUZZ_PYTHON_CALLS", "1500"))
SEED = int(os.environ.get("TASKLIB_TEST_FUZZ_SEED", "0"))


def hostile_values() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    return [
        *(
            None,
            True,
            0,
            -1,
            2**31,
            2**63,
            2**70,
            10**400,
            0.5,
            -0.0,
            math.nan,
            math.inf,
            -math.inf,
        ),
        *("", "x", "a\x00b", "\ud800", "x" * 300_000, "'; --", "%s %I", "é" * 100, "completed"),
        *(
            b"",
            b"\xff",
            [],
            [1],
            {},
            {"a": 1},
            {1: 2},
            {"\x00": 1},
            {"a": {"b": [None]}},
            set[int](),
        ),
        *(endless, deep, {"a": deep}, object(), type, len, uuid4(), str(uuid4()), "default"),
        *(datetime.datetime.max, datetime.datetime.min, datetime.datetime.now(datetime.UTC)),
        *(datetime.date.max, datetime.timedelta.max, datetime.timedelta(-1), 1e300, 5e-324, 1 + 2j),
    ]


OPTIONS = (
    *(
        "delay_seconds",
        "scheduled_at",
        "priority",
        "queue",
        "max_retries",
        "timeout_seconds",
        "tags",
    ),
    *("unique_key", "unique_until", "concurrency_key", "headers", "backoff"),
)


def calls(queue: SyncTaskQueue, work: Any, value: Callable[[], Any]) -> list[Callable[[], Any]]:
    """Return one way to call each public function."""
    option = {random.choice(OPTIONS): value()}
    look = random.choice(("state", "name", "queue", "tags", "limit", "before"))
    return [
        lambda: queue.enqueue(work, x=value()),
        lambda: queue.enqueue(work, value()),
        lambda: queue.enqueue(work, **{random.choice(["y", "x", "self"]): value()}),
        lambda: queue.enqueue(work.options(**option), x=1),
        lambda: queue.enqueue(value(), x=1),
        lambda: work.options(**option).delay(x=value()),
        lambda: work.delay(value()),
        lambda: queue.enqueue_many([(work, {"x": value()}), (work, {"x": 1})]),
        lambda: queue.enqueue_many([(work.options(**option), {"x": 1})]),
        lambda: queue.enqueue_many([(value(), value())]),
        lambda: queue.get_task(value()),
        lambda: queue.list_tasks(**{look: value()}),
        lambda: queue.get_result(value(), timeout=0),
        lambda: queue.retry_task(value()),
        lambda: queue.cancel_task(value()),
        lambda: tasklib.get_task(value()),
        lambda: tasklib.list_tasks(**{look: value()}),
        lambda: tasklib.cancel_task(value()),
        lambda: tasklib.retry_task(value()),
    ]


@pytest.mark.slow
def test_hostile_values_end_in_documented_exceptions(database):
    random.seed(SEED)
    values = hostile_values()
    faults: dict[str, str] = {}
    tasklib.init(database)
    with SyncTaskQueue(database) as queue:

        @queue.task
        def work(x: Any = None) -> None: ...

        for n in range(CALLS):
            chosen: list[Any] = []

            def value(chosen: list[Any] = chosen) -> Any:
                chosen.append(random.choice(values))
                return chosen[-1]

            made = calls(queue, work, value)
            try:
                made[n % len(made)]()
            except TaskLibError:
                pass
            except Exception as error:
                shown = [type(item).__name__ + " " + reprlib.repr(item) for item in chosen]
                faults[f"{n % len(made)}: {type(error).__name__}"] = f"{error!s:.200} for {shown}"
    tasklib.close()

    assert faults == {}
