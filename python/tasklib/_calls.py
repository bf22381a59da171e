"""Every call of the SQL interface as a value: its text, its parameters, how to read the answer.

Nothing here does I/O: the sync and the async clients run these values, and so does the worker.
Parameters are texts and numbers with casts in the SQL, so that any driver can send them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeVar, cast
from uuid import UUID

from tasklib._arguments import json_object, shown
from tasklib.errors import InvalidArguments
from tasklib.models import JSON, NO_OPTIONS, NewTask, Task

T = TypeVar("T")
Row = tuple[Any, ...]
Rows = Sequence[Row]
Params = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One statement, and how to read what it returns."""

    sql: LiteralString
    params: Params
    read: Callable[[Rows], T]


# ---- in ------------------------------------------------------------------------------------------

_ENQUEUE: dict[str, LiteralString] = {
    "queue": "queue => %(queue)s::text",
    "priority": "priority => %(priority)s::int",
    "delay_seconds": "delay => %(delay_seconds)s::float8 * interval '1 second'",
    "scheduled_at": "scheduled_at => %(scheduled_at)s::timestamptz",
    "max_retries": "max_retries => %(max_retries)s::int",
    "timeout_seconds": "timeout_seconds => %(timeout_seconds)s::float8",
    "tags": "tags => %(tags)s::jsonb",
    "unique_key": "unique_key => %(unique_key)s::text",
    "concurrency_key": "concurrency_key => %(concurrency_key)s::text",
    "headers": "headers => %(headers)s::jsonb",
    "unique_until": "unique_until => %(unique_until)s::text",
    "backoff": "backoff => %(backoff)s::jsonb",
}


def enqueue(task: NewTask) -> Call[UUID]:
    """Insert one task; the answer is its id, or that of the holder of its unique key."""
    # What is not given is not sent: most tasks are a name and some arguments.
    text: LiteralString = (
        "select tasklib.enqueue(name => %(name)s::text, kwargs => %(kwargs)s::jsonb"
    )
    params: dict[str, object] = {"name": task.name, "kwargs": task.kwargs}
    options = task.options
    if options is NO_OPTIONS:
        return Call(text + ")", params, the_uuid)
    given: dict[str, object] = {
        "queue": options.queue,
        "priority": options.priority,
        "delay_seconds": options.delay_seconds or None,
        "scheduled_at": options.scheduled_at and options.scheduled_at.isoformat(),
        "max_retries": options.max_retries,
        "timeout_seconds": options.timeout_seconds,
        "tags": _json_or_none(options.tags),
        "unique_key": options.unique_key,
        "concurrency_key": options.concurrency_key,
        "headers": _json_or_none(options.headers),
        "unique_until": options.unique_until,
        "backoff": options.backoff and options.backoff.model_dump_json(),
    }
    for name, value in given.items():
        if value is not None:
            text = text + ", " + _ENQUEUE[name]
            params[name] = value
    return Call(text + ")", params, the_uuid)


def enqueue_many(tasks: Sequence[NewTask]) -> Call[list[UUID]]:
    """Insert many tasks, all or none; the answers are their ids in the same order."""
    return Call(
        "select id from tasklib.enqueue_many(tasks => %(tasks)s::jsonb)",
        {"tasks": f"[{','.join(map(_as_element, tasks))}]"},
        lambda rows: [as_uuid(row[0]) for row in rows],
    )


def _as_element(task: NewTask) -> str:
    options = task.options
    given = {
        "name": task.name,
        "queue": options.queue,
        "priority": options.priority,
        "delay": options.delay_seconds or None,
        "scheduled_at": options.scheduled_at and options.scheduled_at.isoformat(),
        "max_retries": options.max_retries,
        "timeout_seconds": options.timeout_seconds,
        "tags": options.tags,
        "unique_key": options.unique_key,
        "concurrency_key": options.concurrency_key,
        "headers": options.headers,
        "unique_until": options.unique_until,
        "backoff": options.backoff and options.backoff.model_dump(),
    }
    fields = json.dumps({key: value for key, value in given.items() if value is not None})
    # The arguments are JSON text already, checked to read back: they go in as they are.
    return f'{fields[:-1]}, "kwargs": {task.kwargs}}}'


