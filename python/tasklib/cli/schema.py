"""Commands about the schema: migrate, sql."""

from __future__ import annotations

from pathlib import Path

import click

from tasklib import _extension, _migrate
from tasklib.config import resolve

from ._app import Refusal, pass_settings
from ._progress import progress, say_to_stderr
from ._session import Settings


@click.command(short_help="Install the schema, or bring it up to date.")
@click.option("--plan", is_flag=True, help="Only print what would be applied.")
@pass_settings
def migrate(settings: Settings, plan: bool) -> None:
    """Apply the pending migrations and renew all functions, in one transaction.

    Safe to run at every deployment, from several machines at once, while workers run.

    Examples:
      tasklib migrate --plan
      tasklib --database-url postgresql://owner@db/app migrate
    """
    conninfo = resolve(settings.config).conninfo
    with progress(say_to_stderr, at_once=True) as show:
        names = _migrate.migrate(conninfo, plan=plan, on_wait=show)
    for name in names:
        click.echo(f"{'would apply' if plan else 'applied'} {name}")
    if not names:
        click.echo(f"{_migrate.latest()}: " + ("nothing to apply" if plan else "up to date"))


@click.command(short_help="Print the script that installs the schema.")
@click.option(
    "--extension",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the files of the extension instead: $(pg_config --sharedir)/extension.",
)
def sql(folder: Path | None) -> None:
    """Print the SQL that installs the schema in a database that has none.

    For psql, or for the migration tool that you use already. It begins and commits nothing.

    Examples:
      tasklib sql | psql --single-transaction -v ON_ERROR_STOP=1 "$DATABASE_URL"
      tasklib sql --extension "$(pg_config --sharedir)/extension"
    """
    if folder is None:
        click.echo(_migrate.install_script(), nl=False)
        return
    try:
        written = _extension.write(folder)
    except OSError as error:
        raise Refusal(
            f"{error.filename} cannot be written: {error.strerror}",
            hint="Name the server's share/extension folder, as who may write there.",
        ) from error
    for path in written:
        click.echo(path)
