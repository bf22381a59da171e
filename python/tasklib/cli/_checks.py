"""What `tasklib doctor` looks at: each check reads facts and yields findings, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tasklib import _admin_calls, _migrate
from tasklib._admin_calls import Record
from tasklib.errors import NotInstalled, PermissionDenied

from ._output import format_duration
from ._session import Session

Level = Literal["ok", "note", "act"]

CLOCK_NOTE = timedelta(seconds=1)
CLOCK_ACT = timedelta(seconds=30)
LONG_WRITE = timedelta(minutes=5)
LONG_READ = timedelta(hours=1)
TICK_LATE = timedelta(seconds=30)
BACKLOG = timedelta(minutes=10)

# Reasons of the view stuck_tasks that are as somebody wanted them.
WANTED = {"its queue is paused", "it waits for its concurrency key"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: fine, worth knowing, or to be acted on."""

    check: str
    level: Level
    message: str
    advice: str | None = None


Check = Callable[[Session], Iterator[Finding]]


def examine(session: Session, only: set[str]) -> Iterator[Finding]:
    """Run the checks; one that cannot look says so and does not keep the others from it."""
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        try:
            yield from check(session)
        except PermissionDenied as error:
            yield Finding(
                name,
                "note",
                f"this role may not look: {error.args[0]}",
                "Grant it tasklib_observer, or run doctor as the owner of the schema.",
            )
        except NotInstalled:
            if name != "schema" and (not only or "schema" in only):
                continue  # the check of the schema says it once for all
            yield Finding(name, "act", "the schema is not installed", "Run `tasklib migrate`.")


def _server(session: Session) -> Iterator[Finding]:
    facts = session.run(_admin_calls.server())
    yield Finding(
        "server",
        "ok",
        f"PostgreSQL {facts['version']}, database {facts['database']}, role {facts['role']}",
    )
    if facts["number"] < _migrate.OLDEST_SERVER:
        yield Finding(
            "server",
            "act",
            f"PostgreSQL {facts['version']} is older than what TaskLib is made for",
            f"Upgrade the server to {_migrate.OLDEST_SERVER // 10000} or newer.",
        )
    if facts["is_replica"]:
        yield Finding(
            "server",
            "act",
            "this server is a replica and takes no writes",
            "Point the URL at the primary, or add target_session_attrs=read-write to it.",
        )
    if not facts["autovacuum"]:
        yield Finding(
            "server", "act", "autovacuum is off", "Turn it on: the queue's small tables need it."
        )
    if facts["connections"] >= 0.9 * facts["max_connections"]:
        yield Finding(
            "server",
            "act",
            f"{facts['connections']} of {facts['max_connections']} connections are taken",
            "Raise max_connections, lower pool sizes, or put a pooler in front.",
        )


def _schema(session: Session) -> Iterator[Finding]:
    there, here = session.run(_admin_calls.schema_version()), _migrate.latest()
    extension = session.run(_admin_calls.extension_version())
    if extension and (extension != _migrate.version() or there != here):
        yield Finding(
            "schema",
            "act",
            f"the database has the extension tasklib {extension} ({there}), this package is "
            f"{_migrate.version()} ({here})",
            _migrate.EXTENSION_HINT,
        )
    elif there == here:
        yield Finding("schema", "ok", f"version {there}" + (", an extension" if extension else ""))
    elif there is None or there < here:
        yield Finding(
            "schema",
            "act",
            f"the database is at {there or 'nothing'}, this package at {here}",
            "Run `tasklib migrate`.",
        )
    else:
        yield Finding(
            "schema",
            "act",
            f"the database is at {there}, this package only at {here}",
            "Upgrade pg-tasklib here.",
        )


def _roles(session: Session) -> Iterator[Finding]:
    if missing := session.run(_admin_calls.missing_roles()):
        yield Finding(
            "roles",
            "note",
            f"this server has no role {', '.join(missing)}: only the owner can do what they may",
            "Ask a DBA for it: "
            + " ".join(f"create role {name} nologin;" for name in missing)
            + " Then run `tasklib migrate` again.",
        )
    gone = session.run(_admin_calls.rules_of_nobody())
    for role in gone:
        yield Finding(
            "roles",
            "act",
            f"there are rules or limits for {role}, and no such role: renamed or dropped",
            "Set them for the role that is meant, and drop these: tasklib.drop_rule, drop_limit.",
        )
    if not missing and not gone:
        yield Finding("roles", "ok", "the four roles are there")


def _pooler(session: Session) -> Iterator[Finding]:
    # A pooler hands out process ids of its own, for cancel requests that it must recognise.
    if session.connection.info.backend_pid == session.run(_admin_calls.server())["backend_pid"]:
        yield Finding("pooler", "ok", "connected without a pooler")
    else:
        yield Finding(
            "pooler",
            "note",
            "there is a pooler between here and the server",
            "In its transaction mode start workers with --no-listen, or give them a direct URL, "
            "which wakes them sooner.",
        )


def _clock(session: Session) -> Iterator[Finding]:
    before = datetime.now(UTC)
    there: datetime = session.run(_admin_calls.server())["clock"]
    after = datetime.now(UTC)
    # The true difference lies within half the time that asking took.
    difference = there - (before + (after - before) / 2)
    seconds = abs(difference).total_seconds()
    direction = "ahead of" if difference > timedelta(0) else "behind"
    if seconds <= (CLOCK_NOTE + (after - before) / 2).total_seconds():
        yield Finding("clock", "ok", "this machine's clock agrees with the server's")
        return
    yield Finding(
        "clock",
        "act" if seconds > CLOCK_ACT.total_seconds() else "note",
        f"the server's clock is {format_duration(seconds)} {direction} this machine's",
        "Tasks go by the server's clock. Let NTP set both, or times given as scheduled_at are off.",
    )