# ---- looking and steering ------------------------------------------------------------------------

_TASK: LiteralString = """
select id, name, queue, state, kwargs::text, result::text, error, retry_count, max_retries,
  next_retry_at, worker_id, locked_until, scheduled_at, created_at, started_at, completed_at,
  timeout_seconds, priority, tags::text, attempt, cancel_requested_at, headers::text, unique_key,
  concurrency_key, enqueued_by, progress, progress_message
"""
_TASK_FIELDS = tuple(
    field.strip().removesuffix("::text")
    for field in _TASK.strip().removeprefix("select").split(",")
)
_JSON_FIELDS = ("kwargs", "result", "tags", "headers")
MOST_LISTED = 1000


def get(task_id: UUID) -> Call[Task | None]:
    """Read one task."""
    return Call(
        _TASK + "from tasklib.get(id => %(id)s::uuid)",
        {"id": str(task_id)},
        lambda rows: _task(rows[0]) if rows else None,
    )


def list_tasks(
    state: str | None,
    name: str | None,
    queue: str | None,
    tags: Mapping[str, Any] | None,
    limit: int,
    before: UUID | None,
) -> Call[list[Task]]:
    """Read tasks, newest first.

    Raises:
        InvalidArguments: JSON cannot hold the tags, or the limit is out of range. The database says
            the latter, too, but of an argument that has another name there.
    """
    if type(limit) is not int or not 1 <= limit <= MOST_LISTED:
        raise InvalidArguments(
            f"limit={shown(limit)} is not 1 to {MOST_LISTED}",
            hint="Go on after a page with before=, the id of its last task.",
        )
    texts: dict[str, object] = {"state": state, "name": name, "queue": queue}
    for label, value in texts.items():
        if not isinstance(value, str | None):
            raise InvalidArguments(f"{label}={shown(value)} is not a text")
    return Call(
        _TASK
        + """from tasklib.list(
          state => %(state)s::text, name => %(name)s::text, queue => %(queue)s::text,
          tags => %(tags)s::jsonb, max_rows => %(max_rows)s::int, before => %(before)s::uuid)""",
        {
            "state": state,
            "name": name,
            "queue": queue,
            "tags": None if tags is None else json_object(tags, "tags"),
            "max_rows": limit,
            "before": before and str(before),
        },
        lambda rows: [_task(row) for row in rows],
    )


def cancel(task_id: UUID) -> Call[str]:
    """Cancel a task, or ask the worker that runs it."""
    return Call("select tasklib.cancel(id => %(id)s::uuid)", {"id": str(task_id)}, _text)


def retry(task_id: UUID) -> Call[str]:
    """Make a failed or cancelled task pending again."""
    return Call("select tasklib.retry(id => %(id)s::uuid)", {"id": str(task_id)}, _text)


# ---- the connection ------------------------------------------------------------------------------


def backend_pid() -> Call[int]:
    """Read which server process answers."""
    return Call("select pg_backend_pid()", {}, lambda rows: int(rows[0][0]))


# ---- reading -------------------------------------------------------------------------------------


def decoded(text: str | None) -> JSON:
    """Read JSON that is shown to people: what Python cannot hold stays text."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _task(row: Row) -> Task:
    fields: dict[str, Any] = dict(zip(_TASK_FIELDS, row, strict=True))
    for name in _JSON_FIELDS:
        fields[name] = decoded(fields[name])
    return Task.model_validate(fields)


def _json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)


def as_uuid(value: object) -> UUID:
    """Read a UUID, which some drivers return as text."""
    return value if isinstance(value, UUID) else UUID(cast("str", value))


def the_uuid(rows: Rows) -> UUID:
    """Read the one UUID of an answer."""
    return as_uuid(rows[0][0])


def _text(rows: Rows) -> str:
    return rows[0][0]
