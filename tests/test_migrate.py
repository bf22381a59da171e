"""Migrations: once each, in one transaction, never backwards; fresh equals upgraded."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import catalog
from servers import Server
from tasklib import _migrate, _sql
from tasklib._migrate import install_script, latest, migrate, pending
from tasklib.errors import DatabaseUnavailable, MigrationError

REPOSITORY = Path(__file__).parents[1]
RELEASES = sorted((REPOSITORY / "sql" / "releases").glob("*.sql"))

TABLE = "create table tasklib.thing (id int);\n"
FUNCTION = (
    "create or replace function tasklib.answer() returns int\nlanguage sql\nas $$ select 42 $$;\n"
)


@pytest.fixture
def make_database(server: Server) -> Generator[Callable[[], str]]:
    """Make databases without anything in them."""
    names: list[str] = []

    def make() -> str:
        names.append(f"tasklib_empty_{uuid4().hex}")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(f'create database "{names[-1]}" template template0')
        return server.conninfo(names[-1])

    yield make
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        for name in names:
            conn.execute(f'drop database "{name}" with (force)')


@pytest.fixture
def empty(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    """A small folder of SQL files, to be changed by tests."""
    return write(tmp_path / "sql", {"0001_thing": TABLE}, {"answer": FUNCTION})


def write(folder: Path, migrations: dict[str, str], functions: dict[str, str]) -> Path:
    for kind, files in (("migrations", migrations), ("functions", functions)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / kind / f"{name}.sql").write_text(text)
    return folder


def value(conninfo: str, query: str) -> Any:
    with psycopg.connect(conninfo) as conn:
        row = conn.execute(query).fetchone()
        assert row
        return row[0]


def describe(conninfo: str) -> list[str]:
    with psycopg.connect(conninfo) as conn:
        return catalog.lines(conn)


def test_a_fresh_database_gets_everything(empty: str) -> None:
    names = [script.name for script in _sql.migrations(_sql.folder())]
    assert migrate(empty) == names
    assert value(empty, "select array_agg(name order by name) from tasklib.migration") == names
    assert value(empty, "select tasklib.version()") == latest() == names[-1]


def test_a_second_run_changes_nothing(empty: str) -> None:
    migrate(empty)
    before = describe(empty)
    assert migrate(empty) == []
    assert describe(empty) == before


def test_four_at_once_apply_each_migration_once(empty: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: migrate(empty), range(4)))
    assert sorted(results) == [
        [],
        [],
        [],
        [script.name for script in _sql.migrations(_sql.folder())],
    ]


def test_databases_of_one_server_can_be_migrated_at_once(make_database: Callable[[], str]) -> None:
    databases = [make_database() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(migrate, databases))
    assert results[0] == results[1] == results[2] != []


def test_a_plan_changes_nothing(empty: str, sql: Path) -> None:
    assert migrate(empty, plan=True, sql=sql) == pending(empty, sql=sql) == ["0001_thing"]
    assert value(empty, "select to_regnamespace('tasklib') is null")


def test_only_what_is_new_is_applied(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    write(sql, {"0002_more": "alter table tasklib.thing add column name text;\n"}, {})
    assert pending(empty, sql=sql) == ["0002_more"]
    assert migrate(empty, sql=sql) == ["0002_more"]
    assert pending(empty, sql=sql) == []


def test_functions_are_replaced_every_time(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    write(sql, {}, {"answer": FUNCTION.replace("42", "43")})
    assert migrate(empty, sql=sql) == []
    assert value(empty, "select tasklib.answer()") == 43


def test_a_changed_migration_is_refused(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    write(sql, {"0001_thing": TABLE + "-- more\n"}, {"answer": FUNCTION.replace("42", "43")})
    with pytest.raises(MigrationError, match="'0001_thing' was changed"):
        migrate(empty, sql=sql)
    assert value(empty, "select tasklib.answer()") == 42


def test_other_line_ends_are_not_a_change(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    (sql / "migrations" / "0001_thing.sql").write_bytes(TABLE.replace("\n", "\r\n").encode())
    assert migrate(empty, sql=sql) == []


def test_a_database_ahead_of_the_package_is_refused(empty: str, sql: Path) -> None:
    migrate(empty, sql=write(sql, {"0002_future": "select 1;\n"}, {}))
    (sql / "migrations" / "0002_future.sql").unlink()
    with pytest.raises(MigrationError, match=r"ahead of pg-tasklib .*'0002_future'"):
        migrate(empty, sql=sql)


def test_a_migration_that_calls_a_function_fails_on_a_fresh_database(empty: str, sql: Path) -> None:
    write(sql, {"0002_wrong": "select tasklib.answer();\n"}, {})
    with pytest.raises(MigrationError, match=r"tasklib\.answer\(\).* in 0002_wrong\.sql"):
        migrate(empty, sql=sql)


def test_a_failure_leaves_nothing_behind(empty: str, sql: Path) -> None:
    write(sql, {}, {"broken": "create function tasklib.broken( returns int;\n"})
    with pytest.raises(MigrationError, match=r"in broken\.sql"):
        migrate(empty, sql=sql)
    assert value(empty, "select to_regnamespace('tasklib') is null")


def test_it_gives_way_to_a_locked_table_and_tries_again(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    write(sql, {"0002_more": "alter table tasklib.thing add column name text;\n"}, {})
    with psycopg.connect(empty) as holder:
        holder.execute("lock table tasklib.thing")
        threading.Timer(2.0, holder.commit).start()
        assert migrate(empty, sql=sql) == ["0002_more"]


def test_it_gives_up_when_the_table_stays_locked(
    empty: str, sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_migrate, "PATIENCE_SECONDS", 1)
    migrate(empty, sql=sql)
    write(sql, {"0002_more": "alter table tasklib.thing add column name text;\n"}, {})
    with psycopg.connect(empty) as holder:
        holder.execute("lock table tasklib.thing")
        with pytest.raises(MigrationError, match=r"gave up: .* process \d+"):
            migrate(empty, sql=sql)


def test_nobody_waits_behind_it_while_a_dump_holds_the_table(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    write(sql, {"0002_more": "alter table tasklib.thing add column name text;\n"}, {})
    reasons: list[str] = []
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(empty) as dump,
        psycopg.connect(empty, autocommit=True) as client,
    ):
        dump.execute("lock table tasklib.thing in access share mode")
        dumper = f"process {dump.info.backend_pid} ("
        migration = pool.submit(migrate, empty, sql=sql, on_wait=reasons.append)
        wait_until(lambda: len(reasons) > 3)
        client.execute("set lock_timeout = '50ms'")
        while len(reasons) < 6:
            client.execute("insert into tasklib.thing values (1)")
        dump.commit()
        assert migration.result() == ["0002_more"]
    assert all(dumper in reason for reason in reasons)


def test_it_gives_up_before_a_client_is_taken_for_the_cause_of_a_deadlock(
    empty: str, sql: Path
) -> None:
    write(sql, {"0002_other": "create table tasklib.other (id int);\n"}, {})
    migrate(empty, sql=sql)
    change = (
        "alter table tasklib.other add column a int; alter table tasklib.thing add column a int;"
    )
    write(sql, {"0003_both": change}, {})
    with ThreadPoolExecutor(1) as pool, psycopg.connect(empty) as client:
        migration = None
        for _ in range(50):
            client.execute("insert into tasklib.thing values (1)")
            migration = migration or pool.submit(migrate, empty, sql=sql)
            time.sleep(0.1)
            client.execute("insert into tasklib.other values (1)")
            client.commit()
            if migration.done():
                break
        assert migration is not None
        assert migration.result() == ["0003_both"]


def test_without_changes_it_waits_for_no_reader(empty: str) -> None:
    migrate(empty)
    reasons: list[str] = []
    with psycopg.connect(empty) as reader:
        reader.execute("select count(*) from tasklib.tasks, tasklib.queue_stats")
        assert migrate(empty, on_wait=reasons.append) == []
    assert reasons == []


def test_a_changed_view_is_replaced(empty: str, sql: Path) -> None:
    view = "create or replace view tasklib.things as select 1 as id;\n"
    comment = "comment on view tasklib.things is '{}';\n"
    for text, said in ((view, "one"), (view, "two"), (view.replace("1 as", "2 as"), "two")):
        (sql / "views.sql").write_text(text + comment.format(said))
        migrate(empty, sql=sql)
        (number,) = re.findall(r"select (\d)", text)
        assert value(empty, "select id from tasklib.things") == int(number)
        assert value(empty, "select obj_description('tasklib.things'::regclass)") == said
    made = "select array_agg(relname::text) from pg_class where relname ~ 'things'"
    assert value(empty, made) == ["things"]


HELPER = """
create or replace function tasklib._helper() returns int language plpgsql
as $$ begin return 1; end $$;
comment on function tasklib._helper() is 'Internal. One.';
"""
WORK = """
create or replace function tasklib.work() returns int language plpgsql as $$
begin
  perform from tasklib.thing;
  perform pg_advisory_xact_lock(1);
  return tasklib._helper();
