"""What a worker does when an answer is lost, its registration ends, or a pooler is in between."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

import tasklib
from tasklib import DatabaseUnavailable, TaskQueue, TaskWorker, _calls, _connections
from tasklib._calls import Call
from tasklib._worker_calls import Exchanged
from tasklib.models import Claimed
from tasklib.worker import link as link_module
from tasklib.worker import shift
from tasklib.worker.board import Board
from tasklib.worker.context import Run
from tasklib.worker.finish import Finisher, WorkerStats
from tasklib.worker.link import Link
from tasklib.worker.outcome import completed

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


async def test_what_runs_is_kept_when_a_claim_is_lost(
    aqueue: TaskQueue, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.Event()

    @aqueue.task
    async def slow() -> int:
        started.set()
        await asyncio.sleep(2)
        return tasklib.current_task().attempt

    @aqueue.task
    async def quick() -> int:
        return tasklib.current_task().attempt

    running(concurrency=2)
    kept = await aqueue.enqueue(slow)
    async with asyncio.timeout(10):
        await started.wait()
    lost = lose_one_answer(monkeypatch, "claimed")
    other = await aqueue.enqueue(quick)
    results = [await aqueue.get_result(task_id, timeout=20) for task_id in (kept, other)]

    assert len(lost) == 1
    assert [result and result.value for result in results] == [1, 2]


def test_outcomes_of_two_registrations_are_sent_apart() -> None:
    claimed = Claimed(str(uuid4()), 1, "t", "default", "{}", 0, 3, None, None, None)
    finisher = Finisher(cast("Any", None), Board(), WorkerStats())
    runs = [Run(claimed, worker_id) for worker_id in ("first", "first", "second", "first")]
    for run in runs:
        finisher.add(run, completed("null"))

    batches = [[run.worker_id for run, _ in finisher.take()] for _ in range(3)]
    assert batches == [["first", "first"], ["second"], ["first"]]


async def test_what_has_ended_is_told_by_a_worker_that_leaves_at_once(
    aqueue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stuck = Link.run, asyncio.Event()

    async def hang(self: Link, call: Call[Any]) -> Any:
        if "outcomes" in call.params and not stuck.is_set():
            stuck.set()
            await asyncio.sleep(60)
        return await run(self, call)

    monkeypatch.setattr(Link, "run", hang)

    @aqueue.task
    async def work() -> None: ...

    task_id = await aqueue.enqueue(work)
    working = asyncio.create_task(aqueue.worker(handle_signals=False).run())
    async with asyncio.timeout(20):
        await stuck.wait()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    task = await aqueue.get_task(task_id)
    assert task is not None
    assert (task.state, task.attempt) == ("completed", 1)


async def test_what_arrives_after_the_stop_is_given_back(
    aqueue: TaskQueue, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, arrived, goes_on = Link.run, asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    async def hold(self: Link, call: Call[Any]) -> Any:
        answer = await run(self, call)
        if isinstance(answer, Exchanged) and answer.claimed:
            arrived.set()
            await goes_on.wait()
        return answer

    monkeypatch.setattr(Link, "run", hold)

    @aqueue.task
    async def work() -> None:
        ran.append(1)

    worker = running()
    task_id = await aqueue.enqueue(work)
    async with asyncio.timeout(20):
        await arrived.wait()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.1)
        goes_on.set()
        await stopping

    task = await aqueue.get_task(task_id)
    assert task is not None
    assert (task.state, task.attempt, task.retry_count, ran) == ("pending", 1, 0, [])


async def behind_a_slow_task(aqueue: TaskQueue, running: Start) -> tuple[UUID, UUID, list[int]]:
    """Let a worker claim a task ahead and then wait; return both, and where the second notes."""
    ran: list[int] = []
    started = asyncio.Event()

    @aqueue.task
    async def quick() -> None: ...

    @aqueue.task
    async def slow() -> None:
        started.set()
        await asyncio.sleep(4)

    @aqueue.task
    async def second() -> None:
        ran.append(1)

    # Quick ones first, or nothing is claimed ahead.
    await aqueue.enqueue_many([(quick, {})] * 50)
    running(concurrency=1)
    async with asyncio.timeout(20):
        while await aqueue.list_tasks(state="pending"):
            await asyncio.sleep(0.01)
        in_front, behind = await aqueue.enqueue_many([(slow, {}), (second, {})])
        await started.wait()
    task = await aqueue.get_task(behind)
    assert task is not None
    assert task.is_running
    return in_front, behind, ran


async def test_what_waits_behind_a_slow_task_is_given_back(
    aqueue: TaskQueue, running: Start
) -> None:
    in_front, behind, ran = await behind_a_slow_task(aqueue, running)
    async with asyncio.timeout(20):
        while (await aqueue.get_task(behind)).is_running:  # pyright: ignore
            await asyncio.sleep(0.05)
    slow = await aqueue.get_task(in_front)

    assert slow is not None
    assert slow.is_running
    assert ran == []


async def test_a_task_that_is_cancelled_before_it_begins_is_not_run(
    aqueue: TaskQueue, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift, "AHEAD_SECONDS", 60.0)
    _, behind, ran = await behind_a_slow_task(aqueue, running)
    assert await aqueue.cancel_task(behind) == "requested"
    result = await aqueue.get_result(behind, timeout=20)

    assert result is not None
    assert (result.state, ran) == ("cancelled", [])


@pytest.fixture
def made_up_pids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sessions announce a process id that is not theirs, as poolers do."""

    def made_up() -> Call[int]:
        return Call("select 0", {}, lambda rows: int(rows[0][0]))

    monkeypatch.setattr(_calls, "backend_pid", made_up)


async def test_behind_a_pooler_nothing_is_prepared(
    made_up_pids: None, config: tasklib.Config
) -> None:
    with _connections.connect(config) as connection:
        assert connection.prepare_threshold is None
    async with await _connections.aconnect(config) as connection:
        assert connection.prepare_threshold is None


async def test_behind_a_pooler_a_worker_polls(
    made_up_pids: None, aqueue: TaskQueue, running: Start, conn: Any
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


async def test_a_connection_that_does_not_answer_is_replaced(
    config: tasklib.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "CALL_SECONDS", 2.0)
    link = Link(config, "test link")
    first = await link.run(_calls.backend_pid())
    with pytest.raises(DatabaseUnavailable):
        await link.run(Call("select pg_sleep(60)", {}, lambda _: None))

    assert await link.run(_calls.backend_pid()) != first
    link.drop()
