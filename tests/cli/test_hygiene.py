"""What users put into tasks, and the database's password: in no log, in no list of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict

from tasklib.cli import main
from tasklib.registry import default_registry

SECRET = "hunter2-of-the-task"
PASSWORD = "hunter2-of-the-database"

PROGRAM = """
import logging, os, time
from tasklib import current_task, task, Retry, Cancel, Snooze

@task(name="returns")
def returns(secret: str) -> str:
    current_task().progress(0.5, secret)
    return secret

@task(name="raises", max_retries=1, backoff={"base_seconds": 0})
async def raises(secret: str) -> None:
    raise ValueError(secret)

@task(name="raises_apart", isolation="process", max_retries=0)
def raises_apart(secret: str) -> None:
    raise ValueError(secret)

@task(name="crashes", isolation="process", max_retries=0)
def crashes(secret: str) -> None:
    os._exit(7)

@task(name="exits", max_retries=0)
def exits(secret: str) -> None:
    raise SystemExit(secret)

@task(name="is_late", timeout_seconds=0.5, max_retries=0)
async def is_late(secret: str) -> None:
    import asyncio
    await asyncio.sleep(60)

@task(name="is_late_in_a_thread", timeout_seconds=0.5, max_retries=0)
def is_late_in_a_thread(secret: str) -> None:
    time.sleep(1)

@task(name="wants_a_number")
def wants_a_number(secret: int) -> None: ...

@task(name="returns_nonsense")
def returns_nonsense(secret: str):
    return {secret: object()}

@task(name="retries", max_retries=0)
def retries(secret: str) -> None:
    raise Retry(secret)

@task(name="cancels")
def cancels(secret: str) -> None:
    raise Cancel(secret)

@task(name="in_a_transaction", transactional=True, max_retries=0)
def in_a_transaction(secret: str) -> None:
    current_task().connection.execute("select %s::int", [secret])
"""
NAMES = [line.split('"')[1] for line in PROGRAM.splitlines() if line.startswith("@task(")]


@pytest.fixture
def url(database: str, conn: Connection[Any]) -> Generator[str]:
    """The database with a password in the URL; the test server asks for none."""
    parts = conninfo_to_dict(database)
    role = sql.Identifier("hygienic")
    conn.execute(sql.SQL("create role {} login").format(role))
    conn.execute(sql.SQL("grant tasklib_worker, tasklib_producer to {}").format(role))
    yield (
        f"postgresql://hygienic:{PASSWORD}@/{parts['dbname']}"
        f"?host={str(parts['host']).replace('/', '%2F')}&port={parts['port']}"
    )
    conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


def start(folder: Path, url: str, *words: str) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, "-m", "tasklib.cli", "worker", "program", *words],
        cwd=folder,
        env={**os.environ, "TASKLIB_DATABASE_URL": url, "TASKLIB_EMBEDDED": "never"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("words", [["-vv"], ["--log-format", "json", "--log-level", "debug"]])
def test_no_level_and_no_format_of_the_log_shows_a_payload(
    url: str, conn: Connection[Any], tmp_path: Path, words: list[str]
) -> None:
    for name in NAMES:
        conn.execute(
            "select tasklib.enqueue(%s, %s, tags => %s, headers => %s)",
            [name, *[json.dumps({key: SECRET}) for key in ("secret", "tag", "header")]],
        )
    with start(tmp_path, url, "--drain", "-c", "4", *words) as process:
        log, _ = process.communicate(timeout=120)

    assert process.returncode == 0, log
    assert SECRET not in log
    assert PASSWORD not in log
    for name in NAMES:
        assert name in log, f"nothing is said of {name}"
    # the history has it all, for who may read it
    stored = conn.execute("select string_agg(error, '') from tasklib.failures").fetchone()
    assert stored
    assert SECRET in stored[0]


def test_no_list_of_processes_shows_the_password(
    url: str, conn: Connection[Any], tmp_path: Path
) -> None:
    """Of the worker, its keeper, its supervisor and its child processes."""
    conn.execute("select tasklib.enqueue('raises_apart', '{\"secret\": \"x\"}')")
    with start(tmp_path, url, "--processes", "2") as process:
        try:
            wait_until(lambda: len(family(process.pid)) >= 6)  # with the children of two workers
            listed = "\n".join(family(process.pid).values())
        finally:
            process.terminate()
            log, _ = process.communicate(timeout=60)
    assert "keeping.py" in listed
    assert "_supervise.py" in listed
    assert PASSWORD not in listed
    assert PASSWORD not in log


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def family(pid: int) -> dict[int, str]:
    """Return the command lines of a process and all below it."""
    found = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")}
    below = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    for child in map(int, below.stdout.split()):
        with suppress(FileNotFoundError):
            found |= family(child)
    return found


COMMANDS = [["ls"], ["migrate"], ["doctor", "--ready"], ["worker", "program", "--drain"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{PASSWORD}@127.0.0.1:1/none",  # nobody there
        f"postgresql://me:{PASSWORD}@127.0.0.1:one/none",  # no port
        f"postgresql://me:x@{PASSWORD}@127.0.0.1:1/none",  # an @ that was not escaped
        f"postgresql://me:{PASSWORD}/x@127.0.0.1:1/none",  # a / likewise
        f"postgresql://me:{PASSWORD}#x@127.0.0.1:1/none",
        f"host=127.0.0.1 port=1 password={PASSWORD} nonsense",
        f"host=127.0.0.1 port=1 password='{PASSWORD}",
        f"host=127.0.0.1 port=1 pasword={PASSWORD}",
    ],
)
def test_no_command_tells_the_password_of_a_database_that_it_cannot_reach(
    url: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module is imported once: each of these commands gets one of its own.
    name = f"program_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text("import tasklib\n\n@tasklib.task\ndef a(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(default_registry, "tasks", {})
    words = [name if word == "program" else word for word in words]
    ran = CliRunner(env={"TASKLIB_DATABASE_URL": url}).invoke(main, words)
    assert ran.exit_code != 0
    assert "No module" not in ran.output
    assert PASSWORD not in ran.output
    assert "Traceback" not in ran.output
