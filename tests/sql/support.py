"""Calls of the queue by name, time that is moved instead of waited for, and sessions that wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

import pgbouncer

TABLES = (
    *("task", "ready", "delayed", "waiting", "parked", "running", "done", "failure", "allowance"),
    *("progress", "tag", "cancel_request", "unique_key", "gate", "gate_check", "worker"),
    *("task_type", "queue", "mark", "time_mark", "horizon", "config"),
    *("rule", "role_limit", "backlog", "backlog_round"),
)
# A pooler says made-up process ids: then it is any session of the test's database.
BLOCKED = """
select coalesce(bool_or(cardinality(pg_blocking_pids(pid)) > 0), false) from pg_locks
where pid = %(pid)s or %(pooled)s
  and database = (select oid from pg_database where datname = current_database())
"""


def run(conn: Connection[Any], text: str, *arguments: object, **named: object) -> list[Any]:
    """Run one statement and return its rows, as named tuples."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        cursor.execute(cast("LiteralString", text), named or arguments or None)
        return cursor.fetchall() if cursor.description else []


def one(conn: Connection[Any], text: str, *arguments: object, **named: object) -> Any:
    """Run one statement and return the first value of its only row."""
    (row,) = run(conn, text, *arguments, **named)
    return row[0]


def rows(conn: Connection[Any], function: str, /, **arguments: object) -> list[Any]:
    """Call a function of the queue by named arguments and return its rows."""
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    values = {n: Jsonb(v) if isinstance(v, dict) else v for n, v in arguments.items()}
    return run(conn, f"select * from tasklib.{function}({named})", **values)


def call(conn: Connection[Any], function: str, /, **arguments: object) -> Any:
    """Call a function that returns one value."""
    (row,) = rows(conn, function, **arguments)
    return row[0]


def enqueue(conn: Connection[Any], name: str = "t", **options: object) -> UUID:
    return call(conn, "enqueue", name=name, **options)


def enqueue_many(conn: Connection[Any], *tasks: object) -> list[Any]:
    return rows(conn, "enqueue_many", tasks=Jsonb(list(tasks)))


def register(conn: Connection[Any], *names: object, **options: object) -> UUID:
    """Register a worker for some names, or for any."""
    types = Jsonb(list(names)) if names else None
    return call(conn, "register_worker", task_types=types, **options)


def claim(
    conn: Connection[Any], worker: UUID, max_tasks: int = 1, queues: Sequence[str] = ("default",)
) -> list[Any]:
    return rows(conn, "claim", worker_id=worker, queues=list(queues), max_tasks=max_tasks)


def claim_one(conn: Connection[Any], worker: UUID, queues: Sequence[str] = ("default",)) -> Any:
    (task,) = claim(conn, worker, 1, queues)
    return task


def complete(conn: Connection[Any], worker: UUID, task: Any, result: object = None) -> None:
    run(
        conn,
        "select tasklib.complete(%s, %s, %s, %s)",
        task.id,
        worker,
        task.attempt,
        None if result is None else Jsonb(result),
    )


def fail(conn: Connection[Any], worker: UUID, task: Any, **options: object) -> Any:
    (outcome,) = rows(conn, "fail", id=task.id, worker_id=worker, attempt=task.attempt, **options)
    return outcome


def finish(
    conn: Connection[Any], worker: UUID, tasks: Sequence[Any], outcomes: object = None
) -> list[str]:
    """Finish a batch and return its statuses."""
    found = rows(
        conn,
        "finish",
        worker_id=worker,
        ids=[task.id for task in tasks],
        attempts=[task.attempt for task in tasks],
        outcomes=None if outcomes is None else Jsonb(outcomes),
    )
    return [row[0] for row in found]


def tick(conn: Connection[Any], max_rows: int = 1000) -> Any:
    """Keep house once; None when another session is at it."""
    found = rows(conn, "tick", max_rows=max_rows)
    return found[0] if found else None


def sweep(conn: Connection[Any]) -> int:
    return call(conn, "sweep")


def task(conn: Connection[Any], task_id: UUID) -> Any:
    """Return a task as people see it."""
    (row,) = run(conn, "select * from tasklib.tasks where id = %s", task_id)
    return row


def state(conn: Connection[Any], task_id: UUID) -> str:
    return task(conn, task_id).state


