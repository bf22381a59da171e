"""The worker's calls of the SQL interface, as values like those of `_calls`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from tasklib._calls import Call, Row, Rows
from tasklib.models import Claimed, Ticked

LISTEN: LiteralString = "listen tasklib"


def handed_over(payload: str) -> tuple[str, Row]:
    """Read what a commit says that hands over a task: the registration, and a row of a claim.

    Raises:
        ValueError: It is something else.
        TypeError: The same.
    """
    worker_id, *row = json.loads(payload)
    # a later schema may say more
    return worker_id, (*Claimed._make(row[: len(Claimed._fields)]),)


# DISCARD ALL without DISCARD PLANS: to plan the queue's functions again would cost more than a
# task, and plans carry nothing from one task to the next.
FORGET_SESSION: LiteralString = """
close all; set session authorization default; reset all; deallocate all; unlisten *;
select pg_advisory_unlock_all(); discard temp; discard sequences
"""


def probe(payload: str) -> Call[None]:
    """Send a notification, to find out whether it is heard."""
    return Call(
        "select pg_notify('tasklib', %(payload)s::text)",
        {"payload": payload},
        lambda _rows: None,
    )


def register_worker(
    name: str | None,
    lease_seconds: float,
    task_types: Sequence[Mapping[str, object]],
    info: Mapping[str, object],
) -> Call[str]:
    """Register one start of a worker process; the answer is its id."""
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
        lambda rows: str(rows[0][0]),
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """Attempts of one registration that are over, and how; ``outcomes`` are JSON texts."""

    worker_id: str
    ids: Sequence[str]
    attempts: Sequence[int]
    outcomes: Sequence[str]

    @property
    def params(self) -> dict[str, object]:
        """The arguments of ``finish``: texts, which cost far less to send than lists."""
        return {
            "worker_id": self.worker_id,
            "ids": f"{{{','.join(self.ids)}}}",
            "attempts": f"{{{','.join(map(str, self.attempts))}}}",
            "outcomes": f"[{','.join(self.outcomes)}]",
        }


@dataclass(frozen=True, slots=True)
class Idle:
    """How long a worker means to sleep, and whether it has been idle for a while.

    Attributes:
        channel: Where the next lone task may be handed over to it; None when it takes none.
    """

    max_wait_seconds: float
    for_long: bool
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What one call told; what it takes to read it can wait until the next call is under way.

    Attributes:
        rows: One for each task.
        told: How each attempt that was sent ended, as one text.
        wait: Seconds until the next task is due, when the worker said that it sleeps.
    """

    rows: Rows
    told: str | None = None
    wait: float | None = None

    @property
    def statuses(self) -> list[str]:
        """What became of each attempt that was sent, in the same order."""
        return self.told.split(",") if self.told else []

    @property
    def claimed(self) -> list[Claimed]:
        """The new tasks, best first."""
        return [Claimed._make(row) for row in self.rows]


# Each part reads from the one before it, so that they are done in this order.
_FINISH: LiteralString = """
ended as materialized (
  select string_agg(status, ',') as statuses, count(*)::int as count
  from tasklib.finish(worker_id => %(worker_id)s::uuid, ids => %(ids)s::uuid[],
    attempts => %(attempts)s::int[], outcomes => %(outcomes)s::jsonb) as status
)"""
_NOTHING_ENDED: LiteralString = "ended as materialized (select null as statuses, 0 as count)"
_LIES_DOWN: LiteralString = """(
  select ended.statuses, tasklib.idle(worker_id => %(worker_id)s::uuid,
    queues => %(queues)s::text[],
    max_wait => (%(max_wait)s::float8 + 0 * ended.count) * interval '1 second',
    for_long => %(for_long)s::boolean) as wait
  from ended
)"""
_IDLE: LiteralString = "asleep as materialized " + _LIES_DOWN
_OFFER: LiteralString = """,
asleep as materialized (
  select tired.statuses, tired.wait, tasklib.offer(worker_id => %(worker_id)s::uuid,
    queues => %(queues)s::text[], channel => %(channel)s::text)
  from tired
)"""
_IDLE_AND_OFFER: LiteralString = "tired as materialized " + _LIES_DOWN + _OFFER
_AWAKE: LiteralString = """
asleep as materialized (
  select ended.statuses, null::float8 + ended.count as wait from ended
)"""
_TASK: LiteralString = """
select task.id::text, task.attempt, task.name, task.queue, task.kwargs::text,
  task.retry_count, task.max_retries, task.timeout_seconds, task.tags::text, task.headers::text
"""
# The first row has no task, but what the other parts told, in columns of the same types.
_CLAIM: LiteralString = (
    """
select asleep.statuses, null::int, null::text, null::text, null::text, null::int, null::int,
  asleep.wait, null::text, null::text
from asleep
union all"""
    + _TASK
    + """from asleep cross join lateral tasklib.claim(worker_id => %(worker_id)s::uuid,
  queues => %(queues)s::text[],
  max_tasks => %(max_tasks)s::int + coalesce(0 * asleep.wait, 0)::int) as task
"""
)
_CLAIM_ALONE: LiteralString = (
    _TASK
    + """from tasklib.claim(worker_id => %(worker_id)s::uuid, queues => %(queues)s::text[],
  max_tasks => %(max_tasks)s::int) as task
"""
)


