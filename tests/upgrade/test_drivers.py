"""Drivers and schemas of different versions: what goes on, and what is refused with which words."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import catalog
from tasklib import Config, SyncTaskQueue
from tasklib._migrate import latest, migrate
from tasklib.errors import NotInstalled
from upgrade.future import write_future
from upgrade.releases import REPOSITORY, Release, releases

OLDEST = releases()[0]


@pytest.fixture
def old_schema(empty: str) -> str:
    """A database as the oldest release installed it."""
    with psycopg.connect(empty) as conn:
        conn.execute(OLDEST.script.read_text())
    return empty


def tasklib(driver: Path, *words: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run the command of a driver."""
    return subprocess.run(
        [sys.executable, "-m", "tasklib.cli", *words],
        env=os.environ | {"PYTHONPATH": str(driver), "TASKLIB_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_new_worker_refuses_an_old_schema(old_schema: str) -> None:
    with SyncTaskQueue(Config(database_url=old_schema)) as queue:
        with pytest.raises(NotInstalled, match=f"at 0001_tables, this package at {latest()}") as it:
            asyncio.run(queue.worker(drain=True, handle_signals=False).run())
        assert "tasklib migrate" in (it.value.hint or "")


def test_the_command_says_so_in_two_lines(old_schema: str, tmp_path: Path) -> None:
    (tmp_path / "tasks_of_mine.py").write_text("import tasklib\n\n@tasklib.task\ndef f(): ...")
    command = [sys.executable, "-m", "tasklib.cli", "worker", "tasks_of_mine"]
    path = os.pathsep.join([str(REPOSITORY / "python"), str(tmp_path)])
    ran = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path, "TASKLIB_DATABASE_URL": old_schema},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-2:] == [
        f"error: the database is at 0001_tables, this package at {latest()}",
        "hint: Run `tasklib migrate` on this database.",
    ]


def seven() -> int:
    return 7


def test_a_new_worker_takes_a_newer_schema(empty: str, tmp_path: Path) -> None:
    migrate(empty, sql=write_future(REPOSITORY / "sql", tmp_path / "sql"))
    with SyncTaskQueue(Config(database_url=empty)) as queue:
        task_id = queue.enqueue(queue.task(name="a")(seven))
        asyncio.run(queue.worker(drain=True, handle_signals=False).run())
        result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == 7


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.version)
def test_an_old_package_does_not_migrate_back(empty: str, tmp_path: Path, release: Release) -> None:
    migrate(empty)
    with psycopg.connect(empty) as conn:
        before = catalog.lines(conn)
    ran = tasklib(release.unpacked(tmp_path), "migrate", url=empty)
    assert ran.returncode == 1
    assert f"ahead of pg-tasklib {release.version}: it has the migration '{latest()}'" in ran.stderr
    assert "Upgrade the package" in ran.stderr
    with psycopg.connect(empty) as conn:
        assert catalog.lines(conn) == before
    # And the script refuses before it does anything.
    with (
        psycopg.connect(empty) as conn,
        pytest.raises(psycopg.Error, match="installed in this database already"),
    ):
        conn.execute(release.script.read_text())


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.version)
def test_an_old_doctor_says_which_side_is_behind(
    empty: str, tmp_path: Path, release: Release
) -> None:
    migrate(empty)
    ran = tasklib(release.unpacked(tmp_path), "doctor", url=empty)
    assert f"the database is at {latest()}, this package only at 0001_tables" in ran.stdout


def test_prepared_statements_outlive_an_upgrade(old_schema: str, tmp_path: Path) -> None:
    """Of a session that has everything cached: statements, plans, functions, row types."""
    calls = (
        "select tasklib.enqueue(name => 'a', delay => '1 hour')",
        "select tasklib.enqueue('a', tags => '{\"a\": 1}', unique_key => gen_random_uuid()::text)",
        'select id, created from tasklib.enqueue_many(\'[{"name": "a"}]\')',
        "select id, state from tasklib.list(max_rows => 1)",
        "select state from tasklib.get((select id from tasklib.tasks limit 1))",
        "select more from tasklib.tick()",
        """with done as (
            select tasklib.finish(w.id, array_agg(t.id), array_agg(t.attempt)) as status
            from (select tasklib.register_worker() as id offset 0) as w
              cross join lateral tasklib.claim(w.id, '{default}', 3) as t group by w.id)
          select status from done""",
    )
    with psycopg.connect(old_schema, autocommit=True) as conn:
        conn.prepare_threshold = 0
        for _ in range(6):
            for call in calls:
                assert conn.execute(call).fetchall()
        for sql in (REPOSITORY / "sql", write_future(REPOSITORY / "sql", tmp_path / "sql")):
            assert migrate(old_schema, sql=sql)
            for _ in range(2):
                for call in calls:
                    assert conn.execute(call).fetchall()


def test_what_was_enqueued_before_is_run_after(old_schema: str) -> None:
    """In every state, also by a worker that had registered with the old schema."""
    with psycopg.connect(old_schema, autocommit=True) as conn:
        conn.execute('select tasklib.register_worker(task_types => \'["a", "slow"]\')')
        worker = conn.execute("select tasklib.register_worker()").fetchone()
        assert worker
        for options in (
            "'slow'",
            "'a'",
            "'a', delay => '1 second'",
            "'a', priority => 5, tags => '{\"b\": 2}', queue => 'default'",
            "'a', concurrency_key => 'k'",
            "'a', concurrency_key => 'k'",
            "'a', unique_key => 'u'",
            "'unknown'",
        ):
            conn.execute(f"select tasklib.enqueue({options})")
        running = conn.execute("select * from tasklib.claim(%s, max_tasks => 1)", worker).fetchone()
        assert running
        assert migrate(old_schema)
        status = conn.execute(
            "select tasklib.finish(%s, array[%s::uuid], array[%s])", [*worker, *running[:2]]
        ).fetchone()
        assert status == ("ok",)
        conn.execute("select pg_sleep(1)")
        for _ in range(9):
            conn.execute("select tasklib.tick()")
            for row in conn.execute("select * from tasklib.claim(%s, max_tasks => 9)", worker):
                conn.execute("select tasklib.complete(%s, %s, %s)", [row[0], *worker, row[1]])
        states = conn.execute("select state, count(*) from tasklib.tasks group by state").fetchall()
        assert states == [("completed", 8)]
        assert conn.execute("select tasklib.sweep()").fetchone() == (0,)
