"""The command `tasklib worker`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import click

import tasklib
from tasklib import _admin_calls
from tasklib.config import Config

from ._app import pass_settings
from ._logging import FORMATS, LEVELS, set_up_logging
from ._session import WORKER, Settings, connect, needing
from ._targets import load
from ._types import names, seconds

logger = logging.getLogger("tasklib.cli")


@click.command(short_help="Run tasks.")
@click.argument("targets", nargs=-1, required=True, metavar="MODULE[:ATTR]...")
@click.option(
    "-q",
    "--queues",
    type=names,
    metavar="NAMES",
    help="Without it: 'default' and those of the tasks.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many tasks run at a time.",
)
@click.option("--drain", is_flag=True, help="Exit when nothing is left to do.")
@click.option(
    "--poll-interval",
    type=seconds,
    default="1s",
    show_default=True,
    metavar="TIME",
    help="How often to look without notifications.",
)
@click.option(
    "--shutdown-timeout",
    type=seconds,
    metavar="TIME",
    help="How long running tasks may go on after SIGTERM.  [default: 30s]",
)
@click.option("--no-listen", is_flag=True, help="Only poll: for PgBouncer in transaction mode.")
@click.option("--name", help="What the views call it.  [default: host and process id]")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("-v", "--verbose", count=True, help="More: -v TaskLib's own debug lines, -vv all.")
@pass_settings
def worker(
    settings: Settings,
    targets: tuple[str, ...],
    queues: list[str] | None,
    no_listen: bool,
    log_level: str,
    log_format: str,
    verbose: int,
    **options: Any,
) -> None:
    """Import MODULE and run its tasks: those of @tasklib.task, or with :ATTR those of a TaskQueue.

    SIGTERM or Ctrl-C drains: nothing new is taken, and running tasks may end. A second one stops at
    once, and other workers take over what was running.

    Examples:
      tasklib worker app.tasks -q default,mail -c 8
      tasklib worker app.tasks:queue --drain
    """
    set_up_logging(level=log_level, style=log_format, verbose=verbose)
    registry, config = load(targets)
    if settings.database_url:
        config = settings.config
        tasklib.init(config)  # tasks that enqueue others shall find the same database
    if no_listen:
        config = config.model_copy(update={"listen": False})
    queues = queues or registry.queues()
    made = tasklib.TaskWorker(config, registry=registry, queues=queues, **options)
    _greet(
        {
            "version": tasklib.__version__,
            "server": _server(config),
            "queues": ", ".join(queues),
            "concurrency": options["concurrency"],
            "tasks": ", ".join(sorted(registry.tasks)),
        },
        as_json=log_format == "json",
    )
    with needing(WORKER):
        asyncio.run(made.run())


def _server(config: Config) -> str:
    """Connect once before the worker does: a wrong URL or a missing schema ends here, clearly."""
    with needing(WORKER), connect(config) as session:
        session.run(_admin_calls.schema_version())
        info = session.connection.info
        version = info.parameter_status("server_version")
        return f"PostgreSQL {version}, database {info.dbname} at {info.host}:{info.port}"


def _greet(facts: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        logger.info("worker starting", extra=dict(facts))
    else:
        click.echo(f"TaskLib {facts['version']} worker", err=True)
        for name in ("server", "queues", "concurrency", "tasks"):
            click.echo(f"  {name:<12} {facts[name]}", err=True)