def _transactions(session: Session) -> Iterator[Finding]:
    found = False
    for row in session.run(_admin_calls.long_transactions(LONG_WRITE)):
        who = f"{row['what']} of {row['role']} ({row['application'] or 'no name'})"
        age = format_duration(row["seconds"])
        if row["writes"]:
            found = True
            yield Finding(
                "transactions",
                "act",
                f"{who} has been writing for {age}: claims walk past what it may have enqueued",
                "Commit or end it; set idle_in_transaction_session_timeout.",
            )
        elif row["seconds"] > LONG_READ.total_seconds():
            found = True
            yield Finding(
                "transactions",
                "note",
                f"{who} has held a snapshot for {age}: it does not slow claims, but tables grow",
                "End it when it is not a dump or a report that somebody waits for.",
            )
    for row in session.run(_admin_calls.replication_slots()):
        found = True
        yield Finding(
            "transactions",
            "note" if row["active"] else "act",
            f"replication slot {row['name']} holds back {row['transactions']:,} transactions",
            "Drop it when nobody uses it: select pg_drop_replication_slot(...).",
        )
    if not found:
        yield Finding("transactions", "ok", "no long transaction")


def _ticks(session: Session) -> Iterator[Finding]:
    last = session.run(_admin_calls.last_tick())
    now: datetime = session.run(_admin_calls.server())["clock"]
    if last is None:
        yield Finding("ticks", "note", "no housekeeping yet", "The first worker does it.")
    elif now - last <= TICK_LATE:
        yield Finding("ticks", "ok", "the housekeeping is done")
    else:
        waits = any(
            row["scheduled"] + row["retrying"] for row in session.run(_admin_calls.queues())
        )
        yield Finding(
            "ticks",
            "act" if waits else "note",
            f"nobody has done the housekeeping for {format_duration((now - last).total_seconds())}",
            "Start a worker, or let pg_cron call tasklib.tick().",
        )


def _workers(session: Session) -> Iterator[Finding]:
    found = session.run(_admin_calls.workers())
    ready = _sum(session.run(_admin_calls.queues()), "ready")
    alive = [row for row in found if row["status"] == "alive"]
    if alive:
        yield Finding(
            "workers", "ok", f"{len(alive)} alive, {_sum(alive, 'running')} tasks running"
        )
    elif ready:
        yield Finding(
            "workers",
            "act",
            f"{ready} tasks are ready and no worker is alive",
            "Start one: tasklib worker MODULE.",
        )
    else:
        yield Finding("workers", "ok", "none is alive, and no task is ready")
    for row in found:
        if row["status"] == "silent":
            yield Finding(
                "workers",
                "act",
                f"{row['name']} ({row['worker_id']}) is silent and holds {row['running']} tasks",
                "The next tick gives them to others. Look why it died: memory, machine, network.",
            )
    for status, what in (("crashed", "died"), ("lost", "went silent and were given up")):
        if gone := [row for row in found if row["status"] == status]:
            yield Finding(
                "workers",
                "note",
                f"{len(gone)} {what} within a day, last {gone[0]['name']}",
                "`tasklib workers --all` lists them; "
                f"failures with cause {status} name their tasks.",
            )


def _tasks(session: Session) -> Iterator[Finding]:
    found = session.run(_admin_calls.stuck())
    unasked = list(_unasked(session))
    yield from unasked
    for row in found:
        yield Finding(
            "tasks",
            "note" if row["reason"] in WANTED else "act",
            f"{row['tasks']} x {row['name']} in queue {row['queue']}: {row['reason']}",
            row["hint"],
        )
    if not found and not unasked:
        yield Finding("tasks", "ok", "every task is finished, running or waiting for its turn")


def _unasked(session: Session) -> Iterator[Finding]:
    """Find ready tasks in queues that no live worker takes from."""
    alive = [row for row in session.run(_admin_calls.workers()) if row["status"] == "alive"]
    infos: list[Record] = [row["info"] or {} for row in alive]
    told: list[Any] = [info.get("queues") for info in infos]
    if not alive or not all(isinstance(queues, list) for queues in told):
        return  # the check of the workers says it, or they may take from any queue
    asked = {str(queue) for queues in told for queue in queues}
    for row in session.run(_admin_calls.queues()):
        if row["ready"] and not row["paused"] and row["queue"] not in asked:
            yield Finding(
                "tasks",
                "act",
                f"{row['ready']} tasks are ready in queue {row['queue']}, "
                "from which no live worker takes any",
                f"Start one that does: tasklib worker MODULE --queues {row['queue']}.",
            )


def _queues(session: Session) -> Iterator[Finding]:
    found = session.run(_admin_calls.queues())
    late = [row for row in found if (row["oldest_ready_seconds"] or 0) > BACKLOG.total_seconds()]
    for row in late:
        if not row["paused"]:
            yield Finding(
                "queues",
                "note",
                f"in {row['queue']} the first of {row['ready']} ready tasks has waited "
                f"{format_duration(row['oldest_ready_seconds'])}",
                f"More workers, or more concurrency, for queue {row['queue']}?",
            )
    if not late:
        yield Finding("queues", "ok", f"{_sum(found, 'ready')} tasks ready, none for long")


def _sum(rows: list[dict[str, object]], field: str) -> int:
    return sum(int(str(row[field])) for row in rows)


CHECKS: dict[str, Check] = {
    "server": _server,
    "schema": _schema,
    "roles": _roles,
    "pooler": _pooler,
    "clock": _clock,
    "transactions": _transactions,
    "ticks": _ticks,
    "workers": _workers,
    "tasks": _tasks,
    "queues": _queues,
}
