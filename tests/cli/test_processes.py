"""`tasklib worker --processes`, with real processes: what ends, what is replaced, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from tasklib.cli import supervisor as supervising
from tasklib.cli._changes import Sources

from .conftest import Cli

TASKS = """
import os
import time

import tasklib


@tasklib.task(name="app.pid")
def pid() -> int:
    return os.getpid()


@tasklib.task(name="app.wait")
def wait(seconds: float) -> None:
    time.sleep(seconds)


@tasklib.task(name="app.hold")
def hold() -> None:
    open(f"held-{tasklib.current_task().id}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.05)


@tasklib.task(name="app.stuck")
async def stuck(seconds: float) -> None:
    time.sleep(seconds)  # on the event loop, so that no signal is looked at


@tasklib.task(name="app.grow")
def grow(mib: int) -> None:
    global hoard
    hoard = b"x" * (mib << 20)


@tasklib.task(name="app.environment")
def environment() -> list[str]:
    return sorted(name for name in os.environ if name.startswith("_TASKLIB"))
"""

PATIENCE = 60.0


class Command:
    """A running `tasklib worker`, and what it wrote so far."""

    def __init__(self, folder: Path, words: tuple[str, ...], env: dict[str, str]) -> None:
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasklib.cli", "worker", *words],
                cwd=folder,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        until(lambda: self.log.count(text) >= times, lambda: f"no {text!r} in:\n{self.log}")

    def ends(self, code: int = 0) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        assert self.process.returncode == code, self.log
        return self.log


Start = Callable[..., Command]


def until(is_so: Callable[[], object], what: Callable[[], str] = lambda: "never") -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.fixture
def start(database: str, tmp_path: Path, conn: Connection[Any]) -> Generator[Start]:
    """Start the command in a folder that has a module app; at the end, nothing of it is left."""
    (tmp_path / "app.py").write_text(TASKS)
    started: list[Command] = []

    def run(*words: str, **env: str) -> Command:
        given = {"TASKLIB_DATABASE_URL": database, **env}
        started.append(Command(tmp_path, words, given))
        return started[-1]

    yield run
    for command in started:
        command.process.kill()
        command.process.wait()
    everybody = [row[0] for row in conn.execute("select info ->> 'pid' from tasklib.worker")]
    for pid in map(int, filter(None, everybody)):
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.startswith(b"Z")


def pids(conn: Connection[Any], name: str = "%") -> list[int]:
    """The processes whose registration is alive, the oldest first."""
    rows = conn.execute(
        "select (info ->> 'pid')::int from tasklib.worker_health where alive and name like %s "
        "order by registered_at",
        (name,),
    )
    return [row[0] for row in rows]


def working(conn: Connection[Any], count: int) -> list[int]:
    until(lambda: len(pids(conn)) >= count, lambda: f"{len(pids(conn))} of {count} processes")
    return pids(conn)


def states(conn: Connection[Any]) -> list[str]:
    return [row[0] for row in conn.execute("select state from tasklib.tasks order by id")]


def is_state(conn: Connection[Any], *wanted: str) -> Callable[[], bool]:
    return lambda: states(conn) == list(wanted)


def test_as_many_processes_run_as_were_asked_for(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    command = start("app", "--processes", "3", "--name", "mail")
    found = working(conn, 3)

    assert len(set(found)) == 3
    assert command.process.pid not in found
    names = conn.execute("select name from tasklib.worker_health order by name").fetchall()
    assert names == [("mail-1",), ("mail-2",), ("mail-3",)]

    command.process.terminate()
    log = command.ends()
    assert log.count("TaskLib") == 1, "one of them greets"
    assert "processes    3" in log
    for number in (1, 2, 3):
        assert f"tasklib.worker: [{number}] stopping" in log
    assert not pids(conn)
    assert not [pid for pid in found if is_running(pid)]


def test_each_process_imports_the_code_itself_and_tasks_see_nothing_of_it(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    for _ in range(20):
        cli("enqueue", "app.pid")
    cli("enqueue", "app.environment")

    start("app", "--processes", "2", "--drain").ends()

    results = [row[0]["value"] for row in conn.execute("select result from tasklib.tasks")]
    assert [] in results
    assert set(states(conn)) == {"completed"}


def test_a_process_that_was_killed_is_replaced(start: Start, conn: Connection[Any]) -> None:
    command = start("app", "--processes", "2", "--name", "it")
    working(conn, 2)
    (victim,) = pids(conn, "it-2")

    os.kill(victim, signal.SIGKILL)

    until(lambda: [pid for pid in pids(conn, "it-2") if pid != victim])
    command.says(f"process 2 (pid {victim}) was killed by SIGKILL; another starts")
    command.process.terminate()
    command.ends()


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_is_replaced_ever_more_slowly(
    start: Start, conn: Connection[Any]
) -> None:
    command = start("app", "--processes", "2", "--name", "it")
    working(conn, 2)
    killed: set[int] = set()
    for _ in range(3):
        before = frozenset(killed)
        until(lambda before=before: set(pids(conn, "it-2")) - before)
        killed.update(pids(conn, "it-2"))
        for pid in killed - before:
            os.kill(pid, signal.SIGKILL)

    for pause in ("0.5", "1", "2"):
        command.says(f"another starts in {pause} s")


@pytest.mark.parametrize(
    ("module", "url", "code", "complaint"),
    [
        ("nowhere", None, 2, "there is no module 'nowhere'"),
        ("broken", None, 1, "ModuleNotFoundError: No module named 'not_there'"),
        ("app", "postgresql://nobody@127.0.0.1:1/none", 3, "hint: Is the server running?"),
        ("deadly", None, 128 + signal.SIGKILL, "was killed by SIGKILL before it worked"),
        ("app", "memory://", 2, "memory:// belongs to one process"),
    ],
)
def test_what_cannot_start_ends_the_command_and_says_so_once(
    start: Start, tmp_path: Path, module: str, url: str | None, code: int, complaint: str
) -> None:
    (tmp_path / "broken.py").write_text("import not_there\n")
    (tmp_path / "deadly.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    env = {"TASKLIB_DATABASE_URL": url} if url else {}

    log = start(module, "--processes", "3", **env).ends(code)

    assert log.count(complaint) == 1


def test_a_role_that_may_not_work_ends_the_command(
    start: Start, conn: Connection[Any], database: str
) -> None:
    conn.execute("revoke execute on function tasklib.register_worker from tasklib_worker")
    url = f"{database} options='-c role=tasklib_worker'"

    log = start("app", "--processes", "2", TASKLIB_DATABASE_URL=url).ends(1)

    assert log.count("permission denied") == 1


def test_the_first_sigterm_lets_running_tasks_end(
    cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    command = start("app", "--processes", "2")
    working(conn, 2)
    for _ in range(2):
        cli("enqueue", "app.hold")
    until(lambda: len(list(tmp_path.glob("held-*"))) == 2)  # a claim alone is given back

    command.process.terminate()
    command.says("stopping: 1 tasks are running", times=2)
    (tmp_path / "go").touch()

    command.ends()
    assert states(conn) == ["completed", "completed"]


def test_a_signal_that_reaches_all_of_them_counts_once(
    cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    """As Ctrl-C in a terminal does it, and systemd with its KillMode=control-group."""
    command = start("app", "--processes", "2")
    working(conn, 2)
    for _ in range(2):
        cli("enqueue", "app.hold")
    until(lambda: len(list(tmp_path.glob("held-*"))) == 2)  # a claim alone is given back

    os.killpg(command.process.pid, signal.SIGINT)
    command.says("stopping: 1 tasks are running", times=2)
    time.sleep(0.5)
    for pid in pids(conn):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    (tmp_path / "go").touch()

    command.ends()
    assert states(conn) == ["completed", "completed"]


def test_a_process_that_somebody_else_stops_is_replaced(
    cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    cli("enqueue", "app.hold")
    command = start("app", "--processes", "2")
    found = working(conn, 2)
    until(is_state(conn, "running"))

    for pid in found:
        os.kill(pid, signal.SIGTERM)
    command.says("stopping: 1 tasks are running")
    (tmp_path / "go").touch()

    until(lambda: len(set(pids(conn)) - set(found)) == 2)
    assert states(conn) == ["completed"]
    command.process.terminate()
    command.ends()


def test_the_second_sigterm_hands_back_what_runs(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.wait", "seconds=600")
    command = start("app", "--processes", "2")
    working(conn, 2)
    until(is_state(conn, "running"))

    command.process.terminate()
    command.says("stopping", times=3)
    command.process.send_signal(signal.SIGINT)

    command.ends(128 + signal.SIGINT)
    assert conn.execute("select state, retry_count from tasklib.tasks").fetchall() == [
        ("pending", 0)
    ]


@pytest.mark.slow
def test_after_the_second_signal_what_does_not_leave_is_killed(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.stuck", "seconds=600")
    command = start("app", "--processes", "2")
    found = working(conn, 2)
    until(is_state(conn, "running"))

    for _ in range(2):
        command.process.terminate()
        time.sleep(0.5)

    log = command.ends(128 + signal.SIGTERM)
    assert "killing 1 processes" in log
    assert not [pid for pid in found if is_running(pid)]


def test_no_process_is_left_when_the_supervisor_is_killed(
    cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    cli("enqueue", "app.hold")
    command = start("app", "--processes", "2")
    found = working(conn, 2)
    until(is_state(conn, "running"))

    command.process.kill()
    command.says("stopping: 1 tasks are running")
    (tmp_path / "go").touch()

    until(lambda: not [pid for pid in found if is_running(pid)])
    assert states(conn) == ["completed"], "they drain"
    assert not pids(conn)


@pytest.mark.slow
def test_a_process_that_cannot_drain_is_not_left_either(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.stuck", "seconds=600")
    command = start("app", "--processes", "2", "--shutdown-timeout", "0")
    found = working(conn, 2)
    until(is_state(conn, "running"))

    command.process.kill()

    until(lambda: not [pid for pid in found if is_running(pid)])


def test_max_tasks_is_counted_by_process_and_nothing_is_left_undone(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    for _ in range(12):
        cli("enqueue", "app.pid")

    log = start("app", "--processes", "2", "--max-tasks", "3", "--drain").ends()

    assert states(conn) == ["completed"] * 12
    by_pid = conn.execute(
        "select count(*) from tasklib.tasks group by result ->> 'value'"
    ).fetchall()
    assert max(count for (count,) in by_pid) <= 3
    assert "another starts" not in log, "it is no failure"
    assert log.count("TaskLib") == 1


def test_a_worker_alone_executes_itself_again(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    for _ in range(5):
        cli("enqueue", "app.pid")
    command = start("app", "--max-tasks", "2", "--concurrency", "4", "--drain")

    log = command.ends()

    assert states(conn) == ["completed"] * 5
    results = {row[0]["value"] for row in conn.execute("select result from tasklib.tasks")}
    assert results == {command.process.pid}
    assert log.count("making room for a fresh worker after 2 attempts") == 2
    assert log.count("TaskLib") == 1


def test_a_worker_that_makes_room_and_is_stopped_stays_away(
    cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    cli("enqueue", "app.hold")
    command = start("app", "--max-tasks", "1")
    command.says("making room")

    command.process.terminate()
    command.says("stopping: 1 tasks are running")
    (tmp_path / "go").touch()

    assert command.ends().count("takes tasks") == 1
    assert states(conn) == ["completed"]


def test_a_process_that_has_grown_is_replaced_between_tasks(
    cli: Cli, start: Start, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.grow", "mib=300")
    cli("enqueue", "app.pid", "--delay", "2s")
    command = start("app", "--max-memory", "200MiB")
    command.says("MiB of memory")
    command.says("takes tasks", times=2)
    until(is_state(conn, "completed", "completed"))

    assert command.log.count("making room") == 1
    command.process.terminate()
    command.ends()


def test_json_lines_say_which_process_wrote_them(start: Start, conn: Connection[Any]) -> None:
    command = start("app", "--processes", "2", "--log-format", "json")
    victim = working(conn, 2)[0]
    os.kill(victim, signal.SIGKILL)
    command.says("another starts")
    command.process.terminate()

    lines = [json.loads(line) for line in command.ends().splitlines()]

    assert {line.get("process") for line in lines if line["logger"] == "tasklib.worker"} == {1, 2}
    assert {line["logger"] for line in lines if "process" not in line} == {"tasklib.supervisor"}


def test_the_supervisor_is_small(start: Start, conn: Connection[Any]) -> None:
    command = start("app", "--processes", "2")
    working(conn, 2)
    asked = ["ps", "-o", "rss=", "-p", str(command.process.pid)]

    kib = int(subprocess.run(asked, capture_output=True, check=True).stdout)

    assert kib < 25_000


def test_changed_code_is_run(cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path) -> None:
    command = start("app", "--reload")
    working(conn, 1)
    cli("enqueue", "app.pid")
    until(is_state(conn, "completed"))

    (tmp_path / "app.py").write_text(TASKS.replace("return os.getpid()", "return -1"))
    command.says("app.py changed: starting anew")
    cli("enqueue", "app.pid")
    until(is_state(conn, "completed", "completed"))

    rows = conn.execute("select result from tasklib.tasks order by id").fetchall()
    assert rows[1][0] == {"value": -1}
    assert rows[0][0] != {"value": -1}
    command.process.terminate()
    command.ends()


@pytest.mark.slow
def test_code_that_cannot_be_imported_waits_for_the_next_change(
    start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("def oops(:\n")
    command = start("app", "--reload", "--processes", "2")
    command.says("the code cannot be started; waiting until it changes")
    assert command.log.count("SyntaxError") == 1

    (tmp_path / "app.py").write_text(TASKS)
    working(conn, 2)
    (tmp_path / "app.py").write_text("import not_there\n")
    command.says("waiting until it changes", times=2)
    assert command.log.count("ModuleNotFoundError") == 1
    (tmp_path / "app.py").write_text(TASKS + "\n")
    working(conn, 2)

    command.process.terminate()
    command.ends()


def test_waiting_for_a_change_ends_with_a_signal(start: Start, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import not_there\n")
    command = start("app", "--reload")
    command.says("waiting until it changes")

    command.process.send_signal(signal.SIGINT)

    command.ends()


def test_a_task_that_runs_when_its_code_changes_starts_anew(
    cli: Cli, start: Start, conn: Connection[Any], tmp_path: Path
) -> None:
    cli("enqueue", "app.wait", "seconds=600")
    command = start("app", "--reload", "--shutdown-timeout", "600")
    until(is_state(conn, "running"))

    (tmp_path / "app.py").write_text(TASKS.replace("time.sleep(seconds)\n", "pass\n", 1))

    until(is_state(conn, "completed"))
    assert conn.execute("select attempt, retry_count from tasklib.tasks").fetchall() == [(2, 0)]
    command.process.terminate()
    command.ends()


def test_code_outside_the_folder_is_looked_at_too(
    start: Start, conn: Connection[Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "shared.py").write_text("number = 1\n")
    (tmp_path / "app.py").write_text("import shared\n" + TASKS)
    command = start("app", "--reload", PYTHONPATH=f"{elsewhere}:{os.environ.get('PYTHONPATH', '')}")
    working(conn, 1)

    (elsewhere / "shared.py").write_text("number = 2  # other\n")

    command.says("shared.py changed")
    command.process.terminate()
    command.ends()


def test_reload_does_not_go_with_drain(start: Start) -> None:
    assert "--reload goes on" in start("app", "--reload", "--drain").ends(2)


def test_sources_are_those_of_the_project(tmp_path: Path) -> None:
    for name in ("a.py", "pack/b.py", ".venv/c.py", "env/d.py", "node_modules/e.py", "f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "env/pyvenv.cfg").touch()
    sources = Sources(str(tmp_path))
    assert sources.changed() == []

    for name in ("a.py", "pack/b.py", ".venv/c.py", "env/d.py", "node_modules/e.py", "f.txt"):
        os.utime(tmp_path / name, (1, 1))
    assert sources.changed() == [str(tmp_path / "a.py"), str(tmp_path / "pack/b.py")]

    (tmp_path / "pack/new.py").touch()
    (tmp_path / "a.py").unlink()
    assert sources.changed() == [str(tmp_path / "a.py"), str(tmp_path / "pack/new.py")]
    assert sources.changed() == []


def test_pauses_have_an_end() -> None:
    plan = supervising.Plan(["false"], 1)
    watched = supervising.Supervision(plan)
    for _ in range(2000):
        watched._start_later(1, "died", is_healthy=False)
    assert watched._due[1] - time.monotonic() <= supervising.LONGEST_PAUSE
    watched._start_later(1, "died", is_healthy=True)
    assert watched._due[1] <= time.monotonic()
