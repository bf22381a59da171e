"""A worker that is called sends its claim at once, before it has come to itself.

It is called for what cannot be handed over to it: here, tasks with a tag.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import tasklib
from tasklib import TaskQueue, TaskWorker, _calls, current_task
from tasklib._calls import Call
from tasklib._statements import PREPARE_AFTER, Statements
from tasklib.errors import DatabaseUnavailable
from tasklib.registry import TaskFunction
from tasklib.worker.fetch import Fetcher
from tasklib.worker.link import Link, NotSent
from tasklib.worker.pace import Pace

Start = Callable[..., TaskWorker]
Asking = Callable[[Callable[[Fetcher], None]], list[int]]

NUMBER = Call("select nextval('test_number')", {}, lambda rows: rows[0][0])


@pytest.fixture
async def link(config: tasklib.Config, conn: Any) -> Link:
    """A connection that has prepared ``NUMBER``, and got 1 to 6."""
    conn.execute("create sequence test_number")
    link = Link(config, "test link")
    for _ in range(PREPARE_AFTER + 1):
        await link.run(NUMBER)
    return link


async def test_a_call_that_was_sent_is_not_sent_again(link: Link) -> None:
    assert link.send(NUMBER)
    assert await link.run(NUMBER) == 7
    assert await link.run(NUMBER) == 8
    link.drop()


async def test_a_call_is_sent_only_on_a_connection_that_knows_it(link: Link) -> None:
    assert not link.send(_calls.backend_pid())
    first = await link.run(_calls.backend_pid())
    link.drop()

    assert not link.send(NUMBER)
    assert await link.run(_calls.backend_pid()) != first
    link.drop()


async def test_a_call_is_not_sent_into_another_one(link: Link) -> None:
    slow = asyncio.create_task(link.run(Call("select pg_sleep(0.5)", {}, lambda _: "slept")))
    await asyncio.sleep(0.1)

    assert not link.send(NUMBER)
    assert await slow == "slept"
    assert await link.run(NUMBER) == 7
    link.drop()


async def test_another_call_does_not_get_the_answer(link: Link) -> None:
    first = await link.run(_calls.backend_pid())
    assert link.send(NUMBER)

    assert await link.run(_calls.backend_pid()) != first
    assert await link.run(NUMBER) in (7, 8)
    link.drop()


async def test_whether_a_call_was_done_is_unknown_when_the_connection_breaks(link: Link) -> None:
    assert link.send(NUMBER)
    link.drop()

    with pytest.raises(DatabaseUnavailable) as caught:
        await link.run(NUMBER)
    assert not isinstance(caught.value, NotSent)
    assert await link.run(NUMBER) in (7, 8)
    link.drop()


async def test_a_call_that_cannot_be_sent_leaves_nothing_in_the_loop(
    config: tasklib.Config, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, read = asyncio.get_running_loop(), list[bytes]()
    pairs: list[tuple[socket.socket, socket.socket]] = []

    def send(_self: object, _call: object) -> bool:
        raise psycopg.OperationalError("no connection to the server")

    def on_notification(_: str | None) -> None:
        number = link._session.pgconn.socket  # pyright: ignore
        assert link.send(NUMBER)
        # Like a task that connects in the same turn of the loop: its socket gets the free number.
        pairs.append(socket.socketpair())
        assert pairs[0][0].fileno() == number
        loop.add_reader(number, lambda: read.append(os.read(number, 1)))

    link = Link(config, "test link", on_notification)
    await link.listen()
    monkeypatch.setattr(Statements, "send", send)
    with link.hearing():
        conn.execute("notify tasklib, 'x'")
        await asyncio.sleep(0.2)
    ((ours, theirs),) = pairs
    theirs.send(b"x")
    await asyncio.sleep(0.1)
    loop.remove_reader(ours)
    ours.close()
    theirs.close()

    assert read == [b"x"]


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    """Do something right after each claim that was sent ahead; tells for how many tasks it was."""
    ask = Fetcher.ask

    def watch(then: Callable[[Fetcher], None]) -> list[int]:
        rooms: list[int] = []

        def asked(self: Fetcher, room: int) -> None:
            ask(self, room)
            if self.asked:
                rooms.append(self.asked)
                then(self)

        monkeypatch.setattr(Fetcher, "ask", asked)
        return rooms

    return watch


async def one_by_one(queue: TaskQueue, task: TaskFunction[..., Any], count: int) -> None:
    """Enqueue lone tasks, which ends with a claim that is prepared."""
    for _ in range(count):
        task_id = await queue.enqueue(task.options(tags={"by": "call"}))
        assert await queue.get_result(task_id, timeout=10)
        await asyncio.sleep(0.1)


async def test_what_ends_meanwhile_is_told_to_the_database(
    aqueue: TaskQueue, running: Start, asking: Asking
) -> None:
    may_end = asyncio.Event()

    @aqueue.task(name="app.quick")
    async def quick() -> None: ...

    @aqueue.task(name="app.long")
    async def long() -> str:
        await may_end.wait()
        return "done"

    running(concurrency=3)
    task_id = await aqueue.enqueue(long)
    await one_by_one(aqueue, quick, PREPARE_AFTER + 2)
    rooms = asking(lambda _: may_end.set())
    await one_by_one(aqueue, quick, 2)
    ended = await aqueue.get_result(task_id, timeout=5)

    assert rooms
    assert ended is not None
    assert ended.value == "done"


def cut(_: TaskWorker, fetcher: Fetcher) -> None:
    """Break the connection when the server has done the claim."""
    time.sleep(0.3)
    fetcher._link._session.pgconn.finish()  # pyright: ignore


def lose(worker: TaskWorker, fetcher: Fetcher) -> None:
    """End the registration here, with the database unaware of it."""
    worker._shift._lose(fetcher._board.current)  # pyright: ignore


@pytest.mark.parametrize("harm", [cut, lose])
async def test_what_was_handed_out_to_nobody_is_given_back_and_run_once(
    aqueue: TaskQueue,
    running: Start,
    asking: Asking,
    harm: Callable[[TaskWorker, Fetcher], None],
) -> None:
    attempts: list[int] = []

    @aqueue.task(name="app.quick")
    async def quick() -> None:
        attempts.append(current_task().attempt)

    worker = running()
    await one_by_one(aqueue, quick, PREPARE_AFTER + 2)
    rooms = asking(lambda fetcher: harm(worker, fetcher) if len(rooms) == 1 else None)
    await one_by_one(aqueue, quick, 1)

    assert rooms
    assert attempts == [1] * (PREPARE_AFTER + 2) + [2]


async def test_a_worker_that_is_stopped_meanwhile_gives_back_what_comes(
    aqueue: TaskQueue, asking: Asking
) -> None:
    @aqueue.task(name="app.quick")
    async def quick() -> None: ...

    worker = aqueue.worker(handle_signals=False)
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(0.5)
    await one_by_one(aqueue, quick, PREPARE_AFTER + 2)
    rooms = asking(lambda _: worker.request_stop())
    task_id = await aqueue.enqueue(quick.options(tags={"by": "call"}))
    await run
    left = await aqueue.get_task(task_id)

    assert rooms
    assert left is not None
    assert (left.state, left.attempt, left.retry_count) == ("pending", 1, 0)
    assert worker.stats.released == 1


async def test_a_claim_that_has_to_say_that_the_worker_sleeps_is_not_sent_ahead(
    aqueue: TaskQueue, running: Start, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    @aqueue.task(name="app.quick")
    async def quick() -> None: ...

    running()
    await one_by_one(aqueue, quick, PREPARE_AFTER + 2)
    rooms = asking(lambda _: None)
    monkeypatch.setattr(Pace, "goes_to_sleep", lambda *_, **__: True)
    await one_by_one(aqueue, quick, 2)

    assert not rooms
