"""Workers as processes of their own: killed, told to stop, blocked, cut off from the database."""

import signal
import time
from typing import Any

import pytest
from processes import Start, wait_for

from tasklib import Config, SyncTaskQueue, embedded
from tasklib._migrate import migrate


def test_a_task_of_a_killed_worker_is_run_by_another(queue: SyncTaskQueue, start: Start) -> None:
    first = start()
    task_id = queue.enqueue("app.sleep", seconds=1.5)
    held = wait_for(queue, task_id, lambda task: task.is_running)
    first.send_signal(signal.SIGKILL)
    first.wait()
    start()

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.result, task.retry_count) == ("completed", {"value": 2}, 1)
    assert task.worker_id != held.worker_id


@pytest.mark.parametrize("name", ["app.credit", "app.acredit"])
def test_what_a_killed_worker_had_written_is_not_there_twice(
    queue: SyncTaskQueue, start: Start, conn: Any, name: str
) -> None:
    conn.execute("create table effect (attempt int)")
    first = start(lease=1)
    task_id = queue.enqueue(name, seconds=60)
    deadline = time.monotonic() + 30
    while not conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database() "
        "and state = 'idle in transaction' and query like 'insert into effect%'"
    ).fetchone()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    start(lease=1)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.result) == ("completed", {"value": 2})
    assert conn.execute("select attempt from effect").fetchall() == [(2,)]


def test_a_worker_that_is_told_to_stop_lets_its_tasks_end(
    queue: SyncTaskQueue, start: Start
) -> None:
    worker = start()
    running = queue.enqueue("app.sleep", seconds=3)
    wait_for(queue, running, lambda task: task.is_running)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    late = queue.enqueue("app.sleep", seconds=0)

    assert worker.wait(10) == 0
    finished = queue.get_task(running)
    assert finished is not None
    assert (finished.state, finished.attempt) == ("completed", 1)
    untouched = queue.get_task(late)
    assert untouched is not None
    assert (untouched.state, untouched.attempt) == ("pending", 0)


def test_a_task_that_outlives_the_shutdown_goes_back_uncharged(
    queue: SyncTaskQueue, start: Start
) -> None:
    worker = start(shutdown=0.2)
    ids = [queue.enqueue(name, seconds=60) for name in ("app.sleep", "app.asleep")]
    for task_id in ids:
        wait_for(queue, task_id, lambda task: task.is_running)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(10) == 0
    for task_id in ids:
        task = queue.get_task(task_id)
        assert task is not None
        assert (task.state, task.retry_count, task.error) == ("pending", 0, None)


def test_a_second_signal_makes_the_worker_leave_at_once(queue: SyncTaskQueue, start: Start) -> None:
    worker = start()
    task_id = queue.enqueue("app.sleep", seconds=60)
    wait_for(queue, task_id, lambda task: task.is_running)
    worker.send_signal(signal.SIGINT)
    time.sleep(0.3)
    worker.send_signal(signal.SIGINT)

    assert worker.wait(10) == 128 + signal.SIGINT
    task = queue.get_task(task_id)
    assert task is not None
    assert not task.is_running


def test_a_worker_whose_loop_is_blocked_keeps_its_task(queue: SyncTaskQueue, start: Start) -> None:
    start(lease=1)
    task_id = queue.enqueue("app.block", seconds=4)
    wait_for(queue, task_id, lambda task: task.is_running)
    start(lease=1)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.result, task.attempt) == ("completed", {"value": 1}, 1)


def test_a_worker_survives_a_restart_of_its_database(start: Start) -> None:
    server = embedded.temporary()
    with server as url:
        migrate(url)
        with SyncTaskQueue(Config(database_url=url)) as queue:
            worker = start(url)
            across = queue.enqueue("app.sleep", seconds=3)
            wait_for(queue, across, lambda task: task.is_running)
            server.shutdown()
            time.sleep(0.5)
            server.start()
            after = queue.enqueue("app.sleep", seconds=0)

            for task_id in (across, after):
                task = wait_for(queue, task_id, lambda task: task.is_terminal)
                assert (task.state, task.attempt) == ("completed", 1)
            # While there is a server: its keeper would try to give back until the lease is over.
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0


def test_a_stopped_worker_leaves_no_registration(queue: SyncTaskQueue, start: Start, conn) -> None:
    worker = start()
    wait_for(queue, queue.enqueue("app.sleep", seconds=0), lambda task: task.is_terminal)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0

    alive = conn.execute("select count(*) from tasklib.worker_health where alive").fetchone()
    assert alive == (0,)


def test_a_stop_ends_even_when_the_database_is_away(start: Start) -> None:
    server = embedded.temporary()
    with server as url:
        migrate(url)
        with SyncTaskQueue(Config(database_url=url)) as queue:
            worker = start(url, shutdown=0.5)
            task_id = queue.enqueue("app.sleep", seconds=1)
            wait_for(queue, task_id, lambda task: task.is_running)
            server.shutdown()
            worker.send_signal(signal.SIGTERM)

            assert worker.wait(20) == 0
