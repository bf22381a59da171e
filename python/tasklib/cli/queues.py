"""Commands about queues and workers."""

from __future__ import annotations

from datetime import timedelta

import click

from tasklib import _admin_calls

from ._app import pass_settings
from ._output import print_json, print_rows
from ._session import ADMIN, OBSERVER, Settings
from ._types import age

PRESENT = ("alive", "silent")


@click.group(invoke_without_command=True, short_help="What is in each queue; pause, resume, set.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_context
def queues(context: click.Context, as_json: bool) -> None:
    """List the queues with the number of tasks in each.

      ready      could be handed out now
      scheduled  for later
      retrying   failed, and will be tried again
      waiting    for another task with the same concurrency key
      parked     no live worker knows the name
      failed     for good

    Examples:
      tasklib queues --json
      tasklib queues pause mail
    """
    if context.invoked_subcommand is not None:
        return
    with context.ensure_object(Settings).session(OBSERVER, ADMIN) as session:
        found = session.run(_admin_calls.queues())
    if as_json:
        print_json(found)
    else:
        for row in found:
            row["oldest ready"] = _seconds(row.pop("oldest_ready_seconds"))
        print_rows(found, empty="no queue has unfinished tasks or settings")


@queues.command()
@click.argument("name")
@pass_settings
def pause(settings: Settings, name: str) -> None:
    """Hand out no more tasks of a queue; running ones go on, and new ones can be enqueued.

    Example:
      tasklib queues pause mail
    """
    with settings.session(ADMIN) as session:
        session.run(_admin_calls.pause(name))
    click.echo(f"{name} is paused")


@queues.command()
@click.argument("name")
@pass_settings
def resume(settings: Settings, name: str) -> None:
    """End the pause of a queue.

    Example:
      tasklib queues resume mail
    """
    with settings.session(ADMIN) as session:
        session.run(_admin_calls.resume(name))
    click.echo(f"{name} is not paused")


@queues.command(name="set")
@click.argument("name")
@click.option("--retention", type=age, metavar="TIME", help="Delete finished tasks after: 30d.")
@click.option("--max-crashes", type=int, help="Dead workers that one task may leave behind.")
@click.option(
    "--notify/--no-notify", default=True, help="Wake sleeping workers; --no-notify polls."
)
@pass_settings
def set_(
    settings: Settings,
    name: str,
    retention: timedelta | None,
    max_crashes: int | None,
    notify: bool,
) -> None:
    """Make the settings of a queue exactly these: what is not given goes back to its default.

    By default finished tasks are kept for ever.

    Example:
      tasklib queues set mail --retention 30d
    """
    call = _admin_calls.set_queue(name, retention=retention, max_crashes=max_crashes, notify=notify)
    with settings.session(ADMIN) as session:
        session.run(call)
    click.echo(f"{name} is set")


@click.command(short_help="Who works, since when, on how much.")
@click.option(
    "--all", "everybody", is_flag=True, help="Also those that ended, or were lost, within a day."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array with all fields.")
@pass_settings
def workers(settings: Settings, everybody: bool, as_json: bool) -> None:
    """List the workers: alive, and silent ones whose lease ran out.

    Examples:
      tasklib workers
      tasklib workers --all --json
    """
    with settings.session(OBSERVER, ADMIN) as session:
        found = session.run(_admin_calls.workers())
    if not everybody:
        found = [row for row in found if row["status"] in PRESENT]
    if as_json:
        print_json(found)
        return
    columns = ["name", "status", "running", "registered_at", "last_heartbeat_at", "worker_id"]
    rows = [{name.replace("_at", ""): row[name] for name in columns} for row in found]
    print_rows(rows, empty="no worker is registered; start one: tasklib worker MODULE")


def _seconds(value: float | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)
