"""The command `tasklib top`: queues, workers and task names, again and again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta

import click

from tasklib import _admin_calls
from tasklib._admin_calls import Record

from ._app import pass_settings
from ._output import format_table, rich_installed
from ._session import ADMIN, OBSERVER, Session, Settings
from ._terminal import on_terminal
from ._types import duration
from .queues import PRESENT

QUEUE = ["queue", "ready", "running", "scheduled", "retrying", "waiting", "parked", "failed"]
WORKER = ["worker", "status", "running", "silent for"]
TASK = ["name", "completed", "failed", "cancelled", "retried"]


@click.command(short_help="A live view of queues, workers and tasks.")
@click.option("--every", type=duration, default="1s", show_default=True, metavar="TIME")
@click.option("--once", is_flag=True, help="Print it once; so it is without a terminal anyway.")
@pass_settings
def top(settings: Settings, every: timedelta, once: bool) -> None:
    """Show queues, workers and the last day's tasks, renewed each second until Ctrl-C.

    Examples:
      tasklib top
      tasklib top --once | mail -s "queues" ops@example.com
    """
    with settings.session(OBSERVER, ADMIN) as session:
        if once or not on_terminal():
            click.echo(snapshot(session))
            return
        watch = _watch_with_rich if rich_installed() else _watch_plainly
        with suppress(KeyboardInterrupt):
            watch(session, every.total_seconds())


def snapshot(session: Session) -> str:
    """Write the present state as three tables."""
    queues = session.run(_admin_calls.queues())
    workers = [row for row in session.run(_admin_calls.workers()) if row["status"] in PRESENT]
    tasks = session.run(_admin_calls.task_stats())
    tables = [
        _table(
            [*QUEUE, "oldest ready"],
            map(_queue, queues),
            empty="no queue has unfinished tasks or settings",
        ),
        _table(WORKER, map(_worker, workers), empty="no worker is registered"),
        _table([*TASK, "p50", "p95"], map(_task, tasks), empty="no task has ended within a day"),
    ]
    return "\n\n".join(tables)


def _table(columns: Sequence[str], rows: Iterable[list[object]], *, empty: str) -> str:
    found = list(rows)
    return format_table(columns, found) if found else empty


def _queue(row: Record) -> list[object]:
    name = f"{row['queue']} (paused)" if row["paused"] else row["queue"]
    return [name, *(row[column] for column in QUEUE[1:]), _time(row["oldest_ready_seconds"])]


def _worker(row: Record) -> list[object]:
    silent = _time(row["seconds_since_heartbeat"])
    return [row["name"], row["status"], row["running"], silent]


def _task(row: Record) -> list[object]:
    return [*(row[column] for column in TASK), _time(row["p50_seconds"]), _time(row["p95_seconds"])]


def _time(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _watch_with_rich(session: Session, seconds: float) -> None:
    from rich.live import Live
    from rich.text import Text

    def draw() -> Text:
        return Text.from_ansi(snapshot(session), no_wrap=True, overflow="ellipsis")

    with Live(draw(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(seconds)
            live.update(draw(), refresh=True)


def _watch_plainly(session: Session, seconds: float) -> None:
    while True:
        text = snapshot(session)
        click.clear()
        click.echo(text)
        time.sleep(seconds)
