"""Bring a database to this package's version, or print the SQL that does.

State is migrated, behaviour is replaced: pending migrations run once each, and then every view,
function and grant is applied again, all in one transaction.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import LiteralString, cast

import psycopg
from psycopg import Connection, errors

from tasklib import _sql, _table_locks
from tasklib._sql import Script
from tasklib.errors import DatabaseUnavailable, MigrationError

OLDEST_SERVER = 140000
# How long to wait for a table that is in use, or for the transactions that an old function runs in.
PATIENCE_SECONDS = 300.0
LINGER_SECONDS = 10.0
# While tables are locked, nothing else is waited for.
_NO_WAITING: LiteralString = "set local lock_timeout = '500ms';"

_BEGIN: LiteralString = """
set transaction isolation level read committed, read write;
set local lock_timeout = 0;
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
"""

_TRY_LOCK: LiteralString = (
    "select pg_try_advisory_xact_lock(hashtextextended('tasklib.migrate', 0))"
)
_LOCK: LiteralString = "select pg_advisory_xact_lock(hashtextextended('tasklib.migrate', 0))"

_OWNER: LiteralString = """
select pg_get_userbyid(relowner), pg_get_userbyid(relowner) = current_user,
  pg_has_role(current_user, relowner, 'MEMBER'),
  (select rolsuper from pg_roles where rolname = current_user)
from pg_class where oid = (
  select pg_class.oid from pg_class join pg_namespace as space on space.oid = relnamespace
  where nspname = 'tasklib' and relname = 'migration')
"""

# Calls that began before the commit go on in the old functions: what those call has to be there.
LEFT_OVER: LiteralString = (
    "Internal. Left over from an older version; the next `tasklib migrate` drops it."
)
_HELPERS: LiteralString = r"""
select oid::int8, xmin::text from pg_proc
where pronamespace = to_regnamespace('tasklib') and proname like '\_%'
  and obj_description(oid, 'pg_proc') like 'Internal.%'
"""
# But not when a new function takes the same arguments and has defaults for more: then a call could
# mean both, and the new one answers the old calls as well.
_LABELS: LiteralString = """
select string_agg(
  case when exists (
    select from pg_proc as new
    where new.pronamespace = old.pronamespace and new.proname = old.proname
      and not new.oid = any (%(left)s)
      and new.pronargs - new.pronargdefaults <= old.pronargs
      and (old.pronargs = 0 or new.proargtypes::text || ' ' like old.proargtypes::text || ' %%')
  )
  then format('drop function %%s', old.oid::regprocedure)
  else format('comment on function %%s is %%L', old.oid::regprocedure, %(label)s::text)
  end, '; ')
from pg_proc as old where old.oid = any (%(left)s)
"""
_VIEWS = re.compile(r"\b(create or replace view|comment on view|comment on column) tasklib\.(\w+)")
_SAME_VIEW: LiteralString = """
select count(*) = 2 and count(distinct description) = 1
from (
  select format('%%s %%s %%s %%s', pg_get_viewdef(view.oid), view.reloptions,
    obj_description(view.oid, 'pg_class'), (
      select array_agg((attname, atttypid, col_description(attrelid, attnum)) order by attnum)
      from pg_attribute where attrelid = view.oid and attnum > 0)) as description
  from pg_class as view
  where view.relnamespace = to_regnamespace('tasklib')
    and view.relname in (%(name)s::text, '_new_' || %(name)s::text)
) as both_views
"""
_DROP: LiteralString = """
select 'drop function ' || string_agg(oid::regprocedure::text, ', ')
from pg_proc
where pronamespace = to_regnamespace('tasklib') and obj_description(oid, 'pg_proc') = %s
"""

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

    Several callers at once wait for each other. While a transaction of somebody else holds a table
    that a migration changes, it waits without keeping others from the queue.

    Args:
        conninfo: The database, as the role that owns the queue, a member of it, or one that may
            create the schema.
        plan: Only tell what would be applied.
        sql: The folder with the files; the package's own by default.
        on_wait: Called with the reason, for people, when it has to wait for somebody else.

    Returns:
        The names of the migrations applied, oldest first; empty when the tables were current.

    Raises:
        MigrationError: A released migration was changed, the database is ahead of this package, the
            role does not own the queue, a statement failed, a table stayed in use, or the queue is
            an extension of another version. Nothing was changed then.
        DatabaseUnavailable: There is no connection.
    """
    sql = sql or _sql.folder()
    try:
        with _connected(conninfo) as conn:
            with conn.transaction():
                conn.execute(_BEGIN)
                is_extension = _extension_is_current(conn, sql)
                if plan:
                    return _names(_pending(conn, sql))
                names: list[str] = []
                if not is_extension:
                    _wait_for_turn(conn, on_wait)
                    is_superuser = _become_owner(conn)
                    names = _apply_patiently(conn, sql, on_wait, is_superuser=is_superuser)
            _drop_left_over(conn)
            return names
    except psycopg.Error as error:
        raise _explained(error) from error


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
        parts.append(_record(script))
    for script in _sql.behaviour(sql):
        parts += [f"\n-- {script.name}.sql\n", script.text]
    return "".join(parts)


def _record(script: Script) -> str:
    return (
        "\ninsert into tasklib.migration (name, sha256) "
        f"values ('{script.name}', '{script.sha256}');\n"
    )


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


def _wait_for_turn(conn: Connection, on_wait: Callable[[str], None]) -> None:
    if not _exists(conn, _TRY_LOCK):
        on_wait("waiting for another migration of this database")
        conn.execute(_LOCK)