def exchange(
    worker_id: str,
    queues: Sequence[str],
    max_tasks: int,
    ended: Ended | None = None,
    idle: Idle | None = None,
) -> Call[Exchanged]:
    """End attempts, then say that the worker sleeps, then claim: in one transaction.

    Args:
        worker_id: The registration.
        queues: The queues to claim from.
        max_tasks: How many tasks to claim at most.
        ended: What to end first, of the same registration.
        idle: Given when the worker is going to sleep unless something is found.
    """
    params: dict[str, object] = {
        "worker_id": worker_id,
        "queues": _array(queues),
        "max_tasks": max_tasks,
    }
    if ended is not None:
        params |= ended.params
    sleep = _AWAKE
    if idle is not None:
        params |= {"max_wait": idle.max_wait_seconds, "for_long": idle.for_long}
        sleep = _IDLE
        if idle.channel is not None:
            params["channel"] = idle.channel
            sleep = _IDLE_AND_OFFER
    if ended is None and idle is None:
        return Call(_CLAIM_ALONE, params, _claimed)
    finish = _NOTHING_ENDED if ended is None else _FINISH
    return Call("with " + finish + "," + sleep + _CLAIM, params, _exchanged)


def _array(texts: Sequence[str]) -> str:
    """Write a PostgreSQL array of texts; quotes and backslashes are all that ends a quoted one."""
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _claimed(rows: Rows) -> Exchanged:
    return Exchanged(rows)


def _exchanged(rows: Rows) -> Exchanged:
    first, *others = rows
    return Exchanged(others, told=first[0], wait=first[7])


def finish(ended: Ended) -> Call[Sequence[str]]:
    """End attempts. The answers are statuses in the same order."""
    return Call(
        "select string_agg(status, ',') from tasklib.finish(worker_id => %(worker_id)s::uuid, "
        "ids => %(ids)s::uuid[], attempts => %(attempts)s::int[], "
        "outcomes => %(outcomes)s::jsonb) as status",
        ended.params,
        lambda rows: rows[0][0].split(","),
    )


def transaction_began() -> Call[str]:
    """Read when the transaction began: no other of the session has the same answer."""
    return Call(
        "select extract(epoch from transaction_timestamp())::text", {}, lambda rows: str(rows[0][0])
    )


def complete(task_id: str, worker_id: str, attempt: int, result: str, began: str) -> Call[bool]:
    """Complete an attempt in the transaction that did its work; False in any other transaction."""
    return Call(
        """select tasklib.complete(id => %(id)s::uuid, worker_id => %(worker_id)s::uuid,
          attempt => %(attempt)s::int, result => %(result)s::jsonb)
        where extract(epoch from transaction_timestamp()) = %(began)s::numeric""",
        {
            "id": task_id,
            "worker_id": worker_id,
            "attempt": attempt,
            "result": result,
            "began": began,
        },
        bool,
    )


# What the keeper runs, which knows nothing but these texts and the ids to put into them.
HEARTBEAT: LiteralString = "select tasklib.heartbeat(worker_id => %(worker_id)s::uuid)::text"
CANCEL_REQUESTS: LiteralString = (
    "select tasklib.cancel_requests(worker_id => %(worker_id)s::uuid)::text"
)
SET_PROGRESS: LiteralString = """
select tasklib.set_progress(id => %(id)s::uuid, worker_id => %(worker_id)s::uuid,
  attempt => %(attempt)s::int, fraction => %(fraction)s::float8, message => %(message)s::text)
"""
TICK: LiteralString = "select more from tasklib.tick()"
CRASHED: LiteralString = (
    "select tasklib.deregister_worker(worker_id => %(worker_id)s::uuid, crashed => true, "
    "begun => %(begun)s::uuid[])"
)


def heartbeat(worker_id: str) -> Call[None]:
    """Renew a lease, which tells whether the registration is still one."""
    return Call(HEARTBEAT, {"worker_id": worker_id}, lambda _rows: None)


def tick() -> Call[Ticked | None]:
    """Do a bounded piece of housekeeping; None when another session is at it."""
    return Call(
        "select promoted, reclaimed, timed_out, purged, more from tasklib.tick()",
        {},
        lambda rows: Ticked(*rows[0]) if rows else None,
    )


def withdraw(worker_id: str) -> Call[None]:
    """Let nothing more be handed over to a registration."""
    return Call(
        "select tasklib.offer(worker_id => %(worker_id)s::uuid)::text",
        {"worker_id": worker_id},
        lambda _: None,
    )


def check_registration(worker_id: str) -> Call[None]:
    """Ask whether a worker is registered; nothing is renewed or changed."""
    return Call(
        "select tasklib.release(worker_id => %(worker_id)s::uuid, ids => '{}', attempts => '{}')",
        {"worker_id": worker_id},
        lambda _: None,
    )


def deregister_worker(worker_id: str) -> Call[int]:
    """End a registration; the answer is how many tasks were handed back."""
    return Call(
        "select tasklib.deregister_worker(worker_id => %(worker_id)s::uuid)",
        {"worker_id": worker_id},
        lambda rows: int(rows[0][0]),
    )
