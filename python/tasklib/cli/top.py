"""The command `tasklib top`: queues, workers and task names, again and again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from tasklib._admin_calls import Record

from ._app import pass_settings
from ._looks import COUNTED, Look, Watcher
from ._output import format_cell, format_duration, format_table, print_json, rich_installed
from ._session import ADMIN, OBSERVER, Session, Settings
from ._terminal import on_terminal
from ._types import duration

QUEUE = ["queue", "ready", "running", "scheduled", "retrying", "waiting", "parked", "failed"]
WORKER = ["worker", "status", "running", "silent for", "doing", "for", "progress"]
NAME = ["name", "completed", "failed", "cancelled", "retried"]

ALL = 1_000_000
TASKS_OF_A_WORKER = 5
# However long a look takes, the server shall mostly do something else.
REST = 4


@click.command(short_help="A live view of queues, workers and tasks.")
@click.option("--every", type=duration, default="1s", show_default=True, metavar="TIME")
@click.option("--once", is_flag=True, help="Print it once; so it is without a terminal anyway.")
@click.option("--json", "as_json", is_flag=True, help="Once, as one JSON object.")
@pass_settings
def top(settings: Settings, every: timedelta, once: bool, as_json: bool) -> None:
    """Show queues, workers and the last day's tasks, renewed each second until Ctrl-C.

    What moves is seen by looking twice: --once and --json take as long as --every says.

    Examples:
      tasklib top
      tasklib top --once | mail -s "queues" ops@example.com
      tasklib top --json --every 10s | jq .rates.finished
    """
    pause = every.total_seconds()
    with settings.session(OBSERVER, ADMIN) as session:
        watcher = Watcher(session)
        if once or as_json or not on_terminal():
            watcher.look()
            time.sleep(pause)
            seen = watcher.look()
            print_json(asdict(seen)) if as_json else click.echo(draw(seen, _heading(session), ALL))
            return
        watch = _watch_with_rich if rich_installed() else _watch_plainly
        with suppress(KeyboardInterrupt):
            watch(_looks(watcher, pause), _heading(session))


def draw(seen: Look, heading: str, lines: int) -> str:
    """Write what was seen as three tables.

    Args:
        seen: What to show.
        heading: Where it was seen.
        lines: How many fit; what is left out is said.
    """
    share, left = max(3, lines // 4), lines - 10
    queues = _fit([_queue(row) for row in seen.queues], share)
    left -= len(queues)
    workers = [cells for row in seen.workers for cells in _worker(row)]
    workers = _fit(workers, max(3, left - min(share, len(seen.names))))
    names = _fit([_name(row) for row in seen.names], max(3, left - len(workers)))
    return "\n\n".join(
        [
            f"{heading}   {format_cell(datetime.now(UTC))}\n{_rates(seen)}",
            _table([*QUEUE, "oldest ready"], queues, empty="no unfinished task, no queue was set"),
            _table(WORKER, workers, empty="no worker is registered"),
            _table([*NAME, "p50", "p95"], names, empty="no task has ended within a day"),
        ]
    )


def _heading(session: Session) -> str:
    info = session.connection.info
    return click.style(f"{info.dbname} at {info.host}:{info.port}", bold=True)


def _rates(seen: Look) -> str:
    return "   ".join(
        f"{name.replace('_', ' ')} {'-' if rate is None else f'{rate:,.1f}/s'}"
        for name, rate in ((name, seen.rates[name]) for name in COUNTED)
    )


def _table(columns: Sequence[str], rows: list[list[object]], *, empty: str) -> str:
    return format_table(columns, rows) if rows else empty


def _fit(rows: list[list[object]], most: int) -> list[list[object]]:
    if len(rows) <= most:
        return rows
    rest = f"… {len(rows) - most + 1} more lines"
    return [*rows[: most - 1], [rest, *[""] * (len(rows[0]) - 1)]]


def _queue(row: Record) -> list[object]:
    name = f"{row['queue']} (paused)" if row["paused"] else row["queue"]
    return [name, *(row[column] for column in QUEUE[1:]), _time(row["oldest_ready_seconds"])]


def _worker(row: Record) -> Iterator[list[object]]:
    """Yield a line for each task that it runs, the oldest first, and one when there is none."""
    silent = _time(row["seconds_since_heartbeat"])
    cells: list[object] = [row["name"], row["status"], row["running"], silent]
    tasks: list[Record] = row["tasks"]
    for task in tasks[:TASKS_OF_A_WORKER]:
        yield [*cells, task["name"], _time(task["seconds"]), _progress(task)]
        cells = [""] * len(cells)
    if not tasks:
        yield [*cells, "", "", ""]
    elif row["running"] > TASKS_OF_A_WORKER:
        yield [*cells, f"… {row['running'] - TASKS_OF_A_WORKER} more", "", ""]


def _progress(task: Record) -> str:
    if task["progress"] is None:
        return task["progress_message"] or ""
    return f"{task['progress']:.0%} {task['progress_message'] or ''}".strip()


def _name(row: Record) -> list[object]:
    return [*(row[column] for column in NAME), _time(row["p50_seconds"]), _time(row["p95_seconds"])]


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else format_duration(max(0.0, seconds))


def _looks(watcher: Watcher, pause: float) -> Iterator[Look]:
    while True:
        began = time.monotonic()
        yield watcher.look()
        time.sleep(max(pause, REST * (time.monotonic() - began)))


def _height() -> int:
    return shutil.get_terminal_size().lines


def _watch_with_rich(looks: Iterable[Look], heading: str) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as live:
        for seen in looks:
            text = Text.from_ansi(draw(seen, heading, _height()), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)


def _watch_plainly(looks: Iterable[Look], heading: str) -> None:
    for seen in looks:
        text = draw(seen, heading, _height())
        click.clear()
        click.echo(text)