end
$$;
"""


def test_a_call_that_is_under_way_finds_its_helpers(empty: str, sql: Path) -> None:
    migrate(empty, sql=write(sql, {}, {"work": HELPER + WORK}))
    write(sql, {}, {"work": (HELPER + WORK).replace("_helper", "_other")})
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(empty) as holder,
        psycopg.connect(empty, autocommit=True) as looker,
    ):
        holder.execute("select pg_advisory_xact_lock(1)")
        call = pool.submit(value, empty, "select tasklib.work()")
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        wait_until(lambda: looker.execute(waiting).fetchone() == (1,))
        migration = pool.submit(migrate, empty, sql=sql)
        made = "select to_regproc('tasklib._other') is not null"
        wait_until(lambda: looker.execute(made).fetchone() == (True,))
        assert helpers(empty) == ["_helper", "_other"]
        holder.commit()
        assert call.result() == 1
        migration.result()
    assert helpers(empty) == ["_other"]


def test_a_helper_left_over_goes_with_the_next_migrate(
    empty: str, sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_migrate, "LINGER_SECONDS", 0)
    migrate(empty, sql=write(sql, {}, {"helper": HELPER}))
    (sql / "functions" / "helper.sql").unlink()
    with psycopg.connect(empty) as user:
        user.execute("select from tasklib.thing")
        migrate(empty, sql=sql)
        assert helpers(empty) == ["_helper"]
        said = "select obj_description('tasklib._helper'::regproc)"
        assert value(empty, said) == _migrate.LEFT_OVER
    migrate(empty, sql=sql)
    assert helpers(empty) == []


def test_a_helper_with_a_new_default_is_no_second_choice(
    empty: str, sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two functions that take the same call would be ambiguous, or the old one would be called."""
    monkeypatch.setattr(_migrate, "LINGER_SECONDS", 0)
    migrate(empty, sql=write(sql, {}, {"helper": HELPER}))
    new = HELPER.replace("_helper()", "_helper(more int default 1)", 1).replace(
        "return 1", "return 2"
    )
    write(sql, {}, {"helper": new.replace("_helper() is", "_helper(int) is")})
    with psycopg.connect(empty) as user:
        user.execute("select from tasklib.thing")
        migrate(empty, sql=sql)
    assert value(empty, "select tasklib._helper()") == 2


