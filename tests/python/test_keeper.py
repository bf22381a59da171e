"""The process beside a worker: it keeps the lease whatever tasks do, and tells of its death."""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from processes import Start, children, is_alive, wait_for, wait_until

from tasklib import Config, SyncTaskQueue
from tasklib.worker.keeper import PROGRAM, SQL, Begun, Keeper


def failures(conn: Any, task_id: object) -> list[tuple[str, str]]:
    return conn.execute(
        "select cause, error from tasklib.failures where task_id = %s order by attempt", (task_id,)
    ).fetchall()


def test_code_that_holds_the_interpreter_does_not_lose_the_lease(
    queue: SyncTaskQueue, start: Start
) -> None:
    start(lease=1)
    task_id = queue.enqueue("app.hold", seconds=4)
    wait_for(queue, task_id, lambda task: task.is_running)
    start(lease=1)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.result, task.attempt) == ("completed", {"value": 1}, 1)


def test_tasks_of_a_worker_that_died_go_back_at_once_as_crashed(
    queue: SyncTaskQueue, start: Start, conn: Any
) -> None:
    worker = start(lease=3600)
    task_id = queue.enqueue("app.asleep", seconds=60)
    wait_for(queue, task_id, lambda task: task.is_running)
    (keeper,) = children(worker.pid)
    worker.send_signal(signal.SIGKILL)
    worker.wait()

    task = wait_for(queue, task_id, lambda task: not task.is_running)
    assert (task.state, task.is_terminal) == ("failed", False)
    assert failures(conn, task_id) == [("crashed", "the worker process died")]
    wait_until(lambda: not is_alive(keeper))


def test_a_task_that_kills_its_worker_three_times_has_failed_for_good(
    queue: SyncTaskQueue, start: Start, conn: Any
) -> None:
    beside = queue.enqueue("app.asleep", seconds=1)
    task_id = queue.enqueue("app.crash")
    for _ in range(3):
        worker = start()
        assert worker.wait(30) == -signal.SIGSEGV
    start()

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert task.state == "failed"
    assert [cause for cause, _ in failures(conn, task_id)] == ["crashed"] * 3
    neighbour = wait_for(queue, beside, lambda task: task.is_terminal)
    assert neighbour.state in ("completed", "failed")


def test_what_was_claimed_ahead_does_not_pay_for_the_task_that_killed_the_worker(
    queue: SyncTaskQueue, start: Start, conn: Any
) -> None:
    quick = ("app.asleep", {"seconds": 0})
    worker = start()
    for task_id in queue.enqueue_many([quick] * 20):  # so that it will claim ahead
        wait_for(queue, task_id, lambda task: task.is_terminal)
    culprit, *others = queue.enqueue_many([("app.crash", {}), *[quick] * 100])
    assert worker.wait(30) == -signal.SIGSEGV
    charged = "select task_id from tasklib.failures"
    wait_until(lambda: conn.execute(charged).fetchall())
    ids = {task_id for (task_id,) in conn.execute(charged).fetchall()}
    assert culprit in ids
    assert len(ids) <= 4  # as many as run at a time

    for _ in range(2):
        assert start().wait(30) == -signal.SIGSEGV
    start()
    for task_id in others[3:]:
        assert wait_for(queue, task_id, lambda task: task.is_terminal).state == "completed"


def test_a_keeper_that_died_is_replaced(queue: SyncTaskQueue, start: Start) -> None:
    worker = start(lease=5)
    # As many as it has slots: a claim would renew the lease.
    task_id, *others = (queue.enqueue("app.asleep", seconds=10) for _ in range(4))
    for other in others:
        wait_for(queue, other, lambda task: task.is_running)
    (keeper,) = children(worker.pid)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: [pid for pid in children(worker.pid) if pid != keeper and is_alive(pid)])
    start(lease=5)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.attempt) == ("completed", 1)


def test_a_keeper_that_was_stopped_is_replaced(
    queue: SyncTaskQueue, start: Start, conn: Any
) -> None:
    worker = start(lease=2)
    wait_for(queue, queue.enqueue("app.asleep", seconds=0), lambda task: task.is_terminal)
    (keeper,) = children(worker.pid)
    os.kill(keeper, signal.SIGSTOP)
    conn.execute("select tasklib.deregister_worker(id) from tasklib.worker where lost_at is null")
    task_id = queue.enqueue("app.asleep", seconds=5)
    try:
        wait_until(lambda: not is_alive(keeper))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.attempt) == ("completed", 1)


