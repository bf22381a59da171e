"""The queue in the database, as the machines call it, empty it and look at it."""

from __future__ import annotations

from ast import literal_eval
from dataclasses import dataclass
from typing import Any, LiteralString, cast
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from model.model import Model, Task

# Times are numbers of seconds from now.
_SECONDS = "%({0})s::float8 * interval '1 second'"
_FORMS = {
    **dict.fromkeys(
        ("delay", "lease", "retry_in", "max_wait", "older_than", "retention"), _SECONDS
    ),
    "scheduled_at": "clock_timestamp() + " + _SECONDS,
}
_JSON = ("kwargs", "tags", "backoff", "tasks", "task_types", "outcomes", "result")


def call(conn: Connection[Any], function: str, /, **arguments: Any) -> list[Any]:
    """Call a function of the queue by named arguments; return its rows."""
    named = ", ".join(f"{name} => {_FORMS.get(name, '%({0})s').format(name)}" for name in arguments)
    values = {
        name: Jsonb(value) if name in _JSON and value is not None else value
        for name, value in arguments.items()
    }
    return run(conn, f"select * from tasklib.{function}({named})", values)


def run(conn: Connection[Any], text: str, values: dict[str, Any] | None = None) -> list[Any]:
    cursor = conn.execute(cast("LiteralString", text), values)
    return cursor.fetchall() if cursor.description else []


# -- emptying

_KEPT = ("migration", "config", "housekeeping", "backlog_round")


def empty(conn: Connection[Any]) -> None:
    """Begin anew, in a database where somebody ticks. Deleting is quicker than truncating."""
    tables = run(
        conn,
        "select tablename from pg_tables"
        " where schemaname = 'tasklib' and tablename <> all (%(kept)s)",
        {"kept": list(_KEPT)},
    )
    conn.execute(cast("LiteralString", ";".join(f"delete from tasklib.{t}" for (t,) in tables)))
    conn.execute("select tasklib.set_strict(false)")  # with the rules, what follows from them
    flags = ("asleep_until", "notified_at", "offer")
    conn.execute("select " + ", ".join(f"setval('tasklib.{flag}', 0)" for flag in flags))
    # marks move by 200 positions at least
    conn.execute("select setval('tasklib.position', last_value + 201) from tasklib.position")
    conn.execute("select tasklib.tick()")


def vacuum(conn: Connection[Any]) -> None:
    """Remove what `empty` left."""
    conn.execute("vacuum")


# -- time


def advance(conn: Connection[Any], seconds: float, *, silent: bool = False) -> None:
    """Move every stored time into the past; when silent, also that of the last tick."""
    columns = run(
        conn,
        "select relname, array_agg(attname::text) from pg_attribute"
        " join pg_class on pg_class.oid = attrelid"
        " where relnamespace = 'tasklib'::regnamespace and relkind = 'r' and not attisdropped"
        " and atttypid = 'timestamptz'::regtype and relname <> all (%(kept)s) group by relname",
        {"kept": ["migration", "time_mark"] + ["horizon"] * (not silent)},
    )
    by = f"interval '{seconds} seconds'"
    moves = [
        f"update tasklib.{table} set " + ", ".join(f"{name} = {name} - {by}" for name in names)
        for table, names in columns
    ]
    # what was proven by the clock
    moves.append("delete from tasklib.time_mark")
    moves.append(
        "select setval('tasklib.asleep_until',"
        f" greatest(0, last_value - {seconds * 1000:.0f})) from tasklib.asleep_until"
    )
    conn.execute(cast("LiteralString", ";".join(moves)))


def ticked_now(conn: Connection[Any]) -> None:
    """Let the last tick be of this moment."""
    conn.execute("update tasklib.horizon set at = clock_timestamp()")


def ticked_lately(conn: Connection[Any]) -> bool:
    """Say whether somebody ticked within the last 30 s."""
    ((answer,),) = run(
        conn,
        "select coalesce(max(at) > clock_timestamp() - interval '30 seconds', false)"
        " from tasklib.horizon",
    )
    return answer


# -- looking