def test_functions_of_the_user_stay(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    with psycopg.connect(empty) as conn:
        for name in ("mine", "_mine"):
            conn.execute(f"create function tasklib.{name}() returns int language sql as 'select 1'")
    migrate(empty, sql=sql)
    assert helpers(empty) == ["_mine"]
    assert value(empty, "select tasklib.mine()") == 1


def helpers(conninfo: str) -> list[str]:
    query = (
        "select coalesce(array_agg(proname::text order by proname), '{}') from pg_proc "
        "where pronamespace = 'tasklib'::regnamespace and proname like '\\_%'"
    )
    return value(conninfo, query)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.02)


def test_killed_in_the_middle_it_leaves_the_old_version_whole(empty: str, sql: Path) -> None:
    migrate(empty, sql=sql)
    before = describe(empty)
    slow = "alter table tasklib.thing add column name text;\nselect pg_sleep(1);\n"
    write(sql, {"0002_slow": slow}, {"answer": FUNCTION.replace("42", "43")})
    code = (
        "import sys, pathlib; from tasklib import _migrate; "
        "_migrate.migrate(sys.argv[1], sql=pathlib.Path(sys.argv[2]))"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, empty, str(sql)])
    asleep = (
        "select count(*) from pg_stat_activity "
        "where wait_event = 'PgSleep' and datname = current_database()"
    )
    wait_until(lambda: value(empty, asleep) == 1)
    killed.kill()
    killed.wait()
    wait_until(lambda: value(empty, asleep) == 0)
    assert describe(empty) == before
    assert value(empty, "select tasklib.answer()") == 42
    assert migrate(empty, sql=sql) == ["0002_slow"]


