"""The command line, as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from psycopg import Connection

import tasklib
from tasklib.cli import main

COMMAND = (sys.executable, "-m", "tasklib.cli")
Cli = Callable[..., str]

APP = """
import time
import tasklib

@tasklib.task
def add(a: int, b: int = 1) -> int:
    return a + b

@tasklib.task(queue="mail")
async def send(to: str) -> bool:
    return True

@tasklib.task
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "ended"
"""


def invoke(database: str, *words: object) -> Result:
    return CliRunner(env={"TASKLIB_DATABASE_URL": database}).invoke(main, [str(w) for w in words])


@pytest.fixture
def cli(database: str) -> Cli:
    """Run a command that succeeds; what it printed."""

    def run(*words: object) -> str:
        result = invoke(database, *words)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    (tmp_path / "app" / "tasks.py").write_text(APP)
    return tmp_path


def worker(project: Path, database: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "worker", "app.tasks", *words],
        cwd=project,
        env=os.environ | {"TASKLIB_DATABASE_URL": database},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def stored(conn: Connection[Any], task_id: str) -> tuple[str, Any]:
    row = conn.execute("select state, result from tasklib.tasks where id = %s", (task_id,))
    found = row.fetchone()
    assert found
    return found


def failed_task(conn: Connection[Any], *, name: str = "app.f") -> UUID:
    row = conn.execute("select tasklib.enqueue(%s)", (name,)).fetchone()
    assert row
    conn.execute(
        "select tasklib.fail(t.id, w, t.attempt, 'RuntimeError: boom', false)"
        " from tasklib.register_worker() as w, lateral tasklib.claim(w) as t"
    )
    return row[0]


def test_enqueue_a_worker_and_the_result(
    cli: Cli, conn: Connection[Any], database: str, project: Path
) -> None:
    added = cli("enqueue", "app.tasks.add", "a=3", "b=4").strip()
    sent = cli("enqueue", "app.tasks.send", "to=a@b.c", "-q", "mail").strip()
    elsewhere = cli("enqueue", "app.tasks.add", "a=3", "-q", "elsewhere").strip()
    running = worker(project, database, "-q", "default,mail", "-c", "8", "--drain")
    _, log = running.communicate(timeout=40)
    assert running.returncode == 0, log
    assert stored(conn, added) == ("completed", {"value": 7})
    assert stored(conn, sent) == ("completed", {"value": True})
    assert stored(conn, elsewhere) == ("pending", None)
    assert not any(line.startswith("\x1b") for line in log.splitlines())


def test_a_worker_drains_on_sigterm(
    cli: Cli, conn: Connection[Any], database: str, project: Path
) -> None:
    first = cli("enqueue", "app.tasks.slow", "seconds=1.5").strip()
    second = cli("enqueue", "app.tasks.slow", "seconds=1.5").strip()
    running = worker(project, database)
    end = time.monotonic() + 20
    while stored(conn, first)[0] != "running" and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, log = running.communicate(timeout=20)
    assert running.returncode == 0, log
    assert stored(conn, first) == ("completed", {"value": "ended"})
    assert stored(conn, second) == ("pending", None)


def test_a_worker_whose_module_is_missing_says_so(project: Path, database: str) -> None:
    done = subprocess.run(
        [*COMMAND, "worker", "app.taks"],
        cwd=project,
        env=os.environ | {"TASKLIB_DATABASE_URL": database},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert "app.taks" in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_and_its_plan(cli: Cli, database: str, conn: Connection[Any]) -> None:
    conn.execute("drop schema tasklib cascade")
    assert "0001" in cli("migrate", "--plan")
    found = conn.execute("select to_regnamespace('tasklib')").fetchone()
    assert found == (None,)
    cli("migrate")
    cli("migrate")
    assert cli("enqueue", "app.f")


def test_sql_prints_the_install_script(cli: Cli, conn: Connection[Any]) -> None:
    script = cli("sql")
    conn.execute("drop schema tasklib cascade")
    conn.execute(script)  # type: ignore[arg-type]
    found = conn.execute("select tasklib.enqueue('app.f') is not null").fetchone()
    assert found == (True,)


def test_ls_and_its_filters(cli: Cli, conn: Connection[Any]) -> None:
    assert json.loads(cli("ls", "--json")) == []
    cli("enqueue", "app.a", "--tag", "batch=w1", "--priority", "5", "--delay", "10m")
    cli("enqueue", "app.b", "-q", "mail")
    failed = failed_task(conn, name="app.c")
    assert "app.a" in cli("ls")
    assert [t["name"] for t in json.loads(cli("ls", "--json"))] == ["app.c", "app.b", "app.a"]
    for words, name in (
        (("--state", "failed"), "app.c"),
        (("--name", "app.b"), "app.b"),
        (("--queue", "mail"), "app.b"),
        (("--tag", "batch=w1"), "app.a"),
        (("--limit", "1"), "app.c"),
    ):
        assert [t["name"] for t in json.loads(cli("ls", *words, "--json"))] == [name]
    (first,) = json.loads(cli("ls", "--name", "app.a", "--json"))
    assert (first["state"], first["priority"], first["tags"]) == ("pending", 5, {"batch": "w1"})
    (found,) = json.loads(cli("ls", "--state", "failed", "--json"))
    assert (found["id"], found["error"]) == (str(failed), "RuntimeError: boom")


def test_show_retry_cancel_purge(cli: Cli, conn: Connection[Any], database: str) -> None:
    task_id = str(failed_task(conn))
    assert "RuntimeError: boom" in cli("show", task_id)
    assert json.loads(cli("show", task_id, "--json"))["state"] == "failed"
    cli("retry", task_id)
    assert stored(conn, task_id)[0] == "pending"
    cli("cancel", task_id)
    assert stored(conn, task_id)[0] == "cancelled"
    cli("purge", "--older-than", "1d")
    assert stored(conn, task_id)[0] == "cancelled"
    cli("purge", "--older-than", "0s")
    result = invoke(database, "show", task_id)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert invoke(database, "retry", task_id).exit_code == 1
    assert invoke(database, "show", "no-id").exit_code in (1, 2)


def test_queues_workers_top_doctor(cli: Cli, conn: Connection[Any], database: str) -> None:
    cli("enqueue", "app.f", "-q", "mail")
    conn.execute("select tasklib.register_worker('me')")
    assert "mail" in cli("queues")
    (mail,) = [q for q in json.loads(cli("queues", "--json")) if q["queue"] == "mail"]
    assert (mail["ready"], mail["running"], mail["paused"]) == (1, 0, False)
    cli("queues", "pause", "mail")
    assert json.loads(cli("queues", "--json"))[-1]["paused"] is True
    cli("queues", "resume", "mail")
    assert "me" in cli("workers")
    (one,) = json.loads(cli("workers", "--json"))
    assert (one["name"], one["status"]) == ("me", "alive")
    top = cli("top", "--once")
    assert "mail" in top
    assert "\x1b" not in top
    result = invoke(database, "doctor", "--json")
    assert result.exit_code in (0, 1)
    json.loads(result.stdout)
    assert "schema" in invoke(database, "doctor").output


def test_no_database_has_an_exit_code_of_its_own() -> None:
    result = CliRunner(env={"TASKLIB_EMBEDDED": "never"}).invoke(main, ["ls"])
    assert result.exit_code == 3
    assert "TASKLIB_DATABASE_URL" in result.output
    result = invoke("postgresql://127.0.0.1:1/nowhere", "ls")
    assert result.exit_code == 3
    assert "Traceback" not in result.output


def test_bad_input_is_refused_with_what_was_wrong(database: str, conn: Connection[Any]) -> None:
    for words, said in (
        (("enqueue", "app.f", "novalue"), "novalue"),
        (("enqueue", "app.f", "--priority", "5000"), "5000"),
        (("enqueue", ""), "name"),
        (("ls", "--state", "finishd"), "finishd"),
        (("enqueue", "app.f", "--delay", "soon"), "soon"),
    ):
        result = invoke(database, *words)
        assert result.exit_code in (1, 2), words
        assert said in result.output
        assert "Traceback" not in result.output
    assert conn.execute("select count(*) from tasklib.tasks").fetchone() == (0,)


def test_every_command_has_help_with_an_example() -> None:
    names = (
        "worker migrate sql enqueue ls show retry cancel purge queues workers top doctor demo db"
    )
    for name in names.split():
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert f"tasklib {name}" in result.output
    for name in ("start", "stop", "url", "psql"):
        assert CliRunner().invoke(main, ["db", name, "--help"]).exit_code == 0
    assert tasklib.__version__ in CliRunner().invoke(main, ["--version"]).output
