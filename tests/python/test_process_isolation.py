"""Tasks in child processes: they end when they have to, and take nothing else along."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import tasks_in_children as app
from tasklib import Config, SyncTaskQueue, TaskFunction, TaskQueue, TaskResult, TaskWorker
from tasklib import _default as default
from tasklib.models import Claimed
from tasklib.worker import children, locate, wire
from tasklib.worker.context import Run
from tasklib.worker.outcome import Outcome

Start = Callable[..., TaskWorker]


@pytest.fixture
async def start(database: str) -> AsyncGenerator[Start]:
    """Start workers of the children's tasks; they are stopped when the test ends."""
    started: list[tuple[TaskWorker, asyncio.Task[None]]] = []

    def run(concurrency: int = 2, **settings: Any) -> TaskWorker:
        settings = {"kill_grace_seconds": 0.5, "base_retry_delay_seconds": 0.1} | settings
        config = Config(database_url=database, **settings)
        registry = app.queue.registry
        worker = TaskWorker(
            config, registry=registry, concurrency=concurrency, handle_signals=False
        )
        started.append((worker, asyncio.create_task(worker.run())))
        return worker

    yield run
    for worker, task in started:
        await worker.stop()
        await task


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """A file for process ids."""
    return tmp_path / "note"


async def run(queue: TaskQueue, task: TaskFunction[..., Any], **kwargs: Any) -> TaskResult[Any]:
    result = await queue.get_result(await queue.enqueue(task, **kwargs), timeout=30)
    assert result is not None
    return result


async def pids(note: Path) -> list[int]:
    """Return the process ids in a file, when they are there."""
    async with asyncio.timeout(30):
        while not note.exists() or not note.read_text():
            await asyncio.sleep(0.02)
    return [int(word) for word in note.read_text().split()]


def is_alive(pid: int) -> bool:
    """Tell whether a process is there, and not just waiting to be reaped."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return shown.stdout.strip()[:1] not in ("", "Z")


async def until_gone(*pids: int) -> None:
    """Wait until processes are no more."""
    async with asyncio.timeout(30):
        while any(is_alive(pid) for pid in pids):
            await asyncio.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Return the children that run tasks, by their parent."""
    shown = subprocess.run(["ps", "-Aww", "-o", "pid=,ppid=,args="], capture_output=True, text=True)
    rows = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
    return [int(row[0]) for row in rows if row[1] == str(pid) and "tasklib.worker.child" in row[2]]


# ---- running -------------------------------------------------------------------------------------


async def test_a_task_runs_in_a_child_that_knows_it(aqueue: TaskQueue, start: Start) -> None:
    start()
    options = {"tags": {"a": 1}, "headers": {"trace": "x"}}
    task_id = await aqueue.enqueue(app.look.options(**options))
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert result.value["pid"] == result.value["group"] != os.getpid()
    assert result.value["parent"] == os.getpid()
    told = {key: result.value[key] for key in ("id", "name", "queue", "attempt", "cancelled")}
    assert told == {
        "id": str(task_id),
        "name": "tasks_in_children.look",
        "queue": "default",
        "attempt": 1,
        "cancelled": False,
    }
    assert (result.value["tags"], result.value["headers"]) == ({"a": 1}, {"trace": "x"})


async def test_a_child_runs_one_task_after_the_other(aqueue: TaskQueue, start: Start) -> None:
    start(concurrency=1)
    results = [await run(aqueue, task) for task in (app.look, app.look_async, app.fail, app.look)]

    pid = results[0].value["pid"]
    assert [results[1].value, results[3].value["pid"]] == [pid, pid]


async def test_there_are_no_more_children_than_tasks_at_a_time(
    aqueue: TaskQueue, start: Start
) -> None:
    start(concurrency=2)
    ids = await aqueue.enqueue_many([(app.look, {})] * 20)
    results = [await aqueue.get_result(task_id, timeout=30) for task_id in ids]

    assert len({result and result.value["pid"] for result in results}) <= 2
    assert len(children_of(os.getpid())) <= 2


async def test_idle_children_end(aqueue: TaskQueue, start: Start, monkeypatch: Any) -> None:
    monkeypatch.setattr(children, "IDLE_SECONDS", 0.1)
    start()
    first = (await run(aqueue, app.look)).value["pid"]
    await until_gone(first)

    assert (await run(aqueue, app.look)).value["pid"] != first


