"""Bring a database to this package's version, or print the SQL that does.

State is migrated, behaviour is replaced: pending migrations run once each, and then every view,
function and grant is applied again, all in one transaction.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import LiteralString, cast

import psycopg
from psycopg import Connection, errors

from tasklib import _sql
from tasklib._sql import Script
from tasklib.errors import DatabaseUnavailable, MigrationError

OLDEST_SERVER = 140000
# One second: a DDL statement that waits for a lock keeps every later statement waiting behind it.
LOCK_TIMEOUT: LiteralString = "1s"
ATTEMPTS = 30

_BEGIN: LiteralString = """
set local lock_timeout = 0;
set local statement_timeout = 0;
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
"""

_TRY_LOCK: LiteralString = (
    "select pg_try_advisory_xact_lock(hashtextextended('tasklib.migrate', 0))"
)
_LOCK: LiteralString = "select pg_advisory_xact_lock(hashtextextended('tasklib.migrate', 0))"

_SCHEMA: LiteralString = "\ncreate schema tasklib;\n"

SCHEMA_COMMENT: LiteralString = """\
comment on schema tasklib is
  'TaskLib, a durable task queue: call its functions, look at its views; its tables are private.';
"""

RECORD: LiteralString = """
create table tasklib.migration (
  name text not null,
  sha256 text not null,
  applied_at timestamptz not null default clock_timestamp(),
  constraint migration_pkey primary key (name)
);
comment on table tasklib.migration is
  'The migrations that ran in this database; the last name is the version of the schema.';
comment on column tasklib.migration.name is
  'File name without its ending, such as 0001_tables.';
comment on column tasklib.migration.sha256 is
  'Fingerprint of the text that ran; a released migration never changes.';
comment on column tasklib.migration.applied_at is 'When it ran.';
"""

_REFUSE_TWICE: LiteralString = """
do $$
begin
  if to_regclass('tasklib.migration') is not null then
    raise exception 'TaskLib is installed in this database already'
      using errcode = 'TL008', hint = 'Run `tasklib migrate` to bring it up to date.';
  end if;
end
$$;
"""

EXTENSION_HINT = (
    "Install the files of the same version in the server (`make install-extension`), and as the "
    "owner of the extension: alter extension tasklib update;"
)


def migrate(
    conninfo: str,
    *,
    plan: bool = False,
    sql: Path | None = None,
    on_wait: Callable[[str], None] = lambda _reason: None,
) -> list[str]:
    """Apply pending migrations, then replace views, functions and grants, in one transaction.

    Several callers at once wait for each other. While a table is locked by somebody else, it gives
    way and tries again, so that a long transaction does not make the queue stand still.

    Args:
        conninfo: The database, as a role that owns the schema or may create it.
        plan: Only tell what would be applied.
        sql: The folder with the files; the package's own by default.
        on_wait: Called with the reason, for people, when it has to wait for somebody else.

    Returns:
        The names of the migrations applied, oldest first; empty when the tables were current.

    Raises:
        MigrationError: A released migration was changed, the database is ahead of this package, a
            statement failed, a table stayed locked, or the queue is an extension of another
            version. Nothing was changed then.
        DatabaseUnavailable: There is no connection.
    """
    sql = sql or _sql.folder()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _connected(conninfo) as conn, conn.transaction():
                if _extension_is_current(conn, sql):
                    return []
                if plan:
                    return _names(_pending(conn, sql))
                return _apply(conn, sql, on_wait)
        except psycopg.Error as error:
            if not _is_passing(error):
                raise _explained(error) from error
            if attempt == ATTEMPTS:
                raise MigrationError(
                    f"gave up after {ATTEMPTS} attempts: {error.diag.message_primary}",
                    hint="Find who holds the lock: select * from pg_stat_activity "
                    "where xact_start < now() - interval '1 minute'.",
                    sqlstate=error.sqlstate,
                ) from error
            on_wait(
                f"waiting for a table that is in use ({error.diag.message_primary}), "
                f"attempt {attempt} of {ATTEMPTS}"
            )
            time.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - so that rivals do not move in step
    raise AssertionError("unreachable")


def pending(conninfo: str, *, sql: Path | None = None) -> list[str]:
    """Return the names of the migrations that ``migrate`` would apply; raises as it does."""
    return migrate(conninfo, plan=True, sql=sql)


def latest(*, sql: Path | None = None) -> str:
    """Return the version of the schema that belongs to this package: its last migration."""
    return _sql.migrations(sql or _sql.folder())[-1].name


def install_script(*, sql: Path | None = None) -> str:
    """Return the SQL that installs this version into a database that has none.

    It begins and commits nothing, so that it fits into another tool's migration; with psql, use
    ``--single-transaction``. A later ``migrate`` continues from it.
    """
    sql = sql or _sql.folder()
    parts = [
        f"-- TaskLib {version()}: installs the schema tasklib.\n"
        "-- Run it in one transaction: psql --single-transaction -v ON_ERROR_STOP=1 -f this-file\n",
        _REFUSE_TWICE,
        _SCHEMA,
        SCHEMA_COMMENT,
        RECORD,
    ]
    for script in _sql.migrations(sql):
        parts += [f"\n-- migrations/{script.name}.sql\n", script.text]
        parts.append(
            "\ninsert into tasklib.migration (name, sha256) "
            f"values ('{script.name}', '{script.sha256}');\n"
        )
    for script in _sql.behaviour(sql):
        parts += [f"\n-- {script.name}.sql\n", script.text]
    return "".join(parts)


@contextmanager
def _connected(conninfo: str) -> Generator[Connection]:
    try:
        # No prepared statements: it has to work through a pooler as well.
        conn = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(str(error).strip(), sqlstate=error.sqlstate) from error
    with conn:
        if conn.info.server_version < OLDEST_SERVER:
            raise MigrationError(
                f"the server is PostgreSQL {conn.info.server_version // 10000}",
                hint=f"TaskLib needs PostgreSQL {OLDEST_SERVER // 10000} or newer.",
            )
        yield conn


def _extension_is_current(conn: Connection, sql: Path) -> bool:
    """Tell whether the schema belongs to an extension of this version.

    Raises:
        MigrationError: It belongs to one of another version: what would be made here, beside it,
            would be missing in dumps and in the next version of the extension.
    """
    row = conn.execute("select extversion from pg_extension where extname = 'tasklib'").fetchone()
    if row is None:
        return False
    if row[0] == version() and not _pending(conn, sql):
        return True
    raise MigrationError(
        f"the queue is the extension tasklib {row[0]} here, and this package is {version()}",
        hint=EXTENSION_HINT,
    )


def _apply(conn: Connection, sql: Path, on_wait: Callable[[str], None]) -> list[str]:
    """Do all of it in the caller's transaction."""
    conn.execute(_BEGIN)
    if not _exists(conn, _TRY_LOCK):
        on_wait("waiting for another migration of this database")
        conn.execute(_LOCK)
    # Not before: it would cut the wait for another migration, too.
    conn.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    # Asked first: `if not exists` wants the right to create schemas even when this one exists.
    if not _exists(conn, "select to_regnamespace('tasklib') is not null"):
        conn.execute(_SCHEMA)
        conn.execute(SCHEMA_COMMENT)
    if not _exists(conn, "select to_regclass('tasklib.migration') is not null"):
        conn.execute(RECORD)
    pending = _pending(conn, sql)
    for script in pending:
        _run(conn, script)
        conn.execute(
            "insert into tasklib.migration (name, sha256) values (%s, %s)",
            (script.name, script.sha256),
        )
    for script in _sql.behaviour(sql):
        _run(conn, script)
    return _names(pending)