def test_settings_of_the_role_do_not_reach_the_files(empty: str, sql: Path) -> None:
    name = empty.rpartition("dbname=")[2].split()[0]
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(f'alter database "{name}" set search_path = nowhere')
        conn.execute(f'alter database "{name}" set lock_timeout = 1')
        conn.execute(f'alter database "{name}" set statement_timeout = 300')
        conn.execute(f'alter database "{name}" set default_transaction_read_only = on')
        conn.execute(f'alter database "{name}" set default_transaction_isolation = serializable')
    write(sql, {"0002_slow": "select pg_sleep(0.5);\n"}, {})
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: migrate(empty, sql=sql), range(2)))
    assert sorted(results) == [[], ["0001_thing", "0002_slow"]]


def test_a_role_without_rights_is_told_so(empty: str, server: Server) -> None:
    role = f"guest_{uuid4().hex[:8]}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"create role {role} login password 'x'")
        try:
            as_role = make_conninfo(empty, user=role, password="x")
            with pytest.raises(MigrationError, match=r"(?s)permission denied.*owner"):
                migrate(as_role)
        finally:
            conn.execute(f"drop role {role}")


@pytest.fixture
def owner(empty: str, server: Server) -> Generator[str]:
    """The connection string of a role that owns the empty database, and may make roles."""
    role = f"owner_{uuid4().hex[:8]}"
    name = empty.rpartition("dbname=")[2].split()[0]
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"create role {role} login createrole password 'x'")
        conn.execute(f'alter database "{name}" owner to {role}')
        yield make_conninfo(empty, user=role, password="x")
        conn.execute(f'alter database "{name}" owner to current_user')
        with psycopg.connect(empty, autocommit=True) as inside:
            inside.execute(f"drop owned by {role} cascade")
        conn.execute(f"drop role {role}")


@pytest.fixture
def other(empty: str, server: Server) -> Generator[str]:
    """The same of another role, which owns nothing."""
    role = f"other_{uuid4().hex[:8]}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"create role {role} login password 'x'")
        yield make_conninfo(empty, user=role, password="x")
        with psycopg.connect(empty, autocommit=True) as inside:
            inside.execute(f"drop owned by {role} cascade")
        conn.execute(f"drop role {role}")


def user_of(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo)["user"])


def test_an_owner_who_is_no_superuser_can_install(owner: str) -> None:
    assert migrate(owner) != []
    assert migrate(owner) == []


