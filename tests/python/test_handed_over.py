"""A worker that sleeps is handed the next lone task by the commit that enqueues it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

import tasklib
from tasklib import TaskQueue, TaskWorker, _calls, _worker_calls, current_task
from tasklib.errors import DatabaseUnavailable
from tasklib.worker import pace, shift
from tasklib.worker.fetch import Fetcher
from tasklib.worker.link import Link
from tasklib.worker.shift import Shift

Start = Callable[..., TaskWorker]
Connection = psycopg.Connection[Any]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of tasks that were handed over to a worker of this process."""
    ids: list[str] = []
    handed_over = Fetcher.handed_over

    def note(self: Fetcher, payload: str) -> Any:
        ids.append(json.loads(payload)[1])
        return handed_over(self, payload)

    monkeypatch.setattr(Fetcher, "handed_over", note)
    return ids


async def offered(conn: Connection, *, after: int = 0) -> int:
    """Wait until a worker offers to take a task, by another offer than ``after``; return that."""
    async with asyncio.timeout(10):
        while True:
            ((number,),) = conn.execute("select last_value from tasklib.offer")
            if number not in (0, after):
                await asyncio.sleep(0.1)  # seen before the worker's transaction has ended
                return number
            await asyncio.sleep(0.01)


def listener(conn: Connection) -> int:
    """Return the process id of the server's end of the connection on which the worker listens."""
    ((pid,),) = conn.execute(
        "select pid from pg_stat_activity where application_name = 'tasklib worker'"
        " and datname = current_database()"
    )
    return pid


async def value_of(queue: TaskQueue, task_id: UUID) -> Any:
    """Wait for the end of a task, and return its value."""
    result = await queue.get_result(task_id, timeout=10)
    assert result is not None
    assert result.state == "completed", result.error
    return result.value


async def test_a_lone_task_is_run_without_a_claim(
    aqueue: TaskQueue, running: Start, conn: Connection, handed: list[str]
) -> None:
    @aqueue.task(max_retries=7, timeout_seconds=30)
    async def greet(name: str) -> list[Any]:
        task = current_task()
        return [name, task.name, task.attempt, task.queue]

    running()
    ids: list[UUID] = []
    for name in ('"quoted" \\ back', "Zoë ☃", ""):
        await offered(conn)
        ids.append(await aqueue.enqueue(greet, name))
        assert await value_of(aqueue, ids[-1]) == [name, greet.name, 1, "default"]

    assert handed == [str(task_id) for task_id in ids]
    assert conn.execute("select count(*) from tasklib.failure").fetchone() == (0,)


async def test_headers_and_defaults_come_along(
    aqueue: TaskQueue, running: Start, conn: Connection, handed: list[str]
) -> None:
    seen: list[tuple[Any, ...]] = []
    receive = Fetcher.receive

    @aqueue.task(max_retries=7, timeout_seconds=30)
    async def work() -> None: ...

    def note(self: Fetcher, delivery: Any) -> Any:
        runs = receive(self, delivery)
        seen.extend(tuple(run.claimed) for run in runs)
        return runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetcher, "receive", note)
        running()
        await offered(conn)
        by_hand = await aqueue.enqueue(work.options(headers={"trace": "a"}))
        await value_of(aqueue, by_hand)
        conn.execute("select tasklib.set_queue('default', notify => false)")
        by_claim = await aqueue.enqueue(work.options(headers={"trace": "a"}))
        conn.execute("notify tasklib, ''")
        await value_of(aqueue, by_claim)

    first, second = seen
    assert handed == [first[0]] == [str(by_hand)]
    assert first[1:] == second[1:]