def _pending(conn: Connection, sql: Path) -> list[Script]:
    """Compare the files with what the database recorded."""
    files = {script.name: script for script in _sql.migrations(sql)}
    recorded = _recorded(conn)
    if unknown := sorted(recorded.keys() - files.keys()):
        raise MigrationError(
            f"the database is ahead of pg-tasklib {version()}: "
            f"it has the migration {unknown[-1]!r}",
            hint="Upgrade the package; an older one would put old functions back.",
        )
    for name, sha256 in sorted(recorded.items()):
        if files[name].sha256 != sha256:
            raise MigrationError(
                f"the migration {name!r} was changed after it ran in this database",
                hint="Restore the file and put the change into a new migration. In a database "
                "without anything to keep: drop schema tasklib cascade.",
            )
    return [script for name, script in files.items() if name not in recorded]


def _recorded(conn: Connection) -> dict[str, str]:
    if not _exists(conn, "select to_regclass('tasklib.migration') is not null"):
        return {}
    rows = conn.execute("select name, sha256 from tasklib.migration").fetchall()
    return {str(name): str(sha256) for name, sha256 in rows}


def _exists(conn: Connection, question: LiteralString) -> bool:
    row = conn.execute(question).fetchone()
    return bool(row and row[0])


def _run(conn: Connection, script: Script) -> None:
    """Run a file; several statements go in one message, as the files have no parameters."""
    try:
        conn.execute(cast(LiteralString, script.text))
    except psycopg.Error as error:
        error.add_note(f"in {script.name}.sql")
        raise


def _is_passing(error: psycopg.Error) -> bool:
    """Tell whether the same may succeed in a moment."""
    if isinstance(error, (errors.LockNotAvailable, errors.DeadlockDetected)):
        return True
    # Roles belong to all databases of a server: two that are migrated at once collide in them.
    if isinstance(error, errors.UniqueViolation):
        return error.diag.schema_name == "pg_catalog"
    return isinstance(error, errors.InternalError_)


def _explained(error: psycopg.Error) -> MigrationError:
    where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    hint = error.diag.message_hint
    if isinstance(error, errors.InsufficientPrivilege):
        hint = "Migrate as the owner of the database, or as the role that did it first."
    return MigrationError(
        f"{error.diag.message_primary or error}{where}", hint=hint, sqlstate=error.sqlstate
    )


def _names(scripts: list[Script]) -> list[str]:
    return [script.name for script in scripts]


def version() -> str:
    """Return the version of this package."""
    try:
        return metadata.version("pg-tasklib")
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "(not installed)"