def test_only_the_owner_can_upgrade(owner: str, other: str) -> None:
    migrate(owner)
    with psycopg.connect(owner) as conn:
        conn.execute(f"grant all on all tables in schema tasklib to {user_of(other)}")
        conn.execute(f"grant all on schema tasklib to {user_of(other)}")
    before = describe(owner)
    with pytest.raises(MigrationError, match=rf"belongs to the role '{user_of(owner)}'") as refused:
        migrate(other)
    assert refused.value.hint == f"Migrate as {user_of(owner)}, or as a member of it."
    assert describe(owner) == before


@pytest.mark.parametrize("who", ["superuser", "member"])
def test_whoever_upgrades_the_owner_owns_what_is_new(
    empty: str, owner: str, other: str, sql: Path, who: str
) -> None:
    migrate(owner, sql=sql)
    with psycopg.connect(empty) as conn:
        conn.execute(f"grant {user_of(owner)} to {user_of(other)}")
    count = FUNCTION.replace("answer", "count").replace("42", "count(*)::int from tasklib.other")
    count = count.replace("language", "security definer language")
    write(sql, {"0002_other": "create table tasklib.other (id int);\n"}, {"count": count})
    migrate(empty if who == "superuser" else other, sql=sql)
    query = "select pg_get_userbyid(relowner) from pg_class where oid = 'tasklib.other'::regclass"
    assert value(empty, query) == user_of(owner)
    assert value(owner, "select tasklib.count()") == 0


def test_a_server_that_is_not_there_is_named_as_such() -> None:
    with pytest.raises(DatabaseUnavailable):
        migrate("host=127.0.0.1 port=1 user=x dbname=x connect_timeout=2")


def test_the_install_script_makes_what_migrate_makes(make_database: Callable[[], str]) -> None:
    by_script, by_migrate = make_database(), make_database()
    with psycopg.connect(by_script) as conn:
        conn.execute(install_script())
    migrate(by_migrate)
    assert describe(by_script) == describe(by_migrate)
    assert migrate(by_script) == []