def states(conn: Connection[Any], *ids: UUID) -> list[str]:
    return [state(conn, task_id) for task_id in ids]


def advance(conn: Connection[Any], interval: str) -> None:
    """Let time pass: move every stored time into the past.

    Not the notes of tick: with an older one it takes the server for just started, see `gap`.
    """
    for table, columns in {
        "task": "created_at scheduled_at",
        "delayed": "run_at",
        "running": "started_at deadline",
        "done": "started_at finished_at",
        "failure": "failed_at retry_at",
        "progress": "updated_at",
        "cancel_request": "requested_at",
        "worker": "registered_at lease_until lost_at cleared_at",
        "task_type": "updated_at",
        "mark": "noted_at",
        "time_mark": "low",
    }.items():
        changes = ", ".join(f"{name} = {name} - %(by)s::interval" for name in columns.split())
        run(conn, f"update tasklib.{table} set {changes}", by=interval)


def gap(conn: Connection[Any], interval: str) -> None:
    """Let time pass in which nobody ticked."""
    advance(conn, interval)
    run(conn, "update tasklib.horizon set at = at - %s::interval", interval)


def tick_through(conn: Connection[Any], seconds: int) -> None:
    """Let time pass as it does where somebody ticks."""
    while seconds > 0:
        advance(conn, f"{min(20, seconds)} seconds")
        tick(conn)
        seconds -= 20


def due(conn: Connection[Any]) -> None:
    """Let everything that is delayed become due now."""
    run(conn, "update tasklib.delayed set run_at = clock_timestamp() - interval '1 second'")
    run(conn, "delete from tasklib.time_mark")
    tick(conn)


@contextmanager
def refused(code: str, message: str = "", case: object = None) -> Generator[list[psycopg.Error]]:
    """Expect an error with a SQLSTATE, and for our own ones a detail and a hint."""
    caught: list[psycopg.Error] = []
    try:
        yield caught
    except psycopg.Error as error:
        caught.append(error)
    assert caught, f"{str(case)[:200]} was not refused"
    diag = caught[0].diag
    assert caught[0].sqlstate == code, f"{str(case)[:200]}: not {code} but {caught[0]!r}"[:1000]
    assert message in str(diag.message_primary)
    if code.startswith("TL"):
        assert diag.message_detail
        assert diag.message_hint


@contextmanager
def transaction(conn: Connection[Any], *, commit: bool = True) -> Generator[Connection[Any]]:
    """Keep a transaction of an autocommit session open for the block."""
    run(conn, "begin")
    try:
        yield conn
    finally:
        run(conn, "commit" if commit else "rollback")


def blocked(watcher: Connection[Any], conn: Connection[Any]) -> None:
    """Return when a session waits for a lock."""
    for _ in range(500):
        if one(watcher, BLOCKED, pid=conn.info.backend_pid, pooled=pgbouncer.is_wanted()):
            return
        time.sleep(0.01)
    raise AssertionError("the session does not wait")


@contextmanager
def in_background(work: Callable[[], Any]) -> Generator[Future[Any]]:
    """Run something that waits for what the block does."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


@contextmanager
def acting_as(conn: Connection[Any], role: str) -> Generator[Connection[Any]]:
    """Set the role of a session for the block."""
    run(conn, f"set role {role}")
    try:
        yield conn
    finally:
        run(conn, "reset role")


@contextmanager
def logged_in_as(conn: Connection[Any], role: str) -> Generator[Connection[Any]]:
    """Make a superuser's session that of another role for the block, as if it had logged in."""
    run(conn, f"set session authorization {role}")
    try:
        yield conn
    finally:
        run(conn, "reset session authorization")


def fingerprint(conn: Connection[Any], tables: Sequence[str] = TABLES) -> dict[str, str]:
    """Return a hash of the rows of each table."""
    return {
        table: one(
            conn,
            f"select coalesce(md5(string_agg(row::text, ',' order by row::text)), '')"
            f" from tasklib.{table} as row",
        )
        for table in tables
    }


def buffers(conn: Connection[Any], text: str, *arguments: object) -> int:
    """Run a statement and return how many pages it touched, with all that its functions did."""
    plan = one(conn, f"explain (analyze, buffers, format json, costs off) {text}", *arguments)[0]
    top = plan["Plan"]
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"]
