"""Lock tables for DDL so that no client of the queue waits for it for long.

A request for an exclusive lock that has to wait keeps every later statement waiting behind it. So
it is not made while a transaction holds a table for long (a dump, a report, an application that
forgot to commit): that is seen by looking, for which nobody waits. And all locks are requested at
once, for less time than it takes a server to look for deadlocks: that would as likely end the
statement of a client as ours.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, errors, sql

from tasklib.errors import MigrationError

LOOK_SECONDS = 0.3
LONGEST_REQUEST_SECONDS = 0.8
# Autovacuum gives way to a request after deadlock_timeout.
LONGEST_VACUUM_SECONDS = 1.0

_MENTIONED = """
select oid, format('%%I.%%I', 'tasklib', relname), relkind = 'v'
from pg_class
where relnamespace = to_regnamespace('tasklib')
  and (relkind = 'v' or relkind in ('r', 'p') and relname = any (%s))
order by relkind = 'v' desc, relname
"""

# Who vacuums or analyzes is asked to give way, and is not waited for.
_HOLDERS = """
select distinct held.virtualtransaction, held.pid, session.usename, session.application_name
from pg_locks as held left join pg_stat_activity as session on session.pid = held.pid
where held.granted and held.locktype = 'relation' and held.relation = any (%s)
  and held.database = (select oid from pg_database where datname = current_database())
  and held.pid is distinct from pg_backend_pid()
  and held.mode <> 'ShareUpdateExclusiveLock'
"""

_DEADLOCK_SECONDS = "select setting::float8 / 1000 from pg_settings where name = 'deadlock_timeout'"


@dataclass(frozen=True, slots=True)
class Relations:
    """What a migration touches: the tables that it names, and all views, which depend on them."""

    oids: Sequence[int]
    tables: Sequence[str]
    views: Sequence[str]


def relations(conn: Connection[Any], scripts: Iterable[str]) -> Relations:
    """Return what exists of the tables that the scripts name, which they always do in full."""
    names = {name for text in scripts for name in re.findall(r"\btasklib\.(\w+)", text)}
    rows = conn.execute(_MENTIONED, [sorted(names)]).fetchall()
    tables = [name for _, name, is_view in rows if not is_view]
    if not tables:
        return Relations([], [], [])
    views = [name for _, name, is_view in rows if is_view]
    return Relations([oid for oid, _, _ in rows], tables, views)


def wait_for_holders(
    conn: Connection[Any], found: Relations, deadline: float, on_wait: Callable[[str], None]
) -> None:
    """Return when no transaction holds one of the relations that held it a moment ago.

    Raises:
        MigrationError: It was not so before the deadline, a time of `time.monotonic`.
    """
    holders = _holders(conn, found.oids)
    while holders:
        time.sleep(LOOK_SECONDS)
        now = _holders(conn, found.oids)
        left = [text for transaction, text in now.items() if transaction in holders]
        if not left:
            return
        if time.monotonic() > deadline:
            raise MigrationError(
                f"gave up: the tables are still in use by {_listed(left)}",
                hint="Nothing was changed. Migrate when that transaction is over, or end it: "
                "select pg_terminate_backend(pid).",
            )
        on_wait(f"waiting for {_listed(left)}, whose transaction uses the tables")
        holders = now


def lock(conn: Connection[Any], found: Relations) -> None:
    """Take all locks that the migration needs, in the caller's transaction.

    Raises:
        LockNotAvailable: They could not be had in a moment.
    """
    row = conn.execute(_DEADLOCK_SECONDS).fetchone()
    deadlock_seconds = float(row[0]) if row else 1.0
    tables = ", ".join(found.tables)
    # This conflicts with vacuum alone. Nobody else waits for it, or behind it.
    _set(conn, "lock_timeout", deadlock_seconds + LONGEST_VACUUM_SECONDS)
    conn.execute(_text(f"lock table {tables} in share update exclusive mode"))
    # Views first, as queries do it. To lock a view would lock all its tables, to alter it does not.
    views = "".join(f"alter view {view} owner to current_user; " for view in found.views)
    body = f"begin {views}lock table {tables} in access exclusive mode; end"
    _set(conn, "statement_timeout", min(LONGEST_REQUEST_SECONDS, 0.8 * deadlock_seconds))
    try:
        conn.execute(sql.SQL("do {}").format(sql.Literal(body)))
    except errors.QueryCanceled as error:
        raise errors.LockNotAvailable("no lock in time") from error
    _set(conn, "statement_timeout", 0)


def users(conn: Connection[Any]) -> set[str]:
    """Return the transactions that use the queue now, except for our own."""
    rows = conn.execute(
        "select distinct held.virtualtransaction from pg_locks as held "
        "join pg_class on pg_class.oid = held.relation "
        "where held.locktype = 'relation' and relnamespace = to_regnamespace('tasklib') "
        "and held.database = (select oid from pg_database where datname = current_database()) "
        "and held.pid is distinct from pg_backend_pid()"
    ).fetchall()
    return {transaction for (transaction,) in rows}


def _holders(conn: Connection[Any], oids: Sequence[int]) -> dict[str, str]:
    rows = conn.execute(_HOLDERS, [list(oids)]).fetchall()
    return {transaction: _described(*who) for transaction, *who in rows}


def _described(pid: int | None, role: str | None, application: str | None) -> str:
    if pid is None:
        return "a prepared transaction (see pg_prepared_xacts)"
    known = ", ".join(text for text in (role, application) if text)
    return f"process {pid} ({known})" if known else f"process {pid}"


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(sorted(texts)[:3]) + more


def _set(conn: Connection[Any], name: str, seconds: float) -> None:
    conn.execute("select set_config(%s, %s, true)", [name, f"{round(seconds * 1000)}ms"])


def _text(text: str) -> sql.SQL:
    return sql.SQL(text)  # pyright: ignore[reportArgumentType] - names that the server quoted
