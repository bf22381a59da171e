"""Calls of people who look after the queue: queues, workers, old tasks, the server's health.

Values like those of `_calls`, kept apart because neither clients nor workers need them. What the
role may not see comes back as null or not at all; nothing here needs a superuser.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, LiteralString, TypeVar
from uuid import UUID

from tasklib._calls import Call, Rows

T = TypeVar("T")
Record = dict[str, Any]

# ---- tasks ---------------------------------------------------------------------------------------


def failures(task_id: UUID) -> Call[list[Record]]:
    """Read the failed attempts of a task, oldest first."""
    return _records(
        "attempt, failed_at, worker_id, cause, error, next_retry_at",
        "tasklib.failures where task_id = %(id)s::uuid order by attempt",
        {"id": str(task_id)},
    )


def purge(older_than: timedelta, state: str | None, max_rows: int) -> Call[int]:
    """Delete finished tasks, at most so many; the answer is how many there were."""
    return _value(
        """select tasklib.purge(
          older_than => %(seconds)s::float8 * interval '1 second',
          state => %(state)s::text, max_rows => %(max_rows)s::int)""",
        {"seconds": older_than.total_seconds(), "state": state, "max_rows": max_rows},
    )


# ---- queues and workers --------------------------------------------------------------------------


def pause(queue: str) -> Call[None]:
    """Hand out no more tasks of a queue."""
    return _value("select tasklib.pause(queue => %(queue)s::text)", {"queue": queue})


def resume(queue: str) -> Call[None]:
    """Hand out tasks of a queue again."""
    return _value("select tasklib.resume(queue => %(queue)s::text)", {"queue": queue})


def set_queue(
    name: str, *, retention: timedelta | None, max_crashes: int | None, notify: bool
) -> Call[None]:
    """Give a queue exactly these settings."""
    return _value(
        """select tasklib.set_queue(
          name => %(name)s::text,
          retention => %(seconds)s::float8 * interval '1 second',
          max_crashes => %(max_crashes)s::int,
          notify => %(notify)s::boolean)""",
        {
            "name": name,
            "seconds": None if retention is None else retention.total_seconds(),
            "max_crashes": max_crashes,
            "notify": notify,
        },
    )


def queues() -> Call[list[Record]]:
    """Read how much is in each queue, by what it waits for."""
    return _records(
        "queue, paused, ready, running, scheduled, retrying, waiting, parked, failed, "
        "oldest_ready_seconds",
        "tasklib.queue_stats order by queue",
    )


def workers() -> Call[list[Record]]:
    """Read the workers of the last day, newest first."""
    return _records(
        "worker_id, name, status, running, oldest_started_at, registered_at, last_heartbeat_at, "
        "lease_until, lost_at, task_types, registered_by, info, seconds_since_heartbeat",
        """(
          select *, extract(epoch from clock_timestamp() - last_heartbeat_at)::float8
            as seconds_since_heartbeat
          from tasklib.worker_health
        ) as worker order by alive desc, registered_at desc""",
    )


def running(*, with_text: bool) -> Call[list[Record]]:
    """Read what runs now, the oldest first, a thousand at most.

    Args:
        with_text: Also what tasks say about their progress, which tasklib_observer may not see.
    """
    said: LiteralString = "progress_message" if with_text else "null"
    columns = "id, name, queue, attempt, worker_id, started_at, seconds, progress, progress_message"
    return _records(
        columns,
        f"""(
          select id, name, queue, attempt, worker_id, started_at,
            extract(epoch from clock_timestamp() - started_at)::float8 as seconds,
            progress, {said} as progress_message
          from tasklib.tasks where state = 'running'
        ) as run order by started_at, id limit 1000""",  # noqa: S608 - literals all
    )


def counters() -> Call[Record]:
    """Read how much there has been since the server began to count, and when that is read.

    These are the server's own statistics, which cost nothing to read, however long the history is.
    Sessions add to them about once a second, idle ones within ten.
    """
    return _first(
        _records(
            "clock, enqueued, finished, failed_attempts",
            """(
              select extract(epoch from clock_timestamp())::float8 as clock,
                sum(n_tup_ins) filter (where relname = 'task') as enqueued,
                sum(n_tup_ins) filter (where relname = 'done') as finished,
                sum(n_tup_ins) filter (where relname = 'failure') as failed_attempts
              from pg_catalog.pg_stat_all_tables where schemaname = 'tasklib'
            ) as counted""",
        )
    )


def task_stats() -> Call[list[Record]]:
    """Read by name how the tasks of the last day ended and how long they ran."""
    return _records(
        "name, completed, failed, cancelled, retried, p50_seconds, p95_seconds, max_seconds",
        "tasklib.task_stats order by completed + failed desc",
    )


def stuck() -> Call[list[Record]]:
    """Read the tasks that wait for something other than their turn, grouped by the reason."""
    return _records(
        "reason, name, queue, hint, tasks, since",
        """(
          select case when reason like 'it waits for its concurrency key, held by task %%'
              then 'it waits for its concurrency key' else reason end as reason,
            name, queue, hint, count(*) as tasks, min(since) as since
          from tasklib.stuck_tasks
          group by 1, 2, 3, 4
        ) as stuck order by tasks desc""",
    )


def last_tick() -> Call[datetime | None]:
    """Read when somebody did the housekeeping last; None when nobody ever did."""
    return _value("select last_tick_at from tasklib.tick_health", {})


# ---- the server ----------------------------------------------------------------------------------


def server() -> Call[Record]:
    """Read what the server is, and whether somebody stands between it and us."""
    return _first(
        _records(
            "version, number, backend_pid, clock, is_replica, role, sees_all, database, "
            "autovacuum, connections, max_connections",
            """(select current_setting('server_version') as version,
             current_setting('server_version_num')::int as number,
             pg_backend_pid() as backend_pid,
             clock_timestamp() as clock,
             pg_is_in_recovery() as is_replica,
             current_user::text as role,
             pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees_all,
             current_database()::text as database,
             current_setting('autovacuum')::boolean as autovacuum,
             (select count(*) from pg_catalog.pg_stat_activity
               where backend_type = 'client backend') as connections,
             current_setting('max_connections')::int as max_connections) as server""",
        )
    )


def schema_version() -> Call[str | None]:
    """Read the version of the schema; None when there is none."""
    return _value("select tasklib.version()", {})


def extension_version() -> Call[str | None]:
    """Read the version of the extension that the queue is; None when it is none."""
    return _value("select (select extversion from pg_extension where extname = 'tasklib')", {})


def missing_roles() -> Call[list[str]]:
    """Read which of the roles that get rights are not on this server."""
    return _value(
        """select coalesce(array_agg(name order by name), '{}') from unnest('{tasklib_producer,
          tasklib_worker, tasklib_observer, tasklib_admin}'::text[]) as wanted (name)
          where not exists (select from pg_catalog.pg_roles where rolname = wanted.name)""",
        {},
    )


def rules_of_nobody() -> Call[list[str]]:
    """Read the roles that have rules or limits, and are not on this server."""
    return _value(
        """select coalesce(array_agg(role order by role), '{}') from (
          select role from tasklib.rules where not role_exists
          union select role from tasklib.limits where not role_exists) as gone""",
        {},
    )


def long_transactions(older_than: timedelta) -> Call[list[Record]]:
    """Read the oldest transactions of this database: sessions, and prepared ones."""
    return _records(
        "what, role, application, writes, seconds",
        """(
          select 'session ' || pid as what, usename::text as role, application_name as application,
            backend_xid is not null as writes,
            extract(epoch from clock_timestamp() - xact_start)::float8 as seconds
          from pg_catalog.pg_stat_activity
          where datname = current_database() and backend_type = 'client backend'
            and pid <> pg_backend_pid()
          union all
          select 'prepared transaction ' || quote_literal(gid), owner::text, '', true,
            extract(epoch from clock_timestamp() - prepared)::float8
          from pg_catalog.pg_prepared_xacts
          where database = current_database()
        ) as held where seconds > %(seconds)s::float8 order by seconds desc limit 5""",
        {"seconds": older_than.total_seconds()},
    )


def replication_slots() -> Call[list[Record]]:
    """Read the replication slots that keep old row versions from being cleaned."""
    return _records(
        "name, active, transactions",
        """(select slot_name::text as name, active, age(xmin) as transactions
            from pg_catalog.pg_replication_slots where xmin is not null) as slots
           where transactions > 1000000 order by transactions desc""",
    )


# ---- reading -------------------------------------------------------------------------------------


def _records(
    columns: LiteralString, source: LiteralString, params: Mapping[str, object] | None = None
) -> Call[list[Record]]:
    names = [name.strip() for name in columns.split(",")]

    def read(rows: Rows) -> list[Record]:
        return [dict(zip(names, row, strict=True)) for row in rows]

    text: LiteralString = "select " + columns + " from " + source  # noqa: S608 - literals all
    return Call(text, params or {}, read)


def _first(call: Call[list[T]]) -> Call[T]:
    return Call(call.sql, call.params, lambda rows: call.read(rows)[0])


def _value(sql: LiteralString, params: Mapping[str, object]) -> Call[Any]:
    return Call(sql, params, lambda rows: rows[0][0])
