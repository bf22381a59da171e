"""The queue as an extension: made by its make target, used, updated, dumped, restored, left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import catalog
from private_server import PrivateServer, dump_program, private_server
from tasklib import _extension, _migrate, _sql
from tasklib._migrate import migrate
from tasklib.errors import MigrationError

REPOSITORY = Path(__file__).parents[1]
VERSION = _migrate.version()
RELEASES = sorted((REPOSITORY / "sql/releases").glob("*.sql"))
OWNER = "extension_owner"


@pytest.fixture(scope="module")
def private() -> Generator[PrivateServer]:
    """A server that has the extension, installed as its users install it."""
    with private_server() as server:
        _make("install-extension", f"PG_CONFIG={server.pg_config}")
        for release in RELEASES:
            if release.stem != VERSION:
                script = _extension.from_script(release.read_text(), release.stem)
                (server.extensions / f"tasklib--{release.stem}.sql").write_text(script)
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(f"create role {OWNER} login createrole")
        yield server


def _make(*words: str) -> str:
    """Run a make target with this environment's Python, without setting up another."""
    folder = Path(sys.executable).parent
    stamps = ["--old-file=.venv/.installed", f"BIN={folder}", "STAMP="]
    ran = subprocess.run(
        ["make", "--no-print-directory", *stamps, *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def make_database(private: PrivateServer) -> Generator[Callable[[], str]]:
    """Make databases of the owner, who is no superuser."""
    names: list[str] = []

    def make() -> str:
        names.append(f"extension_{uuid4().hex[:12]}")
        with psycopg.connect(private.dsn, autocommit=True) as conn:
            conn.execute(f'create database "{names[-1]}" owner {OWNER} template template0')
        return make_conninfo(private.dsn, dbname=names[-1], user=OWNER)

    yield make
    with psycopg.connect(private.dsn, autocommit=True) as conn:
        for name in names:
            conn.execute(f'drop database "{name}" with (force)')


@pytest.fixture
def empty(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
def extended(empty: str) -> str:
    """A database with the extension."""
    execute(empty, "create extension tasklib")
    return empty


def execute(dsn: str, *statements: str) -> Any:
    """Run statements, in a transaction each; return the first value of the last."""
    with psycopg.connect(dsn, autocommit=True) as conn, conn.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def superuser(private: PrivateServer, dsn: str) -> str:
    return make_conninfo(private.dsn, dbname=str(conninfo_to_dict(dsn)["dbname"]))


def schema_of(dsn: str) -> list[str]:
    """Describe the schema; without what only the extension has."""
    with psycopg.connect(dsn) as conn:
        found = [line for line in catalog.lines(conn) if "restore_config" not in line]
    return [line for line in found if not line.startswith("comment extension ")]


def rows_of(dsn: str) -> dict[str, list[Any]]:
    """Return everything that is stored: rows of tables, and values of sequences."""
    with psycopg.connect(dsn) as conn:
        names = conn.execute(
            "select relname, relkind from pg_class "
            "where relnamespace = 'tasklib'::regnamespace and relkind in ('r', 'S')"
        ).fetchall()
        queries = {
            name: sql.SQL(
                "select last_value from tasklib.{}"
                if kind == "S"
                else "select to_jsonb(row) from tasklib.{} as row order by 1::text"
            )
            for name, kind in names
            if name != "migration"  # says when it was made
        }
        return {
            name: conn.execute(query.format(sql.Identifier(name))).fetchall()
            for name, query in queries.items()
        }


def objects_beside(dsn: str) -> list[str]:
    """List what is in the schema and not in the extension."""
    with psycopg.connect(dsn) as conn:
        return [
            row[0]
            for row in conn.execute("""
              select pg_describe_object(d.classid, d.objid, 0)
              from pg_depend as d
              where d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'tasklib'::regnamespace
                and d.classid <> 'pg_extension'::regclass
                and not exists (select from pg_depend as e where e.classid = d.classid
                  and e.objid = d.objid and e.deptype = 'e')""")
        ]


def test_it_is_what_migrate_makes(make_database: Callable[[], str]) -> None:
    plain, extended = make_database(), make_database()
    migrate(plain)
    execute(extended, "create extension tasklib")

    assert schema_of(extended) == schema_of(plain)
    assert objects_beside(extended) == []
    assert execute(extended, "select tasklib.version()") == _migrate.latest()


def test_an_ordinary_owner_makes_it_and_owns_all_of_it(extended: str) -> None:
    assert execute(extended, "select rolsuper from pg_roles where rolname = current_user") is False
    assert execute(extended, OTHERS) == 0


def test_who_owns_nothing_makes_nothing(private: PrivateServer, empty: str) -> None:
    """Were it trusted, its functions would be the superuser's, and run as him."""
    execute(superuser(private, empty), "create role nobody_special login")
    with pytest.raises(errors.InsufficientPrivilege):
        execute(make_conninfo(empty, user="nobody_special"), "create extension tasklib")


def test_a_task_goes_through_it(extended: str) -> None:
    execute(extended, "select tasklib.enqueue('a', '{\"x\": 1}')")
    worker = execute(extended, "select tasklib.register_worker('w')")
    done = execute(
        extended,
        f"select tasklib.finish('{worker}', array[id], array[attempt], "
        f"'[{{\"state\": \"completed\"}}]') from tasklib.claim('{worker}', '{{default}}', 1)",
    )
    assert done == "ok"
    assert execute(extended, "select state from tasklib.tasks") == "completed"


def dump_and_restore(private: PrivateServer, source: str, target: str, *options: str) -> None:
    """Take a dump and play it into an empty database, as a DBA does."""
    major = execute(private.dsn, "select current_setting('server_version_num')::int / 10000")
    dumped = subprocess.run(
        [dump_program("pg_dump", major), *options, "-Fc", "-d", superuser(private, source)],
        capture_output=True,
        check=False,
    )
    assert dumped.returncode == 0, dumped.stderr
    restored = subprocess.run(
        [
            dump_program("pg_restore", major),
            "--exit-on-error",
            "-d",
            superuser(private, target),
        ],
        input=dumped.stdout,
        capture_output=True,
        check=False,
    )
    assert restored.returncode == 0, restored.stderr


USED = """
do $$
declare
  v_worker uuid := tasklib.register_worker('w', task_types => '["a"]');
begin
  perform tasklib.enqueue('a', jsonb_build_object('n', n), tags => '{"k": "v"}',
    unique_key => n::text, concurrency_key => (n % 3)::text) from generate_series(1, 20) as n;
  perform tasklib.enqueue('a', delay => '1 hour');
  perform tasklib.enqueue('unknown');
  perform tasklib.set_queue('default', retention => '30 days');
  perform tasklib.pause('other');
  perform tasklib.fail(id, v_worker, attempt, 'no') from tasklib.claim(v_worker, '{default}', 2);
  update tasklib.config set shard = 7;
end
$$
"""


def test_a_dump_keeps_the_rows(private: PrivateServer, make_database: Callable[[], str]) -> None:
    source, target = make_database(), make_database()
    claim = "select tasklib.claim(id, '{default}', 2) from tasklib.worker"
    execute(source, "create extension tasklib", USED, claim, "select tasklib.tick()")

    dump_and_restore(private, source, target)

    before = rows_of(source)
    assert rows_of(target) == before
    filled = {name for name, rows in before.items() if rows}
    assert filled > {"task", "ready", "delayed", "running", "failure", "tag", "worker", "queue"}
    assert execute(target, "select shard from tasklib.config") == 7
    assert schema_of(target) == schema_of(source)


def test_a_restored_queue_goes_on(private: PrivateServer, make_database: Callable[[], str]) -> None:
    source, target = make_database(), make_database()
    claim = "select tasklib.claim(id, '{default}', 2) from tasklib.worker"
    execute(source, "create extension tasklib", USED, claim, "select tasklib.tick()")
    dump_and_restore(private, source, target)

    execute(target, "update tasklib.worker set lease_until = now() - interval '1 s', graced = true")
    execute(target, "select tasklib.enqueue('a')", *["select tasklib.tick()"] * 3)
    worker = execute(target, "select tasklib.register_worker('new')")
    claim = f"select count(*) from tasklib.claim('{worker}', '{{default}}', 100)"
    assert execute(target, claim) >= 3
    assert execute(target, "select tasklib.sweep()") == 0


def test_no_table_is_left_out_of_dumps(extended: str) -> None:
    """A new table with rows of its own needs a decision: see `_extension.OWN_ROWS`."""
    left_out = """
      select array_agg(relname::text) from pg_class
      where relnamespace = 'tasklib'::regnamespace and relkind in ('r', 'S', 'p') and oid <> all (
        select unnest(extconfig) from pg_extension where extname = 'tasklib')"""
    assert {*execute(extended, left_out)} <= {*_extension.OWN_ROWS}
    filled = {name for name, rows in rows_of(extended).items() if rows}
    tables = filled - {"position", "asleep_until", "notified_at", "offer"}
    assert tables <= {"config", *_extension.OWN_ROWS}


def test_an_update_leads_from_every_release_to_the_same(make_database: Callable[[], str]) -> None:
    fresh = make_database()
    execute(fresh, "create extension tasklib")
    assert {path.stem for path in RELEASES} == {*_extension.RELEASES}
    for release in _extension.RELEASES:
        if release == VERSION:
            continue
        updated = make_database()
        execute(updated, f"create extension tasklib version '{release}'")
        task = execute(updated, "select tasklib.enqueue('a')")
        execute(updated, "alter extension tasklib update")
        assert {left for left in objects_beside(updated) if "tasklib._" not in left} == set()
        migrate(updated)  # drops the helpers of the old version, which calls might still need

        assert schema_of(updated) == schema_of(fresh)
        assert objects_beside(updated) == []
        assert (
            execute(updated, "select extversion from pg_extension where extname = 'tasklib'")
            == VERSION
        )
        assert execute(updated, "select id from tasklib.tasks") == task
        assert rows_of(updated).keys() == rows_of(fresh).keys()


def test_all_of_it_is_the_schema_owners_when_a_superuser_comes(
    private: PrivateServer, make_database: Callable[[], str]
) -> None:
    """Also what an update adds: a function that is a superuser's would run as him."""
    made, updated = make_database(), make_database()
    execute(made, "create schema tasklib")
    execute(superuser(private, made), "create extension tasklib")
    execute(updated, "create extension tasklib version '0.1.0'")
    execute(superuser(private, updated), "alter extension tasklib update")
    migrate(updated)

    assert execute(made, OTHERS) == execute(updated, OTHERS) == 0
    assert schema_of(made) == schema_of(updated)
    assert execute(made, "select tasklib.enqueue('a') is not null")


OTHERS = """
select count(*) from (
  select relowner, relnamespace from pg_class
  union all select proowner, pronamespace from pg_proc
  union all select typowner, typnamespace from pg_type) as objects(owner, space)
where space = 'tasklib'::regnamespace and owner <> current_user::regrole"""


def test_nobody_else_makes_it_in_the_schema(private: PrivateServer, empty: str) -> None:
    other = make_conninfo(empty, user="extension_other")
    execute(
        superuser(private, empty),
        "create role extension_other login",
        "create schema tasklib",
        f"grant create on database {conninfo_to_dict(empty)['dbname']} to extension_other",
        "grant create, usage on schema tasklib to extension_other",
    )
    with pytest.raises(psycopg.Error, match="the schema tasklib belongs to") as refused:
        execute(other, "create extension tasklib")
    assert refused.value.sqlstate == "TL011"


def test_an_install_without_it_is_taken_in_and_let_go(make_database: Callable[[], str]) -> None:
    plain, fresh = make_database(), make_database()
    execute(fresh, "create extension tasklib")
    migrate(plain)
    before = schema_of(plain)
    task = execute(plain, "select tasklib.enqueue('a')")

    with pytest.raises(psycopg.Error, match="installed in this database already") as refused:
        execute(plain, "create extension tasklib")
    assert "unpackaged" in str(refused.value.diag.message_hint)
    execute(
        plain, "create extension tasklib version 'unpackaged'", "alter extension tasklib update"
    )
    migrate(plain)
    assert schema_of(plain) == schema_of(fresh)
    assert objects_beside(plain) == []

    execute(plain, snippet("alter extension tasklib drop"))
    assert execute(plain, "select count(*) from pg_extension where extname = 'tasklib'") == 0
    assert execute(plain, "select id from tasklib.tasks") == task
    assert migrate(plain) == []
    with psycopg.connect(plain) as conn:
        assert catalog.lines(conn) == before


def snippet(words: str) -> str:
    """Return the block of the documentation that has these words."""
    page = (REPOSITORY / "docs/production.md").read_text()
    (found,) = [text for text in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if words in text]
    return found


def test_what_is_not_the_owners_is_not_taken_in(private: PrivateServer, empty: str) -> None:
    migrate(empty)
    execute(superuser(private, empty), "create function tasklib.evil() returns int return 1")
    with pytest.raises(psycopg.Error, match=r"function tasklib\.evil\(\) belongs to tasklib"):
        execute(empty, "create extension tasklib version 'unpackaged'")


def test_nothing_to_take_in_is_said(empty: str) -> None:
    with pytest.raises(psycopg.Error, match="no TaskLib in this database"):
        execute(empty, "create extension tasklib version 'unpackaged'")


def test_dropping_it_drops_the_queue(extended: str) -> None:
    execute(extended, "drop extension tasklib")
    query = "select count(*) from pg_class where relnamespace = 'tasklib'::regnamespace"
    assert execute(extended, query) == 0
    execute(extended, "create extension tasklib")


def test_migrate_leaves_it_alone(extended: str) -> None:
    before = schema_of(extended)
    assert migrate(extended) == migrate(extended, plan=True) == []
    assert schema_of(extended) == before


@pytest.mark.parametrize("plan", [False, True])
def test_migrate_says_who_updates_it(empty: str, plan: bool) -> None:
    execute(empty, "create extension tasklib version '0.1.0'")
    with pytest.raises(MigrationError, match=r"extension tasklib 0\.1\.0") as refused:
        migrate(empty, plan=plan)
    assert "alter extension tasklib update" in str(refused.value.hint)
    assert objects_beside(empty) == []


def test_doctor_says_so_too(empty: str) -> None:
    execute(empty, "create extension tasklib version '0.1.0'")
    doctor = [sys.executable, "-m", "tasklib.cli", "--database-url", empty, "doctor"]
    command = [*doctor, "--only", "schema"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "extension tasklib 0.1.0" in ran.stdout
    assert "alter extension tasklib update" in ran.stdout

    execute(empty, "alter extension tasklib update")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "an extension" in ran.stdout


def test_the_files_are_those_of_this_version(private: PrivateServer) -> None:
    assert f"default_version = '{VERSION}'" in (private.extensions / "tasklib.control").read_text()
    installed = (private.extensions / f"tasklib--{VERSION}.sql").read_text()
    for script in [*_sql.migrations(_sql.folder()), *_sql.behaviour(_sql.folder())]:
        assert script.text in installed


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasklib.cli", "sql", "--extension", tmp_path / "none"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert str(tmp_path / "none") in ran.stderr
    assert "Traceback" not in ran.stderr
