"""Waiting for a task's end, without I/O: when to look, and what was found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from tasklib._arguments import shown
from tasklib.errors import InvalidArguments, TaskNotFound
from tasklib.models import Task, TaskResult
from tasklib.registry import Registry

TaskId = UUID | str

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.5


def as_id(task_id: TaskId) -> UUID:
    """Return the id as a UUID.

    Raises:
        InvalidArguments: It is not one.
    """
    if isinstance(task_id, UUID):
        return task_id
    try:
        return UUID(task_id)
    except (ValueError, AttributeError, TypeError):
        raise InvalidArguments(f"{shown(task_id)} is not the id of a task (a UUID)") from None


def pauses(timeout: float | None) -> Iterator[float | None]:
    """Yield the seconds to wait after each look; None after the last one.

    Args:
        timeout: Seconds until the last look; None goes on for ever.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        left = pause if deadline is None else deadline - time.monotonic()
        if left <= 0:
            yield None
            return
        yield min(pause, left)
        pause = min(pause * 1.5, LONGEST_PAUSE)


def ended(task: Task | None, task_id: TaskId, registry: Registry) -> TaskResult[Any] | None:
    """Return how a task ended, or None while it has not.

    Raises:
        TaskNotFound: There is no such task.
    """
    if task is None:
        raise TaskNotFound(
            f"there is no task {task_id}",
            hint="Was the transaction that enqueued it committed, or the task purged?",
        )
    if not task.is_terminal:
        return None
    return TaskResult(task.id, task.state, _value(task, registry), task.error)


def _value(task: Task, registry: Registry) -> Any:
    if not task.is_completed:
        return None
    value = task.result
    if isinstance(value, dict) and value.keys() == {"value"}:
        value = value["value"]
    known = registry.tasks.get(task.name)
    return known.arguments.load_result(value) if known else value
