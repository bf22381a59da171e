"""`tasklib migrate` and `tasklib sql`."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner
from psycopg import Connection

from tasklib import _migrate
from tasklib.cli import main

from .conftest import Cli


def test_migrate_installs_and_then_has_nothing_to_do(cli: Cli, conn: Connection[Any]) -> None:
    conn.execute("drop schema tasklib cascade")
    latest = _migrate.latest()

    assert f"would apply {latest}\n" in cli("migrate", "--plan").stdout
    assert conn.execute("select to_regnamespace('tasklib')").fetchone() == (None,)
    assert f"applied {latest}\n" in cli("migrate").stdout
    assert cli("migrate", "--plan").stdout == f"{latest}: nothing to apply\n"
    assert cli("migrate").stdout == f"{latest}: up to date\n"


def test_migrate_refuses_a_database_that_is_ahead(cli: Cli, conn: Connection[Any]) -> None:
    conn.execute("insert into tasklib.migration (name, sha256) values ('9999_future', 'x')")

    result = cli("migrate", code=1)

    assert "9999_future" in result.stderr
    assert "hint:" in result.stderr


def test_a_command_on_a_database_without_the_schema_says_what_to_run(
    cli: Cli, conn: Connection[Any]
) -> None:
    conn.execute("drop schema tasklib cascade")

    result = cli("ls", code=1)

    assert "hint: Run `tasklib migrate` on this database." in result.stderr


def test_sql_prints_the_script_and_needs_no_database() -> None:
    result = CliRunner().invoke(main, ["--database-url", "postgresql://x:1/none", "sql"])

    assert result.exit_code == 0
    assert result.stdout == _migrate.install_script()