PLACES = """
select place.task_id, place.place, place.attempt, place.holds_key, place.reason, place.worker_id,
  task.queue, task.priority::int, coalesce(allowance.excused, 0), coalesce(allowance.releases, 0),
  coalesce(allowance.crashes, 0), cancel_request.task_id is not null,
  place.pos, extract(epoch from place.time - clock_timestamp())::float8, place.spot::text
from (
  select task_id, 'ready' as place, attempt, holds_key, null::"char" as reason,
    null::uuid as worker_id, pos, null::timestamptz as time, null::tid as spot
  from tasklib.ready
  union all
  select task_id, 'waiting', attempt, false, null, null, pos, null, null from tasklib.waiting
  union all
  select task_id, 'parked', attempt, false, null, null, null, null, null from tasklib.parked
  union all
  select task_id, 'delayed', attempt, false, reason, null, null, run_at, null from tasklib.delayed
  union all
  select task_id, 'running', attempt, false, null, worker_id, null, deadline, ctid
  from tasklib.running
  union all
  select task_id, (array['completed', 'failed', 'cancelled'])[state], attempt, false, null,
    worker_id, null, null, null
  from tasklib.done
) as place
  full join tasklib.task on task.id = place.task_id
  left join tasklib.allowance on allowance.task_id = place.task_id
  left join tasklib.cancel_request on cancel_request.task_id = place.task_id
"""
_REST = """
select 'unique', queue || ' ' || key, task_id::text, null::float8 from tasklib.unique_key
union all
select 'gate', task.queue || ' ' || task.concurrency_key, task_id::text, null
from tasklib.gate left join tasklib.task on task.id = task_id
union all
select 'worker', id::text, null, extract(epoch from lease_until - clock_timestamp())
from tasklib.worker where lost_at is null
union all
select 'failure', task_id || ' ' || attempt, worker_id || ' ' || cause,
  case when retry_at is not null -- at most 5 years, without leap days
    then least(extract(epoch from retry_at - failed_at), 157680000) end
from tasklib.failure
union all
select 'offer', (last_value >> 20)::text, null, null from tasklib.offer where last_value > 0
union all
select 'note', task_id::text, null, null from tasklib.handover
"""


@dataclass
class Picture:
    """Everything that is compared after each step."""

    tasks: dict[UUID, tuple[Any, ...]]
    line: list[UUID]  # ready and waiting, in the order of their positions
    times: dict[tuple[str, str], float]  # seconds from now
    rest: set[tuple[Any, ...]]
    spots: dict[UUID, tuple[int, ...]]


def look(conn: Connection[Any]) -> Picture:
    """Read all tables whole."""
    with conn.pipeline():
        places_cursor, rest_cursor = conn.execute(PLACES), conn.execute(_REST)
        places, rest = places_cursor.fetchall(), rest_cursor.fetchall()
    line = sorted((row[12], row[0]) for row in places if row[12] is not None)
    times = {(row[1], str(row[0])): row[13] for row in places if row[13] is not None}
    times |= {(kind, what): time for kind, what, _, time in rest if kind == "worker"}
    return Picture(
        tasks={row[0]: row[1:12] for row in places},
        line=[task_id for _, task_id in line],
        times=times,
        rest={
            (kind, what, whose, None if kind == "worker" else time)
            for kind, what, whose, time in rest
        },
        spots={row[0]: literal_eval(row[14]) for row in places if row[14]},
    )


def expected(model: Model) -> Picture:
    """Return what `look` should see."""
    line = sorted(model.at("ready", "waiting"), key=lambda task: task.turn)
    times = {("delayed", str(t.id)): t.run_at - model.now for t in model.at("delayed")}
    times |= {
        ("running", str(task.id)): task.deadline - model.now
        for task in model.at("running")
        if task.deadline is not None
    }
    times |= {("worker", str(w.id)): w.lease_until - model.now for w in model.live()}
    rest: set[tuple[Any, ...]] = {("worker", str(w.id), None, None) for w in model.live()}
    rest |= {("offer", str(w.int >> 88), None, None) for w in [model.offer] if w is not None}
    rest |= {("unique", " ".join(key), str(task.id), None) for key, task in model.unique.items()}
    rest |= {("gate", " ".join(gate), str(task.id), None) for gate, task in model.gates.items()}
    rest |= {
        ("failure", f"{task.id} {attempt}", f"{failure.worker} {failure.cause}", failure.wait)
        for task in model.tasks.values()
        for attempt, failure in task.failures.items()
    }
    return Picture(
        {task.id: _row(task) for task in model.tasks.values()},
        [task.id for task in line],
        times,
        rest,
        {},
    )


def _row(task: Task) -> tuple[Any, ...]:
    return (
        *(task.state if task.place == "done" else task.place, task.attempt, task.holds_key),
        task.reason if task.place == "delayed" else None,
        task.worker if task.place in ("running", "done") else None,
        *(task.queue, task.priority, task.excused, task.releases, task.crashes, task.asked),
    )
