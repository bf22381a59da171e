"""The process beside a worker: it keeps the lease whatever tasks do, and tells of its death."""

import os
import signal
import time
from typing import Any

from processes import Start, children, is_alive, wait_for, wait_until

from tasklib import SyncTaskQueue


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


def test_a_keeper_that_died_is_replaced(queue: SyncTaskQueue, start: Start) -> None:
    worker = start(lease=2)
    task_id = queue.enqueue("app.asleep", seconds=6)
    wait_for(queue, task_id, lambda task: task.is_running)
    (keeper,) = children(worker.pid)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: [pid for pid in children(worker.pid) if pid != keeper and is_alive(pid)])
    start(lease=2)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.attempt) == ("completed", 1)


def test_a_stopped_worker_loses_its_tasks_and_is_told_so(
    queue: SyncTaskQueue, start: Start
) -> None:
    worker = start(lease=1)
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
