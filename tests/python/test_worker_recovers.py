"""What a worker does when an answer is lost, its registration ends, or a pooler is in between."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

import tasklib
from tasklib import DatabaseUnavailable, TaskQueue, TaskWorker, _calls, _connections
from tasklib._calls import Call
from tasklib._worker_calls import Exchanged
from tasklib.worker.link import Link

Start = Callable[..., TaskWorker]


def lose_one_answer(monkeypatch: pytest.MonkeyPatch, part: str) -> list[Any]:
    """Cut the connection once, just before the answer of a call arrives; return that part of it."""
    lost: list[Any] = []
    run = Link.run

    async def cut(self: Link, call: Call[Any]) -> Any:
        answer = await run(self, call)
        if isinstance(answer, Exchanged) and getattr(answer, part) and not lost:
            lost.append(getattr(answer, part))
            self.drop()
            raise DatabaseUnavailable("the connection broke")
        return answer

    monkeypatch.setattr(Link, "run", cut)
    return lost


async def test_tasks_of_a_lost_claim_are_run_soon(
    aqueue: TaskQueue, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose_one_answer(monkeypatch, "claimed")

    @aqueue.task
    async def work() -> int:
        return tasklib.current_task().attempt

    ids = await aqueue.enqueue_many([(work, {})] * 3)
    running(concurrency=3)
    results = [await aqueue.get_result(task_id, timeout=10) for task_id in ids]

    assert len(lost[0]) == 3
    assert [result and result.value for result in results] == [2, 2, 2]


async def test_an_outcome_whose_answer_was_lost_is_sent_again(
    aqueue: TaskQueue, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose_one_answer(monkeypatch, "statuses")
    runs: list[int] = []

    @aqueue.task
    async def work() -> None:
        runs.append(1)

    worker = running()
    task_id = await aqueue.enqueue(work)
    async with asyncio.timeout(10):
        while worker.stats.completed == 0:
            await asyncio.sleep(0.01)

    assert lost == [["ok"]]
    assert runs == [1]
    assert worker.stats.lost == 0
    assert (await aqueue.get_task(task_id)).attempt == 1  # pyright: ignore


async def test_a_worker_whose_registration_ended_begins_a_new_one(
    database: str, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[int] = []
    queue = TaskQueue(tasklib.Config(database_url=database, lock_timeout_seconds=2))

    @queue.task
    async def work() -> int:
        attempt = tasklib.current_task().attempt
        started.append(attempt)
        if attempt == 1:
            await asyncio.sleep(60)
        return attempt

    worker = queue.worker(handle_signals=False)
    run = asyncio.create_task(worker.run())
    task_id = await queue.enqueue(work)
    async with asyncio.timeout(10):
        while not started:
            await asyncio.sleep(0.01)
    (worker_id,) = conn.execute(
        "select worker_id from tasklib.worker_health where alive"
    ).fetchone()
    with caplog.at_level(logging.WARNING, "tasklib.worker"):
        conn.execute("select tasklib.deregister_worker(%s)", (worker_id,))
        result = await queue.get_result(task_id, timeout=30)
    await worker.stop()
    await run
    await queue.close()

    assert result is not None
    assert result.value == 2
    assert "the registration ended" in caplog.text


@pytest.fixture
def pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sessions announce a process id that is not theirs, as poolers do."""

    def made_up() -> Call[int]:
        return Call("select 0", {}, lambda rows: int(rows[0][0]))

    monkeypatch.setattr(_calls, "backend_pid", made_up)


async def test_behind_a_pooler_nothing_is_prepared(pooler: None, config: tasklib.Config) -> None:
    with _connections.connect(config) as connection:
        assert connection.prepare_threshold is None
    async with await _connections.aconnect(config) as connection:
        assert connection.prepare_threshold is None


