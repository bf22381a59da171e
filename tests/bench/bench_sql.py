"""What the queue costs the server: CPU and WAL per task, beside a bare classic queue.

Both are driven from one connection in batches of 100 through enqueue, claim and finish, alternating
in one run. CPU is what the operating system charged the backend that did the work
(``/proc/PID/schedstat``), so that a busy machine hardly shows; housekeeping and autovacuum are
charged to other processes and are reported beside it. Then five blocks each while another
transaction holds a snapshot.

The classic queue is the usual one: a row per task with a UUID and a state column, partial indexes
over what is pending, what runs and what is finished, and three functions of one statement each. It
has no limits, roles, keys, types, fences or retries.

Usage: ``make bench-sql ARGS='--tasks N --rounds N --url URL'``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

BATCH = 100
KWARGS = {"to": "somebody@example.org", "subject": "Hello", "body": "x" * 120}

CLASSIC = """
drop schema if exists classic cascade;
create schema classic;
create table classic.task (
  id uuid primary key default gen_random_uuid(),
  name text not null, queue text not null, kwargs jsonb not null, tags jsonb,
  state text not null default 'pending', priority int not null default 0,
  retry_count int not null default 0, max_retries int not null default 3,
  created_at timestamptz not null, scheduled_at timestamptz not null,
  next_retry_at timestamptz, timeout_seconds float8, worker_id uuid, locked_until timestamptz,
  started_at timestamptz, completed_at timestamptz, result jsonb, error text
);
create index task_pending_idx on classic.task (queue, priority desc, scheduled_at, id)
  where state = 'pending';
create index task_running_idx on classic.task (locked_until) where state = 'running';
create index task_finished_idx on classic.task (state, completed_at)
  where state in ('completed', 'failed', 'cancelled');

create function classic.enqueue_many(tasks jsonb) returns setof uuid language plpgsql as $$
begin
  return query
    insert into classic.task (name, queue, kwargs, created_at, scheduled_at)
    select item.name, 'default', item.kwargs, clock_timestamp(), clock_timestamp()
    from jsonb_to_recordset(tasks) as item (name text, kwargs jsonb)
    returning id;
end;
$$;

create function classic.claim(worker uuid, max_tasks int)
  returns setof classic.task language plpgsql as $$
begin
  return query
    with picked as materialized (
      select task.id from classic.task
      where task.state = 'pending' and task.queue = 'default'
        and task.scheduled_at <= clock_timestamp()
      order by task.priority desc, task.scheduled_at, task.id
      limit max_tasks for update skip locked
    )
    update classic.task
    set state = 'running', worker_id = worker, started_at = clock_timestamp(),
      locked_until = clock_timestamp() + interval '1 minute'
    where task.id = any (array(select picked.id from picked))
    returning task.*;
end;
$$;

create function classic.finish(worker uuid, ids uuid[]) returns setof uuid language plpgsql as $$
begin
  return query
    update classic.task
    set state = 'completed', completed_at = clock_timestamp(), locked_until = null
    where task.id = any (ids) and task.state = 'running' and task.worker_id = worker
    returning task.id;
end;
$$;
"""


class Classic:
    """The bare one-table queue."""

    name = "classic"

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute(CLASSIC)
        self.worker = uuid4()

    def run(self, batch: str) -> int:
        self.connection.execute("select * from classic.enqueue_many(%s::jsonb)", [batch])
        rows = self.connection.execute(
            "select id, retry_count, name, kwargs from classic.claim(%s, %s)", [self.worker, BATCH]
        ).fetchall()
        self.connection.execute(
            "select * from classic.finish(%s, %s)", [self.worker, [row[0] for row in rows]]
        )
        return len(rows)


class TaskLib:
    """The queue as it is installed."""

    name = "tasklib"

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        row = self.connection.execute(
            "select tasklib.register_worker('bench', interval '1 hour', '[\"bench.task\"]')"
        ).fetchone()
        assert row is not None
        self.worker = row[0]

    def run(self, batch: str) -> int:
        self.connection.execute("select * from tasklib.enqueue_many(%s::jsonb)", [batch])
        rows = self.connection.execute(
            "select id, attempt, name, kwargs from tasklib.claim(%s, max_tasks => %s)",
            [self.worker, BATCH],
        ).fetchall()
        self.connection.execute(
            "select * from tasklib.finish(%s, %s, %s)",
            [self.worker, [row[0] for row in rows], [row[1] for row in rows]],
        )
        return len(rows)


Queue = Classic | TaskLib


def cpu_seconds(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    """CPU seconds that the operating system charged to the backend of a connection."""
    pid = connection.info.backend_pid
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def wal_bytes(observer: psycopg.Connection[tuple[object, ...]]) -> int:
    """Bytes of WAL written so far by the whole server."""
    row = observer.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


def ended_children_seconds(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    """CPU seconds of all processes of the server that have ended: autovacuum workers, here."""
    parent = (
        Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    )
    fields = Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def held_snapshot(url: str) -> Generator[None]:
    """A transaction that looked once and stays open, as a report or a dump does."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from pg_class")
        yield


