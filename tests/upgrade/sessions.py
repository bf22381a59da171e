"""Clients in plain SQL: in a trigger, in one session, in a new session for each call, readers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import psycopg

Ids = list[str]
Connect = Callable[[], psycopg.Connection[Any]]
Statement = Callable[[], tuple[Any, dict[str, Any]]]

TABLES = """
create table effect (id uuid not null, attempt int not null);
create table orders (number bigint generated always as identity primary key, task_id uuid);
create function submit_order() returns trigger language plpgsql as $$
begin
  new.task_id := tasklib.enqueue('up.loop', jsonb_build_object('number', new.number));
  return new;
end
$$;
create trigger submit before insert on orders for each row execute function submit_order();
"""
ONE = "select tasklib.enqueue('up.loop', jsonb_build_object('number', %(n)s::int))"
LATER = """
select tasklib.enqueue('up.loop', jsonb_build_object('number', %(n)s::int),
  delay => interval '0.1 seconds', concurrency_key => 'fresh' || %(n)s::int %% 50)
"""
MANY = "select id from tasklib.enqueue_many(%(tasks)s::jsonb)"
ORDER = "insert into orders select from generate_series(1, 3) returning task_id"
READS = (
    "select count(*), sum(retry_count) from tasklib.tasks",
    "select * from tasklib.queue_stats",
    "select id, state from tasklib.list(max_rows => 5)",
    "select name, status from tasklib.worker_health",
)


class Session(threading.Thread):
    """Does the same again and again; nothing of it may ever fail.

    Attributes:
        acknowledged: The ids of the tasks that it enqueued.
        errors: What failed.
    """

    def __init__(
        self,
        body: Callable[[], Ids],
        conn: psycopg.Connection[Any] | None = None,
        pause: float = 0.05,
    ) -> None:
        super().__init__()
        self.acknowledged: Ids = []
        self.errors: list[str] = []
        self._body = body
        self._conn = conn
        self._pause = pause
        self._stopped = threading.Event()

    def run(self) -> None:
        """Go on until told to stop."""
        while not self._stopped.wait(self._pause):
            try:
                self.acknowledged += self._body()
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """Let the last round end."""
        self._stopped.set()
        self.join()
        if self._conn is not None:
            self._conn.close()


def sessions(conninfo: str) -> list[Session]:
    """Make one of each kind."""
    numbers = count()

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo, autocommit=True)

    def kept_session(statement: Statement) -> Session:
        conn = connect()
        return Session(kept(conn, statement), conn)

    readers = connect()
    return [
        kept_session(lambda: (ONE, {"n": next(numbers)})),
        kept_session(lambda: (ORDER, {})),
        kept_session(lambda: (MANY, {"tasks": batch(next(numbers))})),
        Session(fresh(connect, lambda: (LATER, {"n": next(numbers)}))),
        Session(fresh(connect, lambda: (MANY, {"tasks": batch(next(numbers))}))),
        Session(reader(readers), readers, pause=0.2),
    ]


def batch(n: int) -> str:
    """Return tasks with every kind of option."""
    return json.dumps(
        [
            {"name": "up.loop", "kwargs": {"number": n}, "unique_key": f"{n}"},
            {"name": "up.thread", "kwargs": {"number": n}, "tags": {"n": n % 5}},
            {"name": "up.loop", "kwargs": {"number": n}, "concurrency_key": f"{n % 50}"},
            {"name": "up.credit", "kwargs": {"number": n}, "delay": "0.2 seconds"},
            {"name": "up.loop", "kwargs": {"number": n}, "priority": 5, "headers": {"a": "b"}},
        ]
    )


def kept(conn: psycopg.Connection[Any], statement: Statement) -> Callable[[], Ids]:
    """Use one session, in which statements and plans are kept."""
    return lambda: ids(conn.execute(*statement()))


def fresh(connect: Connect, statement: Statement) -> Callable[[], Ids]:
    """Open a session for each call, as some web servers do."""

    def body() -> Ids:
        with connect() as conn:
            return ids(conn.execute(*statement()))

    return body


def reader(conn: psycopg.Connection[Any]) -> Callable[[], Ids]:
    """Look at views."""

    def body() -> Ids:
        for text in READS:
            conn.execute(text).fetchall()
        return []

    return body


def ids(rows: Iterator[tuple[Any, ...]]) -> Ids:
    """Read the ids of new tasks."""
    return [str(row[0]) for row in rows]