async def test_a_task_that_was_handed_over_unheard_is_given_back(
    aqueue: TaskQueue, running: Start, conn: Connection, make_conn: Callable[..., Connection]
) -> None:
    @aqueue.task(name="app.work")
    async def work() -> tuple[int, int]:
        return current_task().attempt, current_task().retry_count

    worker = running()
    first = await offered(conn)
    with make_conn(autocommit=False) as producer:
        producer.execute("select pg_terminate_backend(%s)", [listener(conn)])
        ((task_id,),) = producer.execute("select tasklib.enqueue('app.work')")
    assert conn.execute(
        "select exists (select from tasklib.running where task_id = %s)"
        " or (select attempt > 0 from tasklib.ready where task_id = %s)",
        [task_id, task_id],
    ).fetchone() == (True,)

    assert await value_of(aqueue, task_id) == (2, 0)
    assert worker.stats.claimed == 1
    # and it goes on as before
    await offered(conn, after=first)
    assert await value_of(aqueue, await aqueue.enqueue(work)) == (1, 0)


async def test_an_offer_that_names_a_connection_of_before_is_made_anew(
    aqueue: TaskQueue, running: Start, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SETTLING", ())  # the next look would come after 15 s
    run = Link.run
    cut: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def cut_before(self: Link, call: Any) -> Any:
        is_first = "channel" in call.params and not cut.done()
        if is_first:
            self.drop()
        answer = await run(self, call)
        if is_first:
            ((of_before,),) = conn.execute("select last_value from tasklib.offer")
            cut.set_result(of_before)
        return answer

    monkeypatch.setattr(Link, "run", cut_before)

    @aqueue.task
    async def work() -> int:
        return current_task().attempt

    running()
    await offered(conn, after=await cut)

    assert await value_of(aqueue, await aqueue.enqueue(work)) == 1


async def test_a_connection_that_is_given_up_during_a_call_is_as_one_that_broke(
    aqueue: TaskQueue, conn: Connection
) -> None:
    given_up: list[str] = []

    def give_up(payload: str) -> None:
        given_up.append(payload)
        link.drop()

    link = Link(aqueue.config, "tasklib link", lambda payload: None, give_up)
    await link.listen()
    worker_id = await link.run(_worker_calls.register_worker("link", 60, [], {}))
    idle = _worker_calls.Idle(18, for_long=False, channel=link.channel)
    await link.run(_worker_calls.exchange(worker_id, ["default"], 1, None, idle))
    conn.execute("select pg_notify(%s, 'x')", [link.channel])
    with pytest.raises(DatabaseUnavailable):
        await link.run(_calls.backend_pid())

    assert given_up == ["x"]
    assert await link.run(_calls.backend_pid())
    link.drop()


async def test_who_stops_gives_back_what_is_handed_over(
    aqueue: TaskQueue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over = Shift._handed_over  # pyright: ignore[reportPrivateUsage]

    def stop_first(self: Shift, payload: str) -> None:
        self.stop()
        handed_over(self, payload)

    monkeypatch.setattr(Shift, "_handed_over", stop_first)

    @aqueue.task
    async def work() -> None: ...

    worker = aqueue.worker(handle_signals=False)
    run = asyncio.create_task(worker.run())
    await offered(conn)
    task_id = await aqueue.enqueue(work)
    await run
    left = await aqueue.get_task(task_id)

    assert left is not None
    assert (left.state, left.attempt, left.retry_count) == ("pending", 1, 0)
    assert (worker.stats.claimed, worker.stats.released) == (1, 1)


async def test_nothing_is_run_for_a_registration_that_has_ended(
    aqueue: TaskQueue, running: Start, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over = Shift._handed_over  # pyright: ignore[reportPrivateUsage]

    def lose_first(self: Shift, payload: str) -> None:
        monkeypatch.undo()
        self._lose(json.loads(payload)[0])  # pyright: ignore[reportPrivateUsage]
        handed_over(self, payload)

    monkeypatch.setattr(Shift, "_handed_over", lose_first)
    attempts: list[int] = []

    @aqueue.task
    async def work() -> None:
        attempts.append(current_task().attempt)

    running()
    first = await offered(conn)
    task_id = await aqueue.enqueue(work)
    await offered(conn, after=first)
    ((holder,),) = conn.execute("select worker_id from tasklib.running")
    conn.execute("select tasklib.deregister_worker(%s)", [holder])
    await value_of(aqueue, task_id)

    assert attempts == [2]


async def test_who_runs_something_offers_nothing(
    aqueue: TaskQueue, running: Start, conn: Connection, handed: list[str]
) -> None:
    may_end = asyncio.Event()

    @aqueue.task
    async def long() -> None:
        await may_end.wait()

    @aqueue.task
    async def short() -> None: ...

    running(concurrency=5)
    await offered(conn)
    first = await aqueue.enqueue(long)
    for _ in range(3):
        await value_of(aqueue, await aqueue.enqueue(short))
        await asyncio.sleep(0.3)
    may_end.set()
    await value_of(aqueue, first)

    assert handed == [str(first)]


async def test_what_comes_to_a_busy_worker_goes_back_at_once(
    aqueue: TaskQueue,
    running: Start,
    conn: Connection,
    handed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shift, "AHEAD_SECONDS", 60)
    may_end = threading.Event()

    @aqueue.task
    def long() -> None:
        assert may_end.wait(20)

    @aqueue.task
    async def short() -> int:
        return current_task().attempt

    running()
    offer = await offered(conn)
    first = await aqueue.enqueue(long)
    # as when two commits have read the offer at the same moment
    conn.execute("select setval('tasklib.offer', %s)", [offer])
    second = await aqueue.enqueue(short)
    running()
    attempt = await value_of(aqueue, second)
    may_end.set()
    await value_of(aqueue, first)

    assert handed == [str(first), str(second)]
    assert attempt == 2


async def test_who_was_stopped_for_long_does_not_start_what_came_meanwhile(
    aqueue: TaskQueue, running: Start, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over = Fetcher.handed_over
    attempts: list[int] = []

    def late(self: Fetcher, payload: str) -> Any:
        monkeypatch.undo()
        self._pace.next_look -= 60  # pyright: ignore[reportPrivateUsage]
        return handed_over(self, payload)

    monkeypatch.setattr(Fetcher, "handed_over", late)

    @aqueue.task
    async def work() -> None:
        attempts.append(current_task().attempt)

    running()
    await offered(conn)
    task_id = await aqueue.enqueue(work)
    await value_of(aqueue, task_id)

    assert attempts == [2]


@pytest.mark.parametrize("payload", ["no JSON", "[]", "{}", "1", '["worker", 1]'])
async def test_what_cannot_be_read_makes_the_worker_register_anew(
    aqueue: TaskQueue, running: Start, conn: Connection, payload: str
) -> None:
    @aqueue.task
    async def work() -> int:
        return current_task().attempt

    worker = running()
    first = await offered(conn)
    (row,) = conn.execute("select channel from tasklib.worker where lost_at is null")
    conn.execute("select pg_notify(%s, %s)", [row[0], payload])
    await offered(conn, after=first)

    assert await value_of(aqueue, await aqueue.enqueue(work)) == 1
    assert worker.stats.failed == 0


@pytest.mark.parametrize("how", ["listen", "drain"])
async def test_who_hears_nothing_offers_nothing(
    config: tasklib.Config, conn: Connection, how: str
) -> None:
    if how == "listen":
        config = config.model_copy(update={"listen": False})
    async with TaskQueue(config) as queue:

        @queue.task
        async def work() -> None: ...

        worker = queue.worker(handle_signals=False, drain=how == "drain", poll_interval=0.05)
        await queue.enqueue(work)
        run = asyncio.create_task(worker.run())
        async with asyncio.timeout(10):
            while not worker.stats.completed:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        await worker.stop()
        await run

    assert conn.execute("select last_value from tasklib.offer").fetchone() == (0,)


def test_a_later_schema_may_say_more() -> None:
    row = ["id", 1, "name", "default", "{}", 0, 3, None, None, None]

    assert _worker_calls.handed_over(json.dumps(["worker", *row, "more"])) == ("worker", (*row,))