def measure(
    queue: Queue,
    tasks: int,
    observer: psycopg.Connection[tuple[object, ...]],
    tick: Callable[[], None],
) -> tuple[float, float]:
    """Run tasks through a queue.

    Returns:
        CPU microseconds and bytes of WAL per task.
    """
    batch = json.dumps([{"name": "bench.task", "kwargs": KWARGS}] * BATCH)
    observer.execute("checkpoint")
    wal, cpu = wal_bytes(observer), cpu_seconds(queue.connection)
    for number in range(tasks // BATCH):
        done = queue.run(batch)
        if done != BATCH:
            raise SystemExit(f"{queue.name}: {done} of {BATCH} tasks of a batch were done")
        if number % 20 == 19:
            tick()
    spent = cpu_seconds(queue.connection) - cpu
    return spent / tasks * 1e6, (wal_bytes(observer) - wal) / tasks


def free_run(url: str, tasks: int, rounds: int) -> None:
    """Alternate both queues without anything in their way."""
    queues: list[Queue] = [TaskLib(url), Classic(url)]
    with psycopg.connect(url, autocommit=True) as observer:
        tick_before, vacuum_before = cpu_seconds(observer), ended_children_seconds(observer)
        for queue in queues:  # caches and plans
            measure(queue, BATCH * 20, observer, lambda: tick(observer))
        figures: dict[str, list[tuple[float, float]]] = {queue.name: [] for queue in queues}
        for _ in range(rounds):
            for queue in queues:
                figures[queue.name].append(measure(queue, tasks, observer, lambda: tick(observer)))
        print(f"\n{'queue':10} {'CPU us/task (median)':>22} {'all rounds':>30} {'WAL B/task':>12}")
        for name, rows in figures.items():
            cpu = [row[0] for row in rows]
            wal = statistics.median(row[1] for row in rows)
            shown = " ".join(f"{value:.1f}" for value in cpu)
            print(f"{name:10} {statistics.median(cpu):22.1f} {shown:>30} {wal:12.0f}")
        total = tasks * rounds * 2
        housekeeping = (cpu_seconds(observer) - tick_before) / total * 1e6
        vacuum = (ended_children_seconds(observer) - vacuum_before) / total * 1e6
        print(f"beside it: tick {housekeeping:.2f}, autovacuum {vacuum:.2f} us/task of both queues")
        mine, theirs = (statistics.median(r[0] for r in figures[q.name]) for q in queues)
        print(f"ratio tasklib / classic: CPU {mine / theirs:.2f}")
        print(f"deleting finished tasks: {purge_cost(queues[0]):.1f} us/task")


def purge_cost(queue: Queue) -> float:
    """CPU microseconds for each finished task that purge deletes."""
    deleted, cpu = 0, cpu_seconds(queue.connection)
    while True:
        row = queue.connection.execute("select tasklib.purge('0')").fetchone()
        assert row is not None
        deleted += row[0]
        if row[0] == 0:
            return (cpu_seconds(queue.connection) - cpu) / max(deleted, 1) * 1e6


def tick(observer: psycopg.Connection[tuple[object, ...]]) -> None:
    """One round of housekeeping, as a worker does each second."""
    observer.execute("select * from tasklib.tick()")


def held_run(url: str, tasks: int) -> None:
    """Five blocks of tasks while a snapshot is held: does the cost grow?"""
    for queue_type in (TaskLib, Classic):
        queue = queue_type(url)
        size = tasks if queue_type is TaskLib else min(tasks, 4000)
        with held_snapshot(url), psycopg.connect(url, autocommit=True) as observer:
            blocks = [
                measure(queue, size, observer, lambda o=observer: tick(o))[0] for _ in range(5)
            ]
        shown = " ".join(f"{block:.1f}" for block in blocks)
        print(
            f"{queue.name:10} snapshot held, 5 blocks of {size}: {shown} us/task;"
            f" last / first {blocks[-1] / blocks[0]:.2f}"
        )


def prepared(url: str) -> str:
    """Migrate the database; report what it runs on."""
    from tasklib._migrate import migrate

    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select version()").fetchone()
        assert row is not None
        print(row[0])
    print(f"{os.cpu_count()} cores, batches of {BATCH}, {len(json.dumps(KWARGS))} bytes of kwargs")
    return url


def private_server(stack: ExitStack) -> str:
    """A throw-away server with fsync on and room for the tables in memory."""
    from tasklib.embedded import Embedded

    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tasklib-bench-"))
    os.chmod(folder, 0o755)
    return stack.enter_context(
        Embedded(Path(folder), settings={"shared_buffers": "512MB", "max_wal_size": "4GB"})
    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="What the queue costs the server")
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks a round (default 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds each (default 5)")
    parser.add_argument("--url", help="a database to use; default: a private server")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = prepared(options.url or private_server(stack))
        free_run(url, options.tasks, options.rounds)
        held_run(url, options.tasks)


if __name__ == "__main__":
    sys.exit(main())
