"""`tasklib doctor --live` and `--ready`, asked about real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasklib.cli import main

PROGRAM = """
import time
from tasklib import task

@task(name="block")
async def block(seconds: float) -> None:
    time.sleep(seconds)
"""


@dataclass
class Container:
    """What shares an environment, as the processes of a container do."""

    folder: Path
    url: str
    processes: list[subprocess.Popen[bytes]]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tasklib.cli", "worker", "program", *words]
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment(), stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def ask(self, *words: str, url: str | None = None) -> tuple[int, list[str]]:
        """Ask a probe; return its exit code and what it found."""
        environment = self._environment() | ({"TASKLIB_DATABASE_URL": url} if url else {})
        ran = CliRunner(env=environment).invoke(main, ["doctor", *words, "--json"])
        assert ran.stdout, ran.stderr
        document = json.loads(ran.stdout)
        assert document["healthy"] is (ran.exit_code == 0)
        return ran.exit_code, [found["message"] for found in document["findings"]]

    def wait(self, code: int, *words: str) -> list[str]:
        """Ask until the exit code is as wanted."""
        deadline = time.monotonic() + 60
        while True:
            said, found = self.ask(*words)
            if said == code:
                return found
            assert time.monotonic() < deadline, (found, (self.folder / "log").read_text())
            time.sleep(0.2)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "TASKLIB_DATABASE_URL": self.url,
            "TASKLIB_STATE_DIR": str(self.folder / "state"),
            "TASKLIB_EMBEDDED": "never",
        }


@pytest.fixture
def container(database: str, tmp_path: Path) -> Generator[Container]:
    (tmp_path / "program.py").write_text(PROGRAM)
    made = Container(tmp_path, database, [])
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(timeout=60)


def test_without_a_worker_it_is_neither(container: Container) -> None:
    for probe in ("--live", "--ready"):
        code, found = container.ask(probe)
        assert code == 1
        assert found[0] == "no worker process of this user runs on this machine"


def test_a_worker_is_both_until_it_ends(container: Container) -> None:
    process = container.start()
    (ready, *_) = container.wait(0, "--ready")[::-1]
    assert ready.startswith("registered as ")
    assert container.ask("--live") == (0, [f"process {process.pid} is at work"])

    process.terminate()
    assert process.wait(timeout=60) == 0
    assert list((container.folder / "state").iterdir()) == []
    assert container.ask("--live")[0] == container.ask("--ready")[0] == 1


def test_a_stopped_worker_is_not_alive(container: Container) -> None:
    process = container.start()
    container.wait(0, "--live")
    process.send_signal(signal.SIGSTOP)
    (found,) = container.wait(1, "--live", "--within", "2s")
    assert found.startswith(f"the event loop of process {process.pid} has not moved for ")
    # a moment ago it has moved, for those who are patient
    assert container.ask("--live", "--within", "1h")[0] == 0

    process.send_signal(signal.SIGCONT)
    container.wait(0, "--live", "--within", "2s")


def test_a_task_that_blocks_the_loop_is_seen(container: Container, conn: Connection[Any]) -> None:
    container.start()
    container.wait(0, "--ready")
    conn.execute("select tasklib.enqueue('block', '{\"seconds\": 5}')")
    container.wait(1, "--live", "--within", "2s")
    container.wait(0, "--live", "--within", "2s")


def test_each_of_several_processes_has_to_move(container: Container) -> None:
    container.start("--processes", "2")
    while len(found := container.wait(0, "--live")) < 2:
        time.sleep(0.2)
    stopped = int(found[1].split()[1])
    os.kill(stopped, signal.SIGSTOP)
    try:
        found = container.wait(1, "--live", "--within", "2s")
        assert len(found) == 2
        assert container.ask("--ready")[0] == 0  # the other one works
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_what_a_killed_worker_left_counts_for_nothing(container: Container) -> None:
    killed = container.start()
    container.wait(0, "--live")
    killed.kill()
    killed.wait()
    assert container.ask("--live")[0] == 1

    started = container.start()
    container.wait(0, "--live")
    (left,) = (container.folder / "state").iterdir()
    assert str(started.pid) in left.name


def test_without_the_database_it_is_alive_and_not_ready(
    container: Container, make_conn: Callable[..., Connection[Any]]
) -> None:
    name = str(conninfo_to_dict(container.url)["dbname"])
    process = container.start()
    container.wait(0, "--ready")
    admin = psycopg.connect(make_conninfo(container.url, dbname="postgres"), autocommit=True)
    with admin:
        admin.execute(f'alter database "{name}" with allow_connections false')
        try:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )
            found = container.wait(1, "--ready")
            assert found[-1].startswith("the database cannot be reached: ")
            log = container.folder / "log"
            while "the database does not answer" not in log.read_text():
                time.sleep(0.1)
            assert container.ask("--live", "--within", "10s") == (
                0,
                [f"process {process.pid} is at work"],
            )
        finally:
            admin.execute(f'alter database "{name}" with allow_connections true')
    container.wait(0, "--ready")


def test_a_registration_that_ended_is_not_ready(
    container: Container, conn: Connection[Any]
) -> None:
    process = container.start()
    container.wait(0, "--ready")
    process.send_signal(signal.SIGSTOP)  # or it would register anew at once
    conn.execute("select tasklib.deregister_worker(id) from tasklib.worker where lost_at is null")
    code, found = container.ask("--ready")
    assert code == 1
    assert found[-1].endswith(" has ended")


def test_the_wrong_schema_is_not_ready(container: Container, conn: Connection[Any]) -> None:
    container.start()
    container.wait(0, "--ready")
    conn.execute("insert into tasklib.migration (name, sha256) values ('9999_future', '')")
    code, found = container.ask("--ready")
    assert code == 1
    assert "9999_future" in found[0]
    assert container.ask("--live")[0] == 0


def test_asking_renews_nothing(container: Container, conn: Connection[Any]) -> None:
    process = container.start()
    container.wait(0, "--ready")
    process.send_signal(signal.SIGSTOP)
    lease = conn.execute("select lease_until from tasklib.worker").fetchall()
    assert container.ask("--ready")[0] == 0
    assert conn.execute("select lease_until from tasklib.worker").fetchall() == lease


def test_a_role_that_may_only_work_can_ask(container: Container, conn: Connection[Any]) -> None:
    conn.execute("create role prober login; grant tasklib_worker to prober")
    try:
        container.url = make_conninfo(container.url, user="prober")
        process = container.start()
        container.wait(0, "--ready")
        process.terminate()
        process.wait(timeout=60)
    finally:
        conn.execute("drop role prober")


def test_an_unreachable_database_is_no_reason_to_wait_long(container: Container) -> None:
    started = container.start()
    container.wait(0, "--live")
    code, found = container.ask("--ready", url="postgresql://me:s3cret@127.0.0.1:1/none")
    assert code == 1
    assert "Connection refused" in found[0]
    assert "s3cret" not in found[0]
    assert started.poll() is None


@pytest.mark.parametrize(
    "words", [["--live", "--ready"], ["--live", "--only", "schema"]], ids=" ".join
)
def test_one_question_at_a_time(words: list[str]) -> None:
    ran = CliRunner().invoke(main, ["doctor", *words])
    assert ran.exit_code == 2
    assert "ask one" in ran.stderr


def test_a_folder_of_somebody_else_is_said_and_harms_nothing(container: Container) -> None:
    (container.folder / "state").write_text("no folder")
    process = container.start("--drain")
    assert process.wait(timeout=60) == 0
    assert "do not see this worker" in (container.folder / "log").read_text()
