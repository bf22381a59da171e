"""The command `tasklib demo`."""

from __future__ import annotations

from pathlib import Path

import click

from tasklib import _migrate
from tasklib.config import Config, redacted, resolve
from tasklib.embedded import Embedded, project_root

from .._app import FAILED, pass_settings
from .._output import as_called
from .._session import Settings
from .files import default_folder, find_files


@click.command(short_help="See the whole of it work in half a minute.")
@click.argument(
    "directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--workers", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option(
    "--limit", type=click.IntRange(10), default=2000, show_default=True, help="Files at most."
)
@pass_settings
def demo(settings: Settings, directory: Path | None, workers: int, limit: int) -> None:
    """Index the files below DIRECTORY with tasks, kill a worker meanwhile, and check the result.

    A table of documents is filled; its trigger enqueues a task for each file. Python enqueues two
    more, one with priority, one with a delay and a unique key. Workers hash the files and count
    their words. One file is missing: its task fails, is retried, and fails for good. At the end all
    results are compared with the files on disk.

    It runs on the embedded server of this project (or the one of --database-url), in the queue and
    the schema tasklib_demo. It never uses DATABASE_URL.

    Examples:
      tasklib demo
      tasklib demo /usr/share/doc --workers 4
    """
    folder = (directory or default_folder()).absolute()
    paths = find_files(folder, limit=limit)
    if not paths:
        raise click.UsageError(f"there is no readable file below {folder}.")
    if settings.database_url:
        url = resolve(Config(database_url=settings.database_url)).conninfo
        _demonstrate(url, f"on {redacted(url)}", folder, paths, workers)
    else:
        embedded = Embedded(project_root())
        with embedded as url:
            _demonstrate(url, f"PostgreSQL in {embedded.home}", folder, paths, workers)


def _demonstrate(url: str, where: str, folder: Path, paths: list[str], workers: int) -> None:
    # Only now: these import the demo's tasks, which no other worker shall know.
    from .check import faults
    from .report import report
    from .run import run

    _migrate.migrate(url)
    click.echo(f"{len(paths):,} files below {folder}, {workers} workers, {where}")
    outcome = run(Config(database_url=url), paths, workers)
    found = list(faults(outcome))
    for failure in outcome.broken[-1:]:
        click.echo(f"\nthe broken file, attempt {failure.attempt} and the last:\n")
        click.echo("".join(f"  | {line}\n" for line in str(failure.error).splitlines()))
    click.echo(report(folder, outcome))
    for fault in found:
        click.echo(f"{click.style('wrong:', fg='red')} {fault}", err=True)
    if found:
        raise click.exceptions.Exit(FAILED)
    look = f"{as_called()} ls -q tasklib_demo"
    click.echo(f"\nAll of it was checked against the disk. Look around: {look}")