async def test_behind_a_pooler_a_worker_polls(
    pooler: None, aqueue: TaskQueue, running: Start, conn: Any
) -> None:
    @aqueue.task
    async def work() -> None: ...

    running(poll_interval=0.1)
    for _ in range(8):
        await aqueue.get_result(await aqueue.enqueue(work), timeout=10)

    listening = conn.execute(
        "select count(*) from pg_stat_activity "
        "where datname = current_database() and query ilike 'listen%'"
    ).fetchone()
    assert listening == (0,)


async def test_a_worker_listens_again_when_its_session_was_ended(
    aqueue: TaskQueue, running: Start, conn: Any
) -> None:
    async def session(*others: int) -> int:
        async with asyncio.timeout(20):
            while True:
                found = conn.execute(
                    "select pid from pg_stat_activity where datname = current_database() "
                    "and application_name = 'tasklib worker' and pid <> all (%s)",
                    (list(others),),
                ).fetchone()
                if found:
                    return found[0]
                await asyncio.sleep(0.02)

    @aqueue.task
    async def work() -> None: ...

    worker = running(poll_interval=60)
    await aqueue.get_result(await aqueue.enqueue(work), timeout=20)
    await asyncio.sleep(0.5)  # it sleeps now, and only a notification wakes it
    first = await session()
    conn.execute("select pg_terminate_backend(%s)", (first,))
    await session(first)
    await asyncio.sleep(0.5)

    assert await aqueue.get_result(await aqueue.enqueue(work), timeout=20)
    assert worker.stats.completed == 2


async def test_logs_tell_ids_and_never_arguments(
    aqueue: TaskQueue, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    @aqueue.task(max_retries=0)
    async def work(secret: str) -> str:
        raise ValueError(secret)

    with caplog.at_level(logging.DEBUG, "tasklib"):
        running()
        task_id = await aqueue.enqueue(work, "hunter2")
        await aqueue.get_result(task_id, timeout=10)
        await asyncio.sleep(0.1)

    told = [record for record in caplog.records if getattr(record, "task_id", "") == str(task_id)]
    assert [record.getMessage() for record in told] == [
        f"{work.name} starts",
        f"attempt 1 of {work.name} failed: ValueError",
    ]
    assert {"attempt", "queue", "task_name", "worker_id"} <= vars(told[1]).keys()
    assert "hunter2" not in caplog.text


async def test_a_connection_that_broke_leaves_nobody_elses_alone(
    config: tasklib.Config, conn: Any
) -> None:
    loop, heard, read = asyncio.get_running_loop(), list[str | None](), list[bytes]()
    broke = asyncio.Event()
    ours, theirs = socket.socketpair()

    def on_notification(payload: str | None) -> None:
        # Like a task that connects in the same turn of the loop: its socket gets the free number.
        heard.append(payload)
        os.dup2(ours.fileno(), number)
        loop.add_reader(number, lambda: read.append(os.read(number, 1)))
        broke.set()

    link = Link(config, "test link", on_notification)
    await link.listen()
    session = await link.run(_calls.backend_pid())
    with link.hearing():
        number = link._session.pgconn.socket  # pyright: ignore
        conn.execute("select pg_terminate_backend(%s)", [session])
        async with asyncio.timeout(10):
            await broke.wait()
    theirs.send(b"x")
    await asyncio.sleep(0.1)
    loop.remove_reader(number)
    os.close(number)
    ours.close()
    theirs.close()

    assert heard == [None]
    assert read == [b"x"]


async def test_a_draining_worker_looks_again_after_an_answer_was_lost(
    aqueue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose_one_answer(monkeypatch, "told")

    @aqueue.task(name="app.one_by_one")
    async def one_by_one() -> None:
        await asyncio.sleep(0.5)

    task = one_by_one.options(concurrency_key="k")
    ids = [await aqueue.enqueue(task) for _ in range(2)]
    await aqueue.worker(drain=True, handle_signals=False, concurrency=2).run()

    assert lost
    for task_id in ids:
        stored = await aqueue.get_task(task_id)
        assert stored is not None
        assert stored.is_completed
