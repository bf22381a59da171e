"""The worker's calls of the SQL interface, as values like those of `_calls`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import LiteralString
from uuid import UUID

from tasklib._calls import Call, Rows, as_uuid, the_uuid
from tasklib.models import Claimed, Ticked

LISTEN: LiteralString = "listen tasklib"

# DISCARD ALL without DISCARD PLANS: to plan the queue's functions again would cost more than a
# task, and plans carry nothing from one task to the next.
FORGET_SESSION: LiteralString = """
close all; set session authorization default; reset all; deallocate all; unlisten *;
select pg_advisory_unlock_all(); discard temp; discard sequences
"""


def register_worker(
    name: str | None,
    lease_seconds: float,
    task_types: Sequence[Mapping[str, object]],
    info: Mapping[str, object],
) -> Call[UUID]:
    """Register one start of a worker process."""
    return Call(
        """select tasklib.register_worker(
          name => %(name)s::text, lease => %(lease_seconds)s::float8 * interval '1 second',
          task_types => %(task_types)s::jsonb, info => %(info)s::jsonb)""",
        {
            "name": name,
            "lease_seconds": lease_seconds,
            "task_types": json.dumps(list(task_types)),
            "info": json.dumps(dict(info)),
        },
        the_uuid,
    )


def claim(worker_id: UUID, queues: Sequence[str], max_tasks: int) -> Call[list[Claimed]]:
    """Take due tasks, best first."""
    return Call(
        """select id, attempt, name, queue, kwargs::text, retry_count, max_retries,
          timeout_seconds, tags::text, headers::text
        from tasklib.claim(worker_id => %(worker_id)s::uuid, queues => %(queues)s::text[],
          max_tasks => %(max_tasks)s::int)""",
        {"worker_id": str(worker_id), "queues": list(queues), "max_tasks": max_tasks},
        lambda rows: [Claimed(as_uuid(row[0]), *row[1:]) for row in rows],
    )


def idle(worker_id: UUID, queues: Sequence[str], max_wait_seconds: float) -> Call[float]:
    """Say that the worker goes to sleep; the answer is how many seconds it may."""
    return Call(
        """select tasklib.idle(worker_id => %(worker_id)s::uuid, queues => %(queues)s::text[],
          max_wait => %(max_wait)s::float8 * interval '1 second')""",
        {"worker_id": str(worker_id), "queues": list(queues), "max_wait": max_wait_seconds},
        lambda rows: float(rows[0][0]),
    )


def finish(
    worker_id: UUID, ids: Sequence[UUID], attempts: Sequence[int], outcomes: Sequence[str]
) -> Call[list[str]]:
    """End attempts; ``outcomes`` are JSON texts. The answers are statuses in the same order."""
    return Call(
        """select tasklib.finish(worker_id => %(worker_id)s::uuid, ids => %(ids)s::uuid[],
          attempts => %(attempts)s::int[], outcomes => %(outcomes)s::jsonb)""",
        {
            "worker_id": str(worker_id),
            "ids": [str(task_id) for task_id in ids],
            "attempts": list(attempts),
            "outcomes": f"[{','.join(outcomes)}]",
        },
        lambda rows: [row[0] for row in rows],
    )


def transaction_began() -> Call[str]:
    """Read when the transaction began: no other of the session has the same answer."""
    return Call(
        "select extract(epoch from transaction_timestamp())::text", {}, lambda rows: str(rows[0][0])
    )


def complete(task_id: UUID, worker_id: UUID, attempt: int, result: str, began: str) -> Call[bool]:
    """Complete an attempt in the transaction that did its work; False in any other transaction."""
    return Call(
        """select tasklib.complete(id => %(id)s::uuid, worker_id => %(worker_id)s::uuid,
          attempt => %(attempt)s::int, result => %(result)s::jsonb)
        where extract(epoch from transaction_timestamp()) = %(began)s::numeric""",
        {
            "id": str(task_id),
            "worker_id": str(worker_id),
            "attempt": attempt,
            "result": result,
            "began": began,
        },
        bool,
    )


def heartbeat(worker_id: UUID) -> Call[list[UUID]]:
    """Renew the worker's lease; the answers are the tasks that it shall cancel."""
    return Call(
        "select tasklib.heartbeat(worker_id => %(worker_id)s::uuid)",
        {"worker_id": str(worker_id)},
        _uuids,
    )


def cancel_requests(worker_id: UUID) -> Call[list[UUID]]:
    """Read which of the worker's tasks it shall cancel."""
    return Call(
        "select tasklib.cancel_requests(worker_id => %(worker_id)s::uuid)",
        {"worker_id": str(worker_id)},
        _uuids,
    )


def set_progress(
    task_id: UUID, worker_id: UUID, attempt: int, fraction: float, message: str | None
) -> Call[None]:
    """Store how far a running task is."""
    return Call(
        """select tasklib.set_progress(id => %(id)s::uuid, worker_id => %(worker_id)s::uuid,
          attempt => %(attempt)s::int, fraction => %(fraction)s::float8,
          message => %(message)s::text)""",
        {
            "id": str(task_id),
            "worker_id": str(worker_id),
            "attempt": attempt,
            "fraction": fraction,
            "message": message,
        },
        lambda _rows: None,
    )


def tick() -> Call[Ticked | None]:
    """Do a bounded piece of housekeeping; None when another session is at it."""
    return Call(
        "select promoted, reclaimed, timed_out, purged, more from tasklib.tick()",
        {},
        lambda rows: Ticked(*rows[0]) if rows else None,
    )


def deregister_worker(worker_id: UUID) -> Call[int]:
    """End a registration; the answer is how many tasks were handed back."""
    return Call(
        "select tasklib.deregister_worker(worker_id => %(worker_id)s::uuid)",
        {"worker_id": str(worker_id)},
        lambda rows: int(rows[0][0]),
    )


def _uuids(rows: Rows) -> list[UUID]:
    return [as_uuid(row[0]) for row in rows]