async def test_a_stopped_worker_leaves_no_child(aqueue: TaskQueue, start: Start) -> None:
    worker = start()
    await run(aqueue, app.look)
    assert children_of(os.getpid())
    await worker.stop()

    assert not children_of(os.getpid())


async def test_errors_and_results_come_back_as_from_a_thread(
    aqueue: TaskQueue, start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    start()
    failed = await run(aqueue, app.fail)
    assert failed.state == "failed"
    assert (failed.error or "").startswith("Traceback")
    assert "LookupError: not today" in (failed.error or "")
    assert "in fail\n" in (failed.error or "")
    assert "worker/" not in (failed.error or "")
    assert "a line of the task's own" in capfd.readouterr().out

    unstorable = await run(aqueue, app.unstorable)
    assert "InvalidResult" in (unstorable.error or "")
    task_id = await aqueue.enqueue("tasks_in_children.count", n="five")
    refused = await aqueue.get_result(task_id, timeout=30)
    assert refused is not None
    assert "InvalidArguments" in (refused.error or "")


async def test_what_does_not_fit_into_a_pipe_at_once_goes_through(
    aqueue: TaskQueue, start: Start
) -> None:
    start()
    text = "\N{SNOWMAN}" * 250_000
    result = await run(aqueue, app.echo, text=text)

    assert result.value == text


@pytest.mark.parametrize(
    ("verdict", "state"), [("retry", "failed"), ("snooze", "pending"), ("cancel", "cancelled")]
)
async def test_a_task_in_a_child_says_what_becomes_of_it(
    aqueue: TaskQueue, start: Start, verdict: str, state: str
) -> None:
    worker = start()
    task_id = await aqueue.enqueue(app.judge, verdict=verdict)
    async with asyncio.timeout(30):
        while not worker.stats.failed + worker.stats.snoozed + worker.stats.cancelled:
            await asyncio.sleep(0.05)

    task = await aqueue.get_task(task_id)
    assert task is not None
    assert task.state == state
    assert task.is_terminal == (state == "cancelled")


async def test_rules_about_exceptions_hold_in_a_child(aqueue: TaskQueue, start: Start) -> None:
    start()
    result = await run(aqueue, app.give_up)

    assert result.state == "failed"
    assert "there is none" in (result.error or "")


async def test_progress_of_a_child_is_seen(aqueue: TaskQueue, start: Start, note: Path) -> None:
    start()
    task_id = await aqueue.enqueue(app.see, path=note)
    async with asyncio.timeout(30):
        while (task := await aqueue.get_task(task_id)) is None or task.progress is None:
            await asyncio.sleep(0.05)
    await aqueue.cancel_task(task_id)

    assert (task.progress, task.progress_message) == (0.5, "half of it")


async def test_what_a_child_logs_is_logged_by_the_worker(
    aqueue: TaskQueue, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start()
    result = await run(aqueue, app.write_log)

    records = [record for record in caplog.records if record.name == "app.children"]
    assert [record.levelname for record in records] == ["WARNING", "ERROR"]
    assert records[0].getMessage() == "seen once"
    fields = vars(records[0])
    assert (fields["shelf"], fields["task_id"], fields["attempt"]) == (7, str(result.id), 1)
    assert records[0].process != os.getpid()
    assert "LookupError: inside" in records[1].getMessage()


async def test_a_child_finds_a_task_that_its_module_makes_in_a_function(
    aqueue: TaskQueue, start: Start
) -> None:
    start()
    task_id = await aqueue.enqueue("children.inner")
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert (result.state, result.value) == ("completed", 7)


async def test_a_task_in_a_child_enqueues_where_the_worker_does(
    aqueue: TaskQueue, start: Start, app: None, database: str
) -> None:
    start()
    result = await aqueue.get_result(await aqueue.enqueue("tasks_in_children.submit"), timeout=30)

    assert result is not None
    enqueued = await aqueue.get_task(result.value)
    assert enqueued is not None
    assert enqueued.name == "children.unknown"


# ---- timeouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [app.spin, app.hold_gil, app.ignore], ids=lambda task: task.name)
async def test_code_that_does_not_want_to_end_ends_at_its_timeout(
    aqueue: TaskQueue, start: Start, note: Path, task: TaskFunction[..., Any]
) -> None:
    start(concurrency=4)
    neighbours = [await aqueue.enqueue(app.tick, path=note, n=50) for _ in range(2)]
    steady = await aqueue.enqueue(app.see, path=note.with_name("steady"))
    result = await run(aqueue, task.options(timeout_seconds=1.0), path=note)

    assert (result.state, result.error) == (
        "failed",
        "TimeoutError: the attempt did not end within 1 s",
    )
    assert not any(is_alive(pid) for pid in await pids(note))
    assert all(is_alive(pid) for pid in await pids(note.with_name("steady")))
    for task_id in neighbours:
        tick = await aqueue.get_result(task_id, timeout=30)
        assert tick is not None
        assert tick.value == os.getpid()
    await aqueue.cancel_task(steady)


@pytest.mark.parametrize(
    "task", [app.spin, app.clean_up, app.clean_up_async], ids=lambda task: task.name
)
async def test_code_may_clean_up_at_its_timeout(
    aqueue: TaskQueue, start: Start, note: Path, task: TaskFunction[..., Any]
) -> None:
    start(kill_grace_seconds=8)
    result = await run(aqueue, task.options(timeout_seconds=0.5), path=note)

    assert "TimeoutError" in (result.error or "")
    assert note.with_suffix(".clean").exists()
    await until_gone(*await pids(note))


async def test_the_signal_cuts_no_message_in_two(
    aqueue: TaskQueue, start: Start, note: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    loud = logging.getLogger("app.loud")
    monkeypatch.setattr(loud, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(loud, "propagate", False)
    start(kill_grace_seconds=8)
    result = await run(aqueue, app.shout.options(timeout_seconds=0.5), path=note)

    assert "TimeoutError" in (result.error or "")
    assert "bye" in caplog.messages


async def test_the_start_of_a_child_does_not_count_towards_the_timeout(
    aqueue: TaskQueue, start: Start
) -> None:
    start()
    result = await run(aqueue, app.look.options(timeout_seconds=0.05))

    assert result.state == "completed"


async def test_a_child_that_does_not_start_is_given_up(
    aqueue: TaskQueue, start: Start, monkeypatch: Any
) -> None:
    monkeypatch.setattr(children, "START_SECONDS", 0.01)
    start()
    result = await run(aqueue, app.look)

    assert result.error == "TimeoutError: the child process was not ready within 0.01 s"


async def test_a_sigterm_of_others_does_not_end_a_task(
    aqueue: TaskQueue, start: Start, note: Path
) -> None:
    start()
    task_id = await aqueue.enqueue(app.clean_up.options(timeout_seconds=2.0), path=note)
    (pid,) = await pids(note)
    os.kill(pid, signal.SIGTERM)
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert "TimeoutError" in (result.error or "")
    assert note.with_suffix(".clean").read_text() == "True"


# ---- cancellation and the end of the worker ------------------------------------------------------


async def test_a_cancelled_child_is_told_first(aqueue: TaskQueue, start: Start, note: Path) -> None:
    start(concurrency=1)
    task_id = await aqueue.enqueue(app.see, path=note)
    (pid,) = await pids(note)
    await aqueue.cancel_task(task_id)
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert (result.state, result.value) == ("completed", "seen")
    assert (await run(aqueue, app.look)).value["pid"] == pid


@pytest.mark.parametrize("task", [app.spin, app.hold_gil, app.ignore], ids=lambda task: task.name)
async def test_a_cancelled_child_ends_whatever_it_does(
    aqueue: TaskQueue, start: Start, note: Path, task: TaskFunction[..., Any]
) -> None:
    start()
    task_id = await aqueue.enqueue(task, path=note)
    started = await pids(note)
    await aqueue.cancel_task(task_id)
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert (result.state, result.error) == ("cancelled", None)
    assert not any(is_alive(pid) for pid in started)


async def test_a_result_wins_over_the_signal_of_a_cancellation(
    aqueue: TaskQueue, start: Start, note: Path
) -> None:
    start()
    task_id = await aqueue.enqueue(app.insist, path=note)
    started = await pids(note)
    await aqueue.cancel_task(task_id)
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert (result.state, result.value) == ("completed", "complete")
    await until_gone(*started)


@pytest.mark.parametrize("task", [app.spin, app.ignore], ids=lambda task: task.name)
async def test_a_worker_that_stops_ends_its_children_and_gives_the_tasks_back(
    aqueue: TaskQueue, start: Start, note: Path, task: TaskFunction[..., Any]
) -> None:
    worker = start(shutdown_timeout_seconds=0.1, kill_grace_seconds=2)
    task_id = await aqueue.enqueue(task, path=note)
    started = await pids(note)
    await worker.stop()

    assert not any(is_alive(pid) for pid in started)
    assert not children_of(os.getpid())
    assert worker.stats.released == 1
    found = await aqueue.get_task(task_id)
    assert found is not None
    assert (found.state, found.retry_count, found.error) == ("pending", 0, None)


async def test_a_task_has_its_time_to_clean_up_when_the_worker_stops(
    aqueue: TaskQueue, start: Start, note: Path
) -> None:
    worker = start(shutdown_timeout_seconds=0.1, kill_grace_seconds=8)
    await aqueue.enqueue(app.clean_up, path=note, seconds=1.5)
    await pids(note)
    await worker.stop()

    assert note.with_suffix(".clean").exists()
    assert worker.stats.released == 1


async def test_what_a_task_leaves_running_ends_with_its_child(
    aqueue: TaskQueue, start: Start, note: Path
) -> None:
    worker = start()
    result = await run(aqueue, app.leave, path=note)
    (left,) = await pids(note)
    assert result.state == "completed"
    assert is_alive(left)
    await worker.stop()

    await until_gone(left)  # killed, it takes a moment to die


# ---- crashes -------------------------------------------------------------------------------------


async def test_a_task_that_cleans_up_is_held_until_its_child_has_ended(
    aqueue: TaskQueue, start: Start, note: Path, conn: Any
) -> None:
    worker = start(shutdown_timeout_seconds=0.1, kill_grace_seconds=8)
    await aqueue.enqueue(app.clean_up, path=note, seconds=2.5)
    await pids(note)
    stopping = asyncio.create_task(worker.stop())
    seen: list[str] = []
    while not (note.with_suffix(".clean").exists() or stopping.done()):
        seen += [state for (state,) in conn.execute("select state from tasklib.tasks")]
        await asyncio.sleep(0.05)
    await stopping

    assert note.with_suffix(".clean").exists()
    # At the last look the child may have been through.
    assert set(seen[:-1]) == {"running"}
    assert worker.stats.released == 1


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("segfault", "was killed by signal 11 (SIGSEGV)"),
        ("exit", "ended by itself with exit code 3"),
        ("kill", "was killed by signal 9 (SIGKILL), perhaps for want of memory"),
        ("deaf", "was killed by signal 9 (SIGKILL), perhaps for want of memory"),
        ("babble", "was killed by signal 9 (SIGKILL), perhaps for want of memory"),
    ],
)
async def test_a_child_that_dies_fails_its_own_attempt_alone(
    aqueue: TaskQueue, start: Start, note: Path, conn: Any, how: str, what: str
) -> None:
    start(concurrency=3)
    steady = await aqueue.enqueue(app.see, path=note)
    await pids(note)
    result = await run(aqueue, app.die.options(max_retries=0), how=how)

    assert (result.state, result.error) == (
        "failed",
        f"ChildProcessError: the child process of the attempt {what}",
    )
    assert conn.execute("select cause from tasklib.failures").fetchall() == [("crashed",)]
    assert all(is_alive(pid) for pid in await pids(note))
    assert (await run(aqueue, app.look)).state == "completed"
    await aqueue.cancel_task(steady)


async def test_three_crashes_fail_a_task_for_good(
    aqueue: TaskQueue, start: Start, note: Path
) -> None:
    start()
    result = await run(aqueue, app.die.options(max_retries=100), how="kill", path=note)

    assert result.state == "failed"
    assert note.read_text() == "3"


async def test_a_child_that_died_while_idle_is_nobodys_crash(
    aqueue: TaskQueue, start: Start, conn: Any
) -> None:
    start(concurrency=1)
    first = (await run(aqueue, app.look)).value["pid"]
    os.kill(first, signal.SIGSTOP)
    task_id = await aqueue.enqueue(app.look)
    async with asyncio.timeout(30):
        while (task := await aqueue.get_task(task_id)) is None or not task.is_running:
            await asyncio.sleep(0.02)
    os.kill(first, signal.SIGKILL)
    result = await aqueue.get_result(task_id, timeout=30)

    assert result is not None
    assert result.state == "completed"
    assert result.value["attempt"] == 1


# ---- workers as programs -------------------------------------------------------------------------

PROGRAM = """
    import asyncio, ctypes, os, pathlib, sys, time
    import tasklib

    @tasklib.task(name="script.hold", isolation="process", max_retries=0)
    def hold(path: str, how: str) -> None:
        pathlib.Path(path).write_text(str(os.getpid()))
        if how == "c":
            ctypes.PyDLL(None).sleep(600)
        time.sleep(600)

    @tasklib.task(isolation="process", max_retries=0)
    def where() -> str:
        return f"{__name__} {sys.argv[1:]}"

    if GUARD:
        config = tasklib.Config(database_url=sys.argv[1], base_retry_delay_seconds=0.1)
        asyncio.run(tasklib.TaskWorker(config, drain=DRAIN).run())
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """Write a program that defines tasks and works on them."""

    def write(guard: str = "__name__ == '__main__'", drain: bool = True) -> Path:
        path = tmp_path / "my_script.py"
        text = PROGRAM.replace("GUARD", guard).replace("DRAIN", str(drain))
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def worker(script: Callable[..., Path], database: str) -> Generator[subprocess.Popen[bytes]]:
    """A worker that goes on until the test ends."""
    process = subprocess.Popen([sys.executable, script(drain=False), database])
    yield process
    process.kill()
    process.wait()


def test_tasks_of_a_script_run_in_children(
    queue: SyncTaskQueue, script: Callable[..., Path], database: str
) -> None:
    task_id = queue.enqueue("my_script.where")
    subprocess.run([sys.executable, script(), database], check=True, timeout=60)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == f"__mp_main__ {[database]}"


def test_tasks_of_a_module_that_is_run_run_in_children(
    queue: SyncTaskQueue, script: Callable[..., Path], database: str
) -> None:
    task_id = queue.enqueue("my_script.where")
    command = [sys.executable, "-m", "my_script", database]
    subprocess.run(command, cwd=script().parent, check=True, timeout=60)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.state == "completed"


def test_a_script_that_starts_its_worker_when_it_is_imported_is_refused(
    queue: SyncTaskQueue, script: Callable[..., Path], database: str
) -> None:
    task_id = queue.enqueue("my_script.where")
    subprocess.run([sys.executable, script(guard="True"), database], check=True, timeout=60)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.state == "failed"
    assert "a worker was started in a child process" in (result.error or "")
    assert "if __name__ == '__main__'" in (result.error or "")


def test_a_program_that_is_no_file_is_refused(
    queue: SyncTaskQueue, script: Callable[..., Path], database: str
) -> None:
    task_id = queue.enqueue("where")
    code = script().read_text().replace("@tasklib.task(isol", "@tasklib.task(name='where', isol")
    subprocess.run([sys.executable, "-c", code, database], check=True, timeout=60)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert "the program that the task is defined in is no file" in (result.error or "")


async def test_a_task_that_importing_does_not_define_is_refused(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task(name="local", isolation="process")
    def local() -> None: ...

    local.func.__module__ = "tasks_in_children"
    running()
    result = await aqueue.get_result(await aqueue.enqueue(local), timeout=30)

    assert result is not None
    assert result.state == "failed"
    assert "found no task 'local'" in (result.error or "")
    assert "not inside another function" in (result.error or "")


async def test_a_module_that_cannot_be_imported_fails_the_attempt_alone(
    aqueue: TaskQueue, running: Start
) -> None:
    @aqueue.task(name="lost", isolation="process", max_retries=0)
    def lost() -> None: ...

    lost.func.__module__ = "nowhere_at_all"
    running()
    result = await aqueue.get_result(await aqueue.enqueue(lost), timeout=30)

    assert result is not None
    assert result.state == "failed"
    assert "No module named 'nowhere_at_all'" in (result.error or "")
    assert "could not import nowhere_at_all" in (result.error or "")


def test_a_child_imports_first_what_the_worker_was_started_with(
    queue: SyncTaskQueue, tmp_path: Path, database: str
) -> None:
    (tmp_path / "settings_first.py").write_text("import base; base.ready = True; import theirs")
    (tmp_path / "base.py").write_text("ready = False")
    (tmp_path / "theirs.py").write_text(
        "import base, tasklib\nassert base.ready\n"
        "@tasklib.task(isolation='process', max_retries=0)\ndef work() -> int: return 5\n"
    )
    task_id = queue.enqueue("theirs.work")
    command = [sys.executable, "-m", "tasklib.cli", "--database-url", database]
    command += ["worker", "settings_first", "--drain"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert (result.value, result.error) == (5, None)


@pytest.mark.parametrize("how", ["sleep", "c"])
def test_children_die_with_their_parent(
    queue: SyncTaskQueue, worker: subprocess.Popen[bytes], note: Path, how: str
) -> None:
    queue.enqueue("script.hold", path=str(note), how=how)
    (pid,) = asyncio.run(pids(note))
    worker.kill()
    worker.wait()

    asyncio.run(until_gone(pid))


def test_a_second_signal_ends_children_at_once(
    queue: SyncTaskQueue, worker: subprocess.Popen[bytes], note: Path
) -> None:
    task_id = queue.enqueue("script.hold", path=str(note), how="c")
    (pid,) = asyncio.run(pids(note))
    worker.send_signal(signal.SIGINT)
    time.sleep(0.3)
    worker.send_signal(signal.SIGINT)

    assert worker.wait(30) == 128 + signal.SIGINT
    assert not is_alive(pid)
    task = queue.get_task(task_id)
    assert task is not None
    assert (task.state, task.retry_count) == ("pending", 0)


# ---- the parts -----------------------------------------------------------------------------------


def claimed(task: TaskFunction[..., Any], kwargs: str = "{}") -> Claimed:
    """Return an attempt as it is handed out."""
    return Claimed(str(uuid4()), 1, task.name, "default", kwargs, 0, 3, None, None, None)


async def test_the_pool_tells_of_process_groups_that_come_and_go(tmp_path: Path) -> None:
    groups, ended = list[tuple[str, int]](), asyncio.Queue[Outcome]()
    default.adopt(Config(database_url="postgresql:///none"))
    pool = children.ChildPool(
        app.queue.registry,
        lambda _, outcome: ended.put_nowait(outcome),
        grace=1,
        on_spawn=lambda group: groups.append(("spawn", group)),
        on_exit=lambda group: groups.append(("exit", group)),
    )
    pool.start(Run(claimed(app.look), str(uuid4())), app.look)
    outcome = await ended.get()
    await pool.close()

    group = json.loads(outcome.text)["result"]["value"]["group"]
    assert groups == [("spawn", group), ("exit", group)]


async def test_what_a_child_said_last_counts_though_it_is_dead(aqueue: TaskQueue) -> None:
    @aqueue.task(name="lost", isolation="process")
    def lost() -> None: ...

    lost.func.__module__ = "nowhere_at_all"
    default.adopt(Config(database_url="postgresql:///none"))
    groups, ended = list[int](), asyncio.Queue[Outcome]()
    pool = children.ChildPool(
        aqueue.registry, lambda _, outcome: ended.put_nowait(outcome), 1, on_spawn=groups.append
    )
    pool.start(Run(claimed(lost), str(uuid4())), lost)
    deadline = time.monotonic() + 30
    while is_alive(groups[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # so that the loop can take no notice

    assert "No module named" in (await ended.get()).text


def test_a_child_whose_worker_is_gone_kills_itself_where_the_system_does_not(note: Path) -> None:
    ours, theirs = socket.socketpair()
    code = "from tasklib.worker import child; child._die_with = lambda _: None; child.main()"
    command = [sys.executable, "-c", code, str(theirs.fileno()), "1"]
    folder = str(Path(app.__file__).parent)
    with theirs:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        )
    default.adopt(Config(database_url="postgresql:///none"))
    attempt = claimed(app.ignore, json.dumps({"path": str(note)}))._asdict()
    place = asdict(locate.Place.of(app.ignore))
    job = {"claimed": attempt, "worker_id": str(uuid4()), "place": place}
    with ours:
        ours.sendall(wire.encode("setup", locate.setup([], {})) + wire.encode("run", job))
        group = asyncio.run(pids(note))

    assert process.wait(30) == -signal.SIGKILL
    asyncio.run(until_gone(*group))
