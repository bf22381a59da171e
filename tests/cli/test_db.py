"""Commands about the embedded server of a project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
import pytest

from tasklib.embedded import Embedded

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project() -> Generator[Path]:
    # Below /tmp and open: under root the server belongs to an account that must get in.
    path = Path(tempfile.mkdtemp(prefix="tasklib-project-"))
    path.chmod(0o755)
    (path / "pyproject.toml").touch()
    yield path
    Embedded(path).shutdown()
    shutil.rmtree(path)


@pytest.fixture
def tasklib(project: Path) -> Run:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tasklib.cli", *words],
            cwd=project,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_only_what_starts_the_server_says_so(tasklib: Run) -> None:
    assert tasklib("ls").stderr.count("started embedded PostgreSQL") == 1

    tasklib("db", "start")

    assert "started" not in tasklib("ls").stderr


def test_the_server_stays_while_worker_processes_come_and_go_and_ends_with_them(
    project: Path,
) -> None:
    log = project / "log.txt"
    app = "import tasklib\n@tasklib.task\ndef nothing(): ...\n"
    (project / "app.py").write_text(app)
    with log.open("wb") as stream:
        command = subprocess.Popen(
            [sys.executable, "-m", "tasklib.cli", "worker", "app", "--reload"],
            cwd=project,
            stdout=stream,
            stderr=stream,
        )

    def has(text: str, times: int = 1) -> bool:
        return log.read_text().count(text) >= times

    try:
        _until(lambda: has("takes tasks"))
        (project / "app.py").write_text(app + "# changed\n")
        _until(lambda: has("takes tasks", times=2))

        assert log.read_text().count("started embedded PostgreSQL") == 1

        command.terminate()
        assert command.wait(60) == 0, log.read_text()
        _until(lambda: Embedded(project).url() is None)
    finally:
        command.kill()
        command.wait()


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_is_started_looked_at_entered_and_stopped(tasklib: Run) -> None:
    assert tasklib("db", "url").returncode == 1
    assert tasklib("db", "stop").stdout == "was not running\n"

    url = tasklib("db", "start").stdout.strip()

    assert tasklib("db", "url").stdout.strip() == url
    assert json.loads(tasklib("db", "status", "--json").stdout)["running"] is True
    with psycopg.connect(url) as conn:
        assert conn.execute("select tasklib.enqueue('app.mail')").fetchone()
    asked = tasklib("db", "psql", "-XAtc", "select name from tasklib.tasks")
    assert asked.stdout == "app.mail\n", asked.stderr
    assert tasklib("db", "psql", "-c", "nonsense").returncode == 1
    assert tasklib("db", "stop").stdout == "stopped\n"
    assert tasklib("db", "status").returncode == 1


def test_commands_without_a_url_use_the_server_of_the_project(tasklib: Run) -> None:
    enqueued = tasklib("enqueue", "app.mail")
    assert enqueued.returncode == 0, enqueued.stderr

    (task,) = json.loads(tasklib("ls", "--json").stdout)

    assert task["id"] == enqueued.stdout.strip()


def test_never_refuses_it(tasklib: Run) -> None:
    for words in (["ls"], ["db", "start"], ["worker", "app"], ["doctor"]):
        refused = tasklib(*words, TASKLIB_EMBEDDED="never")
        assert refused.returncode == (2 if words[0] == "worker" else 3), refused.stderr


def test_the_demo_runs_on_it(tasklib: Run, project: Path) -> None:
    (project / "docs").mkdir()
    for number in range(5):
        (project / "docs" / f"{number}.txt").write_text("some words\n" * number)

    # A configured database is none of the demo's business.
    shown = tasklib("demo", "docs", DATABASE_URL="postgresql://nobody@127.0.0.1:1/production")

    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert str(project) in shown.stdout
    assert tasklib("db", "url").returncode == 1  # its last user is gone