async def test_a_keeper_that_cannot_be_started_is_tried_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(config, 1, cancel=lambda _: None, lost=lambda _: None)
    await keeper.start()
    first, begin, failed = keeper.pid, subprocess.Popen, list[OSError]()
    assert first is not None

    def limited(*arguments: Any, **options: Any) -> Any:
        if len(failed) < 2:
            failed.append(OSError("no more processes"))
            raise failed[-1]
        return begin(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", limited)
    keeper.replace()
    async with asyncio.timeout(10):
        while keeper.pid in (first, None):
            await asyncio.sleep(0.05)
    await keeper.stop()
    assert len(failed) == 2


def test_a_stopped_worker_loses_its_tasks_and_is_told_so(
    queue: SyncTaskQueue, start: Start
) -> None:
    # Not shorter, or it is lost when the machine is busy.
    worker = start(lease=4)
    task_id = queue.enqueue("app.asleep", seconds=2)
    held = wait_for(queue, task_id, lambda task: task.is_running)
    worker.send_signal(signal.SIGSTOP)
    start(lease=1)
    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    worker.send_signal(signal.SIGCONT)
    time.sleep(2)

    assert (task.state, task.attempt) == ("completed", 2)
    assert task.worker_id != held.worker_id
    assert queue.get_task(task_id) == task


def test_a_worker_that_hangs_is_killed_by_the_watchdog(
    queue: SyncTaskQueue, start: Start, conn: Any
) -> None:
    worker = start(watchdog=3)
    task_id = queue.enqueue("app.hold", seconds=60)
    wait_for(queue, task_id, lambda task: task.is_running)

    assert worker.wait(30) == -signal.SIGKILL
    wait_until(lambda: failures(conn, task_id))
    assert failures(conn, task_id) == [("crashed", "the worker process died")]


def test_signals_to_the_whole_terminal_do_not_end_the_keeper_first(
    queue: SyncTaskQueue, start: Start
) -> None:
    worker = start(lease=2)
    task_id = queue.enqueue("app.asleep", seconds=5)
    wait_for(queue, task_id, lambda task: task.is_running)
    (keeper,) = children(worker.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(keeper, number)
    worker.send_signal(signal.SIGINT)
    start(lease=2)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.attempt) == ("completed", 1)
    assert worker.wait(30) == 0
    assert not is_alive(keeper)


@contextmanager
def keeper_of(database: str, *orders: dict[str, object]) -> Generator[subprocess.Popen[bytes]]:
    """Run a keeper alone, with this process as its worker."""
    begun = Begun(1)
    setup: dict[str, object] = {
        "conninfo": database,
        "lease_seconds": 2,
        "watchdog_seconds": 3600,
        "sql": SQL,
        "begun": begun.descriptor,
    }
    command = [sys.executable, "-P", str(PROGRAM)]
    keeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[begun.descriptor]
    )
    assert keeper.stdin is not None
    try:
        lines = "".join(f"{json.dumps(order)}\n" for order in (setup, *orders))
        keeper.stdin.write(lines.encode())
        keeper.stdin.flush()
        yield keeper
    finally:
        keeper.kill()
        keeper.communicate()


def test_housekeeping_is_done_while_the_worker_is_busy(database: str, conn: Any) -> None:
    conn.execute("select tasklib.register_worker()")
    conn.execute("select tasklib.enqueue('t', delay => '10 ms')")
    with keeper_of(database, {"running": 1}):
        wait_until(lambda: conn.execute("select from tasklib.ready").fetchall())


def test_a_keeper_outlives_the_signals_that_its_worker_gets(database: str, conn: Any) -> None:
    (worker_id,) = conn.execute("select tasklib.register_worker()").fetchone()
    lease = "update tasklib.worker set lease_until = clock_timestamp()"
    with keeper_of(database, {"renewed": str(worker_id)}) as keeper:
        renewed = "select from tasklib.worker where lease_until > clock_timestamp()"
        conn.execute(lease)
        wait_until(lambda: conn.execute(renewed).fetchall())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            keeper.send_signal(number)
        conn.execute(lease)
        wait_until(lambda: conn.execute(renewed).fetchall())


def test_what_a_dead_worker_left_running_is_killed(database: str) -> None:
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with keeper_of(database, {"group": left.pid}) as keeper:
        assert keeper.stdin is not None
        keeper.stdin.close()  # as when its worker has died
        try:
            assert left.wait(30) == -signal.SIGKILL
        finally:
            left.kill()
        keeper.stdin = None


def test_a_keeper_that_nobody_listens_to_goes_on(
    queue: SyncTaskQueue, database: str, conn: Any
) -> None:
    call = "select tasklib.register_worker(lease => '2 seconds', task_types => '[\"t\"]')"
    ((worker_id,),) = conn.execute(call).fetchall()
    conn.execute("select tasklib.enqueue('t') from generate_series(1, 200)")
    claimed = conn.execute("select id from tasklib.claim(%s, max_tasks => 200)", [worker_id])
    for (task_id,) in claimed.fetchall():
        conn.execute("select tasklib.cancel(%s)", [task_id])

    with keeper_of(database, {"renewed": str(worker_id)}, {"running": 200}) as keeper:
        assert keeper.stdout is not None
        fcntl.fcntl(keeper.stdout, fcntl.F_SETPIPE_SZ, 4096)
        time.sleep(5)
        query = "select lease_until > clock_timestamp() from tasklib.worker where id = %s"
        assert conn.execute(query, [worker_id]).fetchall() == [(True,)]

        os.set_blocking(keeper.stdout.fileno(), False)
        for line in os.read(keeper.stdout.fileno(), 65536).splitlines():
            assert json.loads(line)


def test_a_keeper_whose_calls_are_never_answered_says_so_and_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the system takes what is sent to it
        port = mute.getsockname()[1]
        url = f"postgresql://nobody@127.0.0.1:{port}/none"
        with keeper_of(url, {"renewed": str(uuid4())}) as keeper:
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            assert select.select([keeper.stdout], [], [], 15)[0]
            assert json.loads(keeper.stdout.readline()) == {"trouble": "no answer in time"}
            keeper.stdin.close()
            keeper.stdin = None
            assert keeper.wait(15) == 0
