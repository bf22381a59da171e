"""The command `tasklib worker`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import click

import tasklib
from tasklib import _admin_calls
from tasklib.config import Config
from tasklib.worker.limits import resident_bytes

from ._app import pass_settings
from ._children import this_command
from ._logging import FORMATS, LEVELS, set_up_logging
from ._session import WORKER, Settings, connect, needing
from ._supervised import find_supervisor
from ._targets import load
from ._terminal import columns, is_terminal
from ._types import names, seconds, size
from ._working import AGAIN, execute_again, run
from .supervisor import Plan, become_supervisor

logger = logging.getLogger("tasklib.cli")

NO_EDGE = 1_000_000


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
    help="How many tasks run at a time in each process.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many processes; one that dies is replaced.",
)
@click.option("--drain", is_flag=True, help="Exit when nothing is left to do.")
@click.option("--reload", is_flag=True, help="Start anew when a .py file changes.")
@click.option(
    "--max-tasks",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Replace a process after so many attempts.",
)
@click.option(
    "--max-memory",
    type=size,
    metavar="SIZE",
    help="Replace a process that has grown beyond it, between tasks: 500MiB.",
)
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
    processes: int,
    reload: bool,
    no_listen: bool,
    name: str | None,
    log_level: str,
    log_format: str,
    verbose: int,
    **options: Any,
) -> None:
    """Import MODULE and run its tasks: those of @tasklib.task, or with :ATTR those of a TaskQueue.

    SIGTERM or Ctrl-C drains: nothing new is taken, and running tasks may end. A second one stops at
    once, and other workers take over what was running.

    Examples:
      tasklib worker app.tasks -q default,mail -c 8 --processes 2
      tasklib worker app.tasks:queue --drain
      tasklib worker app.tasks --reload
    """
    if reload and options["drain"]:
        raise click.UsageError("--reload goes on until it is stopped, --drain does not.")
    supervisor = find_supervisor()
    if supervisor is None and (processes > 1 or reload):
        plan = Plan(this_command(), processes, drains=options["drain"], reloads=reload)
        become_supervisor(plan, level="debug" if verbose else log_level, style=log_format)
    number = supervisor.number if supervisor and processes > 1 else None
    set_up_logging(level=log_level, style=log_format, verbose=verbose, process=number)
    try:
        registry, config = load(targets)
    finally:
        if supervisor and reload:
            supervisor.tell_sources()
    if settings.database_url:
        config = settings.config
        tasklib.init(config)  # tasks that enqueue others shall find the same database
    if no_listen:
        config = config.model_copy(update={"listen": False})
    _check_memory(options["max_memory"])
    if supervisor and config.is_memory:
        raise click.UsageError("memory:// belongs to one process: not with --processes, --reload.")
    if options["shutdown_timeout"] is None:
        options["shutdown_timeout"] = config.shutdown_timeout_seconds
    queues = queues or registry.queues()
    made = tasklib.TaskWorker(
        config,
        registry=registry,
        queues=queues,
        name=f"{name}-{number}" if name and number else name,
        handle_signals=supervisor is None,
        replaceable=True,
        on_start=(lambda: supervisor.tell("ready")) if supervisor else None,
        **options,
    )
    server = _server(config)
    if supervisor:
        supervisor.patience = options["shutdown_timeout"]
        if config.is_embedded:
            supervisor.tell_locks()
    if supervisor.is_first if supervisor else not os.environ.pop(AGAIN, None):
        _greet(
            {
                "version": tasklib.__version__,
                "server": server,
                "queues": ", ".join(queues),
                "concurrency": options["concurrency"],
                "processes": processes,
                "tasks": ", ".join(sorted(registry.tasks)),
            },
            as_json=log_format == "json",
        )
    try:
        with needing(WORKER):
            asyncio.run(run(made, supervisor, shows_progress=options["drain"]))
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None
    if made.wants_replacement:
        supervisor.tell("again") if supervisor else execute_again()


def _check_memory(limit: int | None) -> None:
    """Refuse a limit that every fresh process would be above before its first task."""
    occupied = resident_bytes()
    if limit is not None and occupied > limit:
        raise click.UsageError(
            f"--max-memory is {limit:,} bytes, and the process takes {occupied / 2**20:.0f} MiB "
            "before its first task; write 500MiB or 2GiB."
        )


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
        width = columns(sys.stderr) if is_terminal(sys.stderr) else NO_EDGE
        for name in ("server", "queues", "concurrency", "processes", "tasks"):
            begin = f"  {name:<12} "
            click.echo(click.wrap_text(str(facts[name]), width, begin, " " * 15), err=True)