def _become_owner(conn: Connection) -> bool:
    """Act as the role that owns the tables, and return whether the caller is a superuser.

    Functions run with the rights of their owner: what somebody else made, they could not touch.

    Raises:
        MigrationError: The caller may not.
    """
    row = conn.execute(_OWNER).fetchone()
    if row is None:
        return False
    owner, is_owner, is_member, is_superuser = row
    if not is_owner:
        if not is_member:
            raise MigrationError(
                f"the queue in this database belongs to the role {owner!r}",
                hint=f"Migrate as {owner}, or as a member of it.",
            )
        conn.execute("select set_config('role', %s, true)", [owner])
    return bool(is_superuser)


def _apply_patiently(
    conn: Connection, sql: Path, on_wait: Callable[[str], None], *, is_superuser: bool
) -> list[str]:
    """Try again while the reason is a passing one; nothing is held in between."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with conn.transaction():
                return _apply(conn, sql, deadline, on_wait, is_superuser=is_superuser)
        except psycopg.Error as error:
            if not _is_passing(error):
                raise
            told = error.diag.message_primary or error
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"gave up after {PATIENCE_SECONDS:.0f} s: {told}",
                    hint="Find who holds the lock: select * from pg_stat_activity "
                    "where xact_start < now() - interval '1 minute'.",
                    sqlstate=error.sqlstate,
                ) from error
            on_wait(f"waiting for a table that is in use ({told})")
        # So that clients get on in between, and rivals do not move in step.
        time.sleep(random.uniform(0.5, 1.5))  # noqa: S311


def _apply(
    conn: Connection,
    sql: Path,
    deadline: float,
    on_wait: Callable[[str], None],
    *,
    is_superuser: bool,
) -> list[str]:
    """Do all of it in the caller's transaction."""
    pending = _pending(conn, sql)
    changes = [Script(script.name, script.text + _record(script)) for script in pending]
    views, functions, grants = _sql.parts(sql)
    before = dict(conn.execute(_HELPERS).fetchall())
    touched = _table_locks.relations(conn, [script.text for script in pending])
    if touched.tables:
        _table_locks.wait_for_holders(conn, touched, deadline, on_wait)
        _table_locks.lock(conn, touched)
        # Everybody waits now: be quick. That bodies are well-formed was seen wherever this was
        # installed.
        conn.execute(f"{_NO_WAITING} set local check_function_bodies = off")
        changes += views
    else:
        conn.execute(_NO_WAITING)
        # Asked first: `if not exists` wants the right to create schemas even when this one exists.
        if not _exists(conn, "select to_regnamespace('tasklib') is not null"):
            conn.execute(_SCHEMA)
            conn.execute(SCHEMA_COMMENT)
        if not _exists(conn, "select to_regclass('tasklib.migration') is not null"):
            conn.execute(RECORD)
        _run(conn, changes)
        changes = [script for script in views if _changes_views(conn, script)]
    _run(conn, [*changes, *functions])
    _label_left_over(conn, before)
    if is_superuser:  # the owner may not be allowed to make roles
        grants = [Script("role", "set local role none;\n"), *grants]
    _run(conn, grants)
    return _names(pending)


def _changes_views(conn: Connection, script: Script) -> bool:
    """Tell whether the views are others than those of the script.

    To replace a view waits for everybody who has read it in an open transaction.
    """
    names = sorted({name for _, name in _VIEWS.findall(script.text)})
    _run(conn, [Script(script.name, _VIEWS.sub(r"\1 tasklib._new_\2", script.text))])
    is_same = all(_exists(conn, _SAME_VIEW, {"name": name}) for name in names)
    if names:
        made = ", ".join(f"tasklib._new_{name}" for name in names)
        conn.execute(cast(LiteralString, f"drop view {made}"))
    return not is_same


def _label_left_over(conn: Connection, before: dict[int, str]) -> None:
    """Mark the helpers that no file of this version has made anew, to be dropped afterwards."""
    after = dict(conn.execute(_HELPERS).fetchall())
    left = [oid for oid, version in after.items() if before.get(oid) == version]
    row = conn.execute(_LABELS, {"left": left, "label": LEFT_OVER}).fetchone()
    if row and row[0]:
        conn.execute(row[0])


def _drop_left_over(conn: Connection) -> None:
    """Drop the helpers of the old version when the calls that may be inside of it are over.

    While one of those goes on, they stay: a later `migrate` finds them by their comments.
    """
    if not _exists(conn, _DROP, [LEFT_OVER]):
        return
    deadline = time.monotonic() + LINGER_SECONDS
    time.sleep(0.2)  # until a call that had just begun can be seen by its locks
    old = _table_locks.users(conn)
    while old := old & _table_locks.users(conn):
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)
    with conn.transaction():
        conn.execute(_BEGIN)
        if not _exists(conn, _TRY_LOCK):
            return  # another migration does it
        _become_owner(conn)
        row = conn.execute(_DROP, [LEFT_OVER]).fetchone()
        if row and row[0]:
            # Something of the user's may depend on one; then they stay, and harm nobody.
            with contextlib.suppress(errors.DependentObjectsStillExist):
                conn.execute(row[0])


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


def _exists(
    conn: Connection, question: LiteralString, params: Sequence[object] | Mapping[str, object] = ()
) -> bool:
    row = conn.execute(question, params or None).fetchone()
    return bool(row and row[0])


def _run(conn: Connection, scripts: Sequence[Script]) -> None:
    """Run files in one message, as they have no parameters: each answer takes time to come."""
    text = "".join(script.text for script in scripts)
    try:
        conn.execute(cast(LiteralString, text))
    except psycopg.Error as error:
        position = int(error.diag.statement_position or len(text) + 1)
        for script in scripts:
            if 0 < position <= len(script.text):
                error.add_note(f"in {script.name}.sql")
            position -= len(script.text)
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
