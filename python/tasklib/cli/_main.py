"""The group of all commands."""

from __future__ import annotations

import click

from tasklib import __version__

from . import db, doctor, queues, schema, tasks, top, worker
from ._app import EXIT_CODES, Tasklib, with_examples
from ._session import Settings
from ._terminal import colours_wanted
from .demo import command as demo_command

__all__ = ["main"]


@click.group(
    cls=Tasklib,
    context_settings={
        "auto_envvar_prefix": "TASKLIB",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog=EXIT_CODES,
)
@click.option(
    "--database-url",
    metavar="URL",
    # Config reads the environment; here it would count as if somebody had typed it.
    allow_from_autoenv=False,
    help="postgresql://user@host/database; goes before the environment.",
)
@click.version_option(__version__, prog_name="tasklib")
@click.pass_context
def main(context: click.Context, database_url: str | None) -> None:
    """A durable task queue that lives inside PostgreSQL.

    The database is the one of --database-url, TASKLIB_DATABASE_URL, DATABASE_URL, or libpq's PG*
    variables (when PGHOST or PGSERVICE is set). Without any of them a private server under
    .tasklib/ in the project is used; TASKLIB_EMBEDDED=never refuses that.

    Options of commands can stand in the environment, too, such as TASKLIB_WORKER_CONCURRENCY=8.

    Examples:
      tasklib demo
      tasklib worker app.tasks --queues default,mail --concurrency 8
      tasklib enqueue app.send_email to=a@b.c subject=Hi
    """
    context.obj = Settings(database_url)
    # click strips colour where there is no terminal; NO_COLOR it does not know.
    if not colours_wanted():
        context.color = False


for command in (
    demo_command.demo,
    worker.worker,
    schema.migrate,
    schema.sql,
    db.db,
    tasks.enqueue,
    tasks.ls,
    tasks.show,
    tasks.retry,
    tasks.cancel,
    tasks.purge,
    queues.queues,
    queues.workers,
    top.top,
    doctor.doctor,
):
    main.add_command(command)

with_examples(main)
