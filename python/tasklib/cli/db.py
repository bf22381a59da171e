"""Commands about the embedded server: start, stop, status, url, psql."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import click

from tasklib import _binaries
from tasklib._migrate import migrate
from tasklib.embedded import Embedded, project_root

from ._app import FAILED, Refusal
from ._output import print_json

EMBEDDED = click.make_pass_decorator(Embedded)


@click.group(short_help="Start, stop and enter the embedded server.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="The project's folder; by default the nearest with pyproject.toml or .git.",
)
@click.pass_context
def db(context: click.Context, root: Path | None) -> None:
    """Look after the private PostgreSQL of this project, which is used when no URL is set.

    It starts by itself with the first process that needs it, and stops with the last one.

    Examples:
      tasklib db start
      tasklib db psql -c "select * from tasklib.queue_stats"
    """
    context.obj = Embedded(root or project_root())


@db.command()
@EMBEDDED
def start(embedded: Embedded) -> None:
    """Start the server and leave it running until `tasklib db stop`.

    Example:
      export TASKLIB_DATABASE_URL=$(tasklib db start)
    """
    with embedded as url:
        migrate(url)
        embedded.keep()
        click.echo(url)


@db.command()
@EMBEDDED
def stop(embedded: Embedded) -> None:
    """Stop the server now, also while processes use it. The data stays.

    Example:
      tasklib db stop
    """
    click.echo("stopped" if embedded.shutdown() else "was not running")


@db.command()
@EMBEDDED
def url(embedded: Embedded) -> None:
    """Print the URL of the running server; exit with 1 when it does not run.

    Example:
      psql "$(tasklib db url)"
    """
    found = embedded.url()
    if found is None:
        raise Refusal("the embedded server is not running", hint="`tasklib db start` starts it.")
    click.echo(found)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@EMBEDDED
def status(embedded: Embedded, as_json: bool) -> None:
    """Tell whether the server runs and where its data is; exit with 1 when it does not run.

    Example:
      tasklib db status
    """
    found = embedded.url()
    state = {"running": found is not None, "url": found, "data": embedded.home}
    if as_json:
        print_json(state)
    else:
        click.echo(f"running  {'yes' if found else 'no'}")
        click.echo(f"url      {found or '-'}")
        click.echo(f"data     {embedded.home}{'' if embedded.home.exists() else ' (not made yet)'}")
    if found is None:
        raise click.exceptions.Exit(FAILED)


@db.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL ARGUMENTS]...")
@EMBEDDED
def psql(embedded: Embedded, arguments: tuple[str, ...]) -> None:
    """Open psql on the server, which is started if need be.

    Example:
      tasklib db psql -c "select * from tasklib.tasks limit 10"
    """
    program = _psql()
    with embedded as url:
        migrate(url)
        # Ctrl-C is psql's: it ends a query there, and not us.
        signal.signal(signal.SIGINT, _do_nothing)
        raise click.exceptions.Exit(subprocess.call([program, url, *arguments]))


def _do_nothing(_number: int, _frame: object) -> None:
    """Handle a signal by ignoring it: unlike SIG_IGN this is not inherited by programs."""


def _psql() -> str:
    beside = _binaries.find().folder / "psql"
    found = str(beside) if beside.exists() else shutil.which("psql")
    if found is None:
        raise Refusal(
            "there is no psql on this machine",
            hint="Install a PostgreSQL client (apt-get install postgresql-client).",
        )
    return found
