"""Workers and producers need no more than their roles."""

from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from tasklib import PermissionDenied, SyncTaskQueue


def as_role(database: str, role: str) -> SyncTaskQueue:
    return SyncTaskQueue(make_conninfo(database, options=f"-c role={role}"))


def test_a_worker_needs_only_its_role(database: str, queue: SyncTaskQueue, drain: Any) -> None:
    with as_role(database, "tasklib_worker") as worker_side:

        @worker_side.task(name="app.add")
        def add(a: int, b: int) -> int:
            return a + b

        task_id = queue.enqueue("app.add", a=1, b=2)
        drain(worker_side)
        with pytest.raises(PermissionDenied):
            worker_side.enqueue(add, 1, 2)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == 3


def test_a_producer_needs_only_its_role(database: str, drain: Any) -> None:
    with as_role(database, "tasklib_producer") as producer_side:
        task_id = producer_side.enqueue("app.add", a=1)
        producer_side.enqueue_many([("app.add", {}), ("app.add", {})])

        task = producer_side.get_task(task_id)
        assert task is not None
        assert task.kwargs == {"a": 1}
        assert producer_side.cancel_task(task_id) == "cancelled"
        with pytest.raises(PermissionDenied):
            drain(producer_side)
