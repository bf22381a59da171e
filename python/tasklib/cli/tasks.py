"""Commands about single tasks: enqueue, ls, show, retry, cancel, purge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click

from tasklib import _admin_calls, _calls
from tasklib._admin_calls import Record
from tasklib._calls import Call
from tasklib.errors import InvalidState, PermissionDenied, TaskNotFound, UniqueKeyHeld
from tasklib.models import NewTask, Options, Task

from ._app import FAILED, Refusal, pass_settings
from ._describe import describe, note_on
from ._output import print_json, print_rows
from ._progress import progress, say_to_stderr
from ._session import ADMIN, PRODUCER, Session, Settings
from ._types import age, parse_id, parse_object, parse_pairs, seconds

STATES = click.Choice(["pending", "running", "completed", "failed", "cancelled"])
PURGE_ROWS = 10_000


@click.command(short_help="Add a task.")
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-q", "--queue", help="Queue; without it the task type's own, else 'default'.")
@click.option("-p", "--priority", type=int, help="-1000 to 1000; higher goes first.")
@click.option(
    "--delay", "delay_seconds", type=seconds, metavar="TIME", help="Not before: 90s, 15m, 2h, 30d."
)
@click.option(
    "--at",
    "scheduled_at",
    type=datetime.fromisoformat,
    metavar="INSTANT",
    help="Not before (ISO 8601).",
)
@click.option("--unique-key", help="Among unfinished tasks of a queue, a key exists once.")
@click.option("--concurrency-key", help="Tasks of a queue with one key never run together.")
@click.option("--max-retries", type=int, help="Attempts after the first one.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=seconds,
    metavar="TIME",
    help="End an attempt that takes longer.",
)
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--json-kwargs", metavar="JSON", help="All arguments as one JSON object.")
@pass_settings
def enqueue(
    settings: Settings,
    name: str,
    arguments: tuple[str, ...],
    json_kwargs: str | None,
    tags: tuple[str, ...],
    scheduled_at: datetime | None,
    **options: Any,
) -> None:
    """Add a task called NAME and print its id.

    A VALUE that is JSON counts as JSON (3, true, null, '"3"', '[1, 2]'); any other is text.
    The arguments are checked when a worker runs the task, as with one that SQL enqueued.

    Example:
      tasklib enqueue app.send_email to=a@b.c subject="Hi there" --delay 10m --priority 5
    """
    if json_kwargs is not None and arguments:
        raise click.UsageError("Give KEY=VALUE words or --json-kwargs, not both.")
    if scheduled_at is not None and scheduled_at.tzinfo is None:
        scheduled_at = scheduled_at.astimezone()
    kwargs = (
        parse_pairs(arguments, what="Argument")
        if json_kwargs is None
        else parse_object(json_kwargs, option="--json-kwargs")
    )
    given = parse_pairs(tags, what="Tag") or None
    task = NewTask(
        name, json.dumps(kwargs), Options(scheduled_at=scheduled_at, tags=given, **options)
    )
    with settings.session(PRODUCER) as session:
        # The id of another task comes with a notice that nothing was enqueued.
        session.connection.add_notice_handler(
            lambda notice: click.echo(f"note: {notice.message_primary}", err=True)
        )
        click.echo(str(session.run(_calls.enqueue(task))))


@click.command(short_help="List tasks, newest first.")
@click.option("--state", type=STATES, help="Only tasks in this state.")
@click.option("--name", help="Only tasks of this name.")
@click.option("-q", "--queue", help="Only tasks of this queue.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="All given ones must fit.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, _calls.MOST_LISTED), default=50, show_default=True
)
@click.option("--before", type=parse_id, metavar="ID", help="The page after the task with this id.")
@click.option("--json", "as_json", is_flag=True, help="All fields, as one JSON array.")
@pass_settings
def ls(
    settings: Settings,
    state: str | None,
    name: str | None,
    queue: str | None,
    tags: tuple[str, ...],
    limit: int,
    before: UUID | None,
    as_json: bool,
) -> None:
    """List tasks, newest first.

    Examples:
      tasklib ls --state failed --name app.send_email
      tasklib ls --tag batch=w1 --json | jq '.[].error'
    """
    wanted = parse_pairs(tags, what="Tag") or None
    with settings.session(PRODUCER, ADMIN) as session:
        found = session.run(_calls.list_tasks(state, name, queue, wanted, limit, before))
    if as_json:
        print_json(found)
    else:
        print_rows([_summary(task) for task in found], empty="no such tasks")


@click.command(short_help="Everything about one task.")
@click.argument("task_id", type=parse_id, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The task with its failures, as JSON.")
@pass_settings
def show(settings: Settings, task_id: UUID, as_json: bool) -> None:
    """Print all fields of a task, its failed attempts and their tracebacks.

    The failures are shown to tasklib_admin alone; with --json they are null for other roles.

    Example:
      tasklib show 019a8d2c-7a1e-7cc3-9d5a-0c9a3b0f0000
    """
    with settings.session(PRODUCER, ADMIN) as session:
        task = session.run(_calls.get(task_id))
        failures = _failures(session, task_id)
    if task is None:
        raise Refusal(f"there is no task {task_id}", hint="`tasklib ls` lists the newest ones.")
    if as_json:
        print_json(task.model_dump() | {"failures": failures})
    else:
        click.echo(describe(task, failures))


@click.command(short_help="Make failed or cancelled tasks pending again.")
@click.argument("ids", nargs=-1, required=True, type=parse_id, metavar="ID...")
@pass_settings
def retry(settings: Settings, ids: tuple[UUID, ...]) -> None:
    """Make failed or cancelled tasks pending again; one that waits for its retry becomes due now.

    A retried task keeps its id, its failures and its attempt counter, and gets a fresh budget.

    Examples:
      tasklib retry 019a8d2c-7a1e-7cc3-9d5a-0c9a3b0f0000
      tasklib ls --state failed --json | jq -r '.[].id' | xargs tasklib retry
    """
    with settings.session(PRODUCER, ADMIN) as session:
        _each(session, ids, _calls.retry)


@click.command(short_help="Cancel tasks; ask the worker of running ones.")
@click.argument("ids", nargs=-1, required=True, type=parse_id, metavar="ID...")
@pass_settings
def cancel(settings: Settings, ids: tuple[UUID, ...]) -> None:
    """Cancel tasks, and print for each what happened: cancelled, requested or finished.

    A running task is asked to stop (requested): its worker learns it within a second. A task that
    had ended before stays as it is (finished).

    Example:
      tasklib cancel 019a8d2c-7a1e-7cc3-9d5a-0c9a3b0f0000
    """
    with settings.session(PRODUCER, ADMIN) as session:
        _each(session, ids, _calls.cancel)


@click.command(short_help="Delete old finished tasks.")
@click.option(
    "--older-than", required=True, type=age, metavar="TIME", help="Finished before: 12h, 30d."
)
@click.option(
    "--state", type=click.Choice(["completed", "failed", "cancelled"]), help="Only these."
)
@pass_settings
def purge(settings: Settings, older_than: timedelta, state: str | None) -> None:
    """Delete finished tasks that ended longer ago than a time, in short transactions.

    `tasklib queues set NAME --retention 30d` does it all the time instead.

    Example:
      tasklib purge --older-than 30d --state completed
    """
    total = 0
    with settings.session(ADMIN) as session, progress(say_to_stderr) as show:
        while deleted := session.run(_admin_calls.purge(older_than, state, PURGE_ROWS)):
            total += deleted
            show(f"{total:,} tasks deleted so far")
    click.echo(f"{total} tasks deleted")


def _each(session: Session, ids: Sequence[UUID], call: Callable[[UUID], Call[str]]) -> None:
    """Do the same to every task; one that refuses does not keep the others from it."""
    refused = 0
    for task_id in ids:
        try:
            click.echo(f"{task_id} {session.run(call(task_id))}")
        except (TaskNotFound, InvalidState, UniqueKeyHeld) as error:
            refused += 1
            Refusal.of(error).show()
    if refused:
        raise click.exceptions.Exit(FAILED)


def _failures(session: Session, task_id: UUID) -> list[Record] | None:
    """Read a task's failures; None for a role that may read its own tasks, but no views."""
    try:
        return session.run(_admin_calls.failures(task_id))
    except PermissionDenied:
        return None


def _summary(task: Task) -> dict[str, object]:
    return {
        "id": task.id,
        "name": task.name,
        "queue": task.queue,
        "state": task.state,
        "attempt": task.attempt,
        "created": task.created_at,
        "note": note_on(task),
    }