def test_the_install_script_refuses_to_run_twice(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(install_script())
        with pytest.raises(psycopg.Error, match="installed in this database already"):
            conn.execute(install_script())


def test_the_comparison_sees_a_forgotten_drop(make_database: Callable[[], str], sql: Path) -> None:
    upgraded, fresh = make_database(), make_database()
    migrate(upgraded, sql=sql)
    write(sql, {}, {"answer": FUNCTION.replace("answer()", "answer(of text default null)")})
    migrate(upgraded, sql=sql)
    migrate(fresh, sql=sql)
    assert describe(upgraded) != describe(fresh)


CHANGES = (
    "comment on table tasklib.task is 'changed'",
    "comment on column tasklib.task.type is 'changed'",
    "comment on function tasklib.tick(int) is 'changed'",
    "comment on view tasklib.tasks is 'changed'",
    "grant execute on function tasklib.tick(int) to public",
    "grant select on tasklib.task to tasklib_producer",
    "grant select (kwargs) on tasklib.tasks to tasklib_observer",
    "grant usage on type tasklib.claimed to tasklib_worker",
    "alter default privileges in schema tasklib grant execute on functions to tasklib_admin",
    "alter function tasklib.tick(int) reset enable_seqscan",
    "alter function tasklib.tick(int) security invoker",
    "alter function tasklib.tick(int) stable",
    "alter table tasklib.gate add column another int",
    "alter table tasklib.queue alter notify set default false",
    "alter table tasklib.queue alter notify drop not null",
    "alter table tasklib.queue drop column notify, add column notify boolean not null default true",
    "alter table tasklib.ready reset (vacuum_truncate)",
    "alter table tasklib.config drop constraint config_shard_check",
    "alter table tasklib.done enable row level security",
    "alter sequence tasklib.position cache 10",
    "alter sequence tasklib.position owned by tasklib.ready.pos",
    "alter index tasklib.task_type_idx rename to another",
    "alter type tasklib.claimed add attribute another int",
    "alter view tasklib.tasks owner to tasklib_admin",
    "alter function tasklib.tick(int) owner to tasklib_admin",
    "create function tasklib.left_over() returns int language sql as 'select 1'",
    "create statistics tasklib.another on type, queue from tasklib.task",
    "create rule another as on delete to tasklib.gate do also select 1",
)


def test_the_comparison_sees_every_kind_of_change(conn: Connection[Any]) -> None:
    before = catalog.lines(conn)
    unseen: list[str] = []
    for change in CHANGES:
        with conn.transaction(force_rollback=True):
            conn.execute(change)
            if catalog.lines(conn) == before:
                unseen.append(change)
    assert unseen == []


@pytest.mark.parametrize("release", ["this version", *(path.stem for path in RELEASES)])
def test_an_upgraded_database_equals_a_fresh_one(
    release: str, make_database: Callable[[], str]
) -> None:
    texts = {"this version": install_script()} | {path.stem: path.read_text() for path in RELEASES}
    upgraded, fresh = make_database(), make_database()
    with psycopg.connect(upgraded) as conn:
        conn.execute(texts[release])
        conn.execute("select tasklib.enqueue('old.task', '{\"n\": 1}')")
    migrate(upgraded)
    migrate(fresh)
    assert describe(upgraded) == describe(fresh)
    with psycopg.connect(upgraded, autocommit=True) as conn:
        assert run_next(conn) == "old.task"


def run_next(conn: Connection[Any]) -> str:
    """Claim a task of any name and complete it."""
    row = conn.execute(
        "with worker as materialized (select tasklib.register_worker() as id) "
        "select worker.id, task.* from worker, tasklib.claim(worker.id) as task"
    ).fetchone()
    assert row
    worker, task, attempt, name = row[:4]
    conn.execute("select tasklib.complete(%s, %s, %s)", (task, worker, attempt))
    return name


def test_grants_of_an_older_version_are_revoked(make_database: Callable[[], str]) -> None:
    upgraded, fresh = make_database(), make_database()
    migrate(fresh)
    migrate(upgraded)
    with psycopg.connect(upgraded) as conn:
        conn.execute("grant select on tasklib.task to tasklib_producer, public")
        conn.execute("grant select (kwargs) on tasklib.tasks to tasklib_observer")
        conn.execute("grant usage on sequence tasklib.position to tasklib_worker")
        conn.execute("grant create on schema tasklib to tasklib_admin")
        conn.execute("grant execute on function tasklib.purge to tasklib_worker, public")
    assert describe(upgraded) != describe(fresh)
    migrate(upgraded)
    assert describe(upgraded) == describe(fresh)


def test_migrations_do_nothing_that_calls_under_way_would_not_survive() -> None:
    """See the rules in sql/README.md; those of the first version had no calls to think of."""
    for script in _sql.migrations(_sql.folder())[1:]:
        text = re.sub(r"--.*", "", script.text).lower()
        # A call that waits for the table would go on with another type than it was made for.
        assert "alter type" not in text
        assert "drop type" not in text
        # migrate drops helpers when the calls are over
        for names in re.findall(r"drop function([^;]*);", text):
            assert "tasklib._" not in names
            # A fresh database has no functions yet.
            assert names.lstrip().startswith("if exists")


def test_released_migrations_are_frozen() -> None:
    files = {script.name: script.sha256 for script in _sql.migrations(_sql.folder())}
    for release in RELEASES:
        released = catalog.released_migrations(release.read_text())
        assert released
        assert {name: files.get(name) for name in released} == released


def test_changed_functions_come_with_a_new_migration() -> None:
    """The last migration is the version of the schema, so it has to tell functions apart too."""
    current = install_script()
    for release in RELEASES:
        text = release.read_text()
        if catalog.released_migrations(text) == catalog.released_migrations(current):
            assert without_version(text) == without_version(current)


def without_version(script: str) -> str:
    return re.sub(r"\A-- TaskLib \S+:", "", script)
