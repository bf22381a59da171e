"""`tasklib worker`: what it imports, what it says, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from .conftest import Cli

TASKS = """
import tasklib

queue = tasklib.TaskQueue()
other = tasklib.SyncTaskQueue()


@tasklib.task(name="app.double")
def double(n: int) -> int:
    return 2 * n


@queue.task(name="queue.triple")
async def triple(n: int) -> int:
    return 3 * n


@other.task(name="other.wait")
def wait(seconds: float) -> None:
    import time
    print("waiting", flush=True)
    time.sleep(seconds)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(database: str, tmp_path: Path) -> Start:
    """Start a worker in a folder that has a module app."""
    (tmp_path / "app.py").write_text(TASKS)
    (tmp_path / "broken.py").write_text("import not_there_at_all\n")
    (tmp_path / "empty.py").write_text("import app\nqueue = app.queue\nnumber = 1\n")

    def run(*words: str, before: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tasklib.cli", *before, "worker", *words],
            cwd=tmp_path,
            env={**os.environ, "TASKLIB_DATABASE_URL": database, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def ended(worker: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for its end, and return what it wrote to standard error."""
    _, log = worker.communicate(timeout=30)
    assert worker.returncode == code, log
    return log


def state(conn: Connection[Any]) -> list[tuple[Any, ...]]:
    return conn.execute("select name, state, result from tasklib.tasks order by name").fetchall()


def test_drain_runs_what_is_due_and_exits(cli: Cli, start: Start, conn: Connection[Any]) -> None:
    cli("enqueue", "app.double", "n=21")

    log = ended(start("app", "--drain", "-c", "2"))

    assert state(conn) == [("app.double", "completed", {"value": 42})]
    assert "TaskLib" in log
    assert "app.double" in log
    assert "PostgreSQL" in log


def test_an_attribute_names_a_queue_with_tasks_of_its_own(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    cli("enqueue", "queue.triple", "n=2")
    cli("enqueue", "app.double", "n=2")

    ended(start("app:queue", "--drain"))
    assert [row[1] for row in state(conn)] == ["pending", "completed"]

    ended(start("app", "app:queue", "--drain"))
    assert [row[1] for row in state(conn)] == ["completed", "completed"]


def test_only_the_queues_that_were_named_are_served(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    for queue in ("a", "b", "c"):
        cli("enqueue", "app.double", "n=1", "-q", queue)

    ended(start("app", "-q", "a,c", "--drain"))

    rows = conn.execute("select queue, state from tasklib.tasks order by queue").fetchall()
    assert rows == [("a", "completed"), ("b", "pending"), ("c", "completed")]


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("nowhere", "there is no module 'nowhere'"),
        ("app.nowhere", "there is no module 'app.nowhere'"),
        ("app:nothing", "no TaskQueue"),
        ("empty:number", "Did you mean empty:queue?"),
        ("./app.py", "no name of a module"),
        ("", "no name of a module"),
    ],
)
def test_what_cannot_be_loaded_is_a_usage_error(start: Start, target: str, complaint: str) -> None:
    assert complaint in ended(start(target, "--drain"), code=2).replace("\n", " ")


def test_a_memory_limit_below_what_the_code_takes_is_refused(start: Start) -> None:
    log = ended(start("app", "--drain", "--max-memory", "500"), code=2)
    assert "before its first task; write 500MiB" in log


def test_a_module_without_tasks_is_refused_with_a_guess(start: Start, tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("import tasklib\nqueue = tasklib.TaskQueue()\n")

    log = ended(start("only", "--drain"), code=2)

    assert "no task is defined there" in log
    assert "only:queue" in log


def test_an_error_inside_the_module_keeps_its_traceback(start: Start) -> None:
    log = ended(start("broken", "--drain"), code=1)

    assert "Traceback" in log
    assert "not_there_at_all" in log


def test_a_database_that_cannot_be_reached_exits_with_3(start: Start) -> None:
    url = "postgresql://me:s3cret@127.0.0.1:1/none"
    log = ended(start("app", TASKLIB_DATABASE_URL=url), code=3)

    assert "s3cret" not in log
    assert "Traceback" not in log


def test_a_database_without_the_schema_is_refused_at_once(
    start: Start, conn: Connection[Any]
) -> None:
    conn.execute("drop schema tasklib cascade")

    assert "tasklib migrate" in ended(start("app"), code=1)


@pytest.mark.parametrize("role", ["tasklib_producer", "pg_monitor"])
def test_a_role_that_may_not_work_is_told_what_to_ask_for(
    start: Start, database: str, role: str
) -> None:
    url = make_conninfo(database, options=f"-c role={role}")

    log = ended(start("app", TASKLIB_DATABASE_URL=url), code=1)

    assert "permission denied" in log
    assert "hint: This needs the role tasklib_worker: " in log
    assert "Traceback" not in log


def test_json_logs_are_one_object_a_line(cli: Cli, start: Start) -> None:
    cli("enqueue", "app.double", "n=1")

    lines = [
        json.loads(line)
        for line in ended(start("app", "--drain", "--log-format", "json")).splitlines()
    ]

    assert lines[0]["message"] == "worker starting"
    assert lines[0]["tasks"] == "app.double"
    assert {"time", "level", "logger", "message"} <= set(lines[-1])


def test_each_transition_is_one_line_with_the_ids(cli: Cli, start: Start) -> None:
    task_id = cli("enqueue", "app.double", "n=1").stdout.strip()

    log = ended(start("app", "--drain", "--log-format", "json", "-v"))

    mine = [line for line in map(json.loads, log.splitlines()) if line.get("task_id") == task_id]
    assert [line["message"] for line in mine] == ["app.double starts", "app.double completed"]
    for line in mine:
        ids = {key: line[key] for key in ("task_name", "attempt", "queue")}
        assert ids == {"task_name": "app.double", "attempt": 1, "queue": "default"}
        assert line["worker_id"]


def test_failures_say_in_text_which_task_they_are_about(cli: Cli, start: Start) -> None:
    task_id = cli("enqueue", "app.double", "n=one").stdout.strip()

    log = ended(start("app", "--drain"))

    (line,) = [line for line in log.splitlines() if task_id in line]
    assert "attempt 1 of app.double failed: InvalidArguments" in line
    assert line.endswith(f"(task_id={task_id}, attempt=1, queue=default)")
    assert "one" not in line.replace(task_id, "").partition("InvalidArguments")[2]


def test_sigterm_lets_running_tasks_end(cli: Cli, start: Start, conn: Connection[Any]) -> None:
    cli("enqueue", "other.wait", "seconds=1.0")
    worker = start("app:other", "--name", "the-one")
    assert worker.stdout
    assert worker.stdout.readline() == "waiting\n"
    names = conn.execute("select name from tasklib.worker_health where alive").fetchall()
    assert names == [("the-one",)]

    worker.send_signal(signal.SIGTERM)

    ended(worker)
    assert [row[1] for row in state(conn)] == ["completed"]
    assert conn.execute("select count(*) from tasklib.worker_health where alive").fetchone() == (0,)


def test_options_can_stand_in_the_environment(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.double", "n=1", "-q", "mail")

    log = ended(start("app", TASKLIB_WORKER_QUEUES="mail,sms", TASKLIB_WORKER_DRAIN="1"))

    assert "mail, sms" in log
    assert [row[1] for row in state(conn)] == ["completed"]


def test_the_url_of_the_command_line_counts_for_tasks_that_enqueue_others(
    cli: Cli, start: Start, conn: Connection[Any], database: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import tasklib\n"
        "tasklib.init('postgresql://nobody@127.0.0.1:1/none')\n"
        "@tasklib.task(name='app.next')\n"
        "def after() -> None: ...\n"
        "@tasklib.task(name='app.first')\n"
        "def first() -> None: after.delay()\n"
    )
    cli("enqueue", "app.first")

    ended(start("elsewhere", "--drain", before=["--database-url", database]))

    assert [row[:2] for row in state(conn)] == [
        ("app.first", "completed"),
        ("app.next", "completed"),
    ]
