"""`@task(transactional=True)`: what a task writes and its completion are one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

import tasklib
from tasklib import (
    ConfigurationError,
    CurrentTask,
    DatabaseUnavailable,
    NoTransaction,
    SyncTaskQueue,
    TaskQueue,
    _calls,
    _connections,
    _worker_calls,
    current_task,
)
from tasklib._calls import Call
from tasklib.models import Task
from tasklib.registry import Registry
from tasklib.testing import advance, inline
from tasklib.worker import WorkerStats
from tasklib.worker.sessions import Hold
from wire import Wire

Execute = Callable[[str], Awaitable[Any]]
Body = Callable[[Execute], Awaitable[Any]]
CREDIT = "insert into effect (attempt) values (%s)"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def effects(conn: Any) -> Callable[[], list[int]]:
    """Read which attempts left something behind."""
    conn.execute("create table effect (attempt int)")
    conn.execute("create sequence chance")
    return lambda: [row[0] for row in conn.execute("select attempt from effect order by 1")]


Effects = Callable[[], list[int]]


def transactional(queue: SyncTaskQueue | TaskQueue, kind: str, body: Body, **options: Any) -> Any:
    """Make a task of a coroutine function that takes how to run a statement."""

    async def awork() -> Any:
        return await body(current_task().connection.execute)

    def work() -> Any:
        async def execute(*args: Any) -> Any:
            return current_task().connection.execute(*args)

        steps: Any = body(execute)
        try:
            steps.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a sync body waited")

    task = queue.task(name="app.work", transactional=True, **options)
    return task(awork if kind == "async" else work)


async def credit(execute: Any) -> None:
    await execute(CREDIT, [current_task().attempt])


def once(action: Callable[[], Any]) -> None:
    """Do something in the first attempt only."""
    if current_task().attempt == 1:
        action()


def drained(queue: SyncTaskQueue, drain: Any, times: int = 1) -> WorkerStats:
    """Drain, and wait for the retries as well; return what the first worker did."""
    first = drain(queue)
    for _ in range(times - 1):
        advance(3600, config=queue.config)
        drain(queue)
    return first


def read(queue: SyncTaskQueue, task_id: UUID) -> Task:
    task = queue.get_task(task_id)
    assert task is not None
    return task


def state_of(conn: Any, task_id: UUID) -> str | None:
    """Read a task's state from within an event loop."""
    found = conn.execute("select state from tasklib.tasks where id = %s", [task_id]).fetchone()
    return found and found[0]


# ---- one transaction -----------------------------------------------------------------------------


def test_effects_result_and_tasks_are_stored_together(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    seen: list[Any] = []

    @queue.task(name="app.next")
    def following() -> None: ...

    async def body(execute: Any) -> dict[str, int]:
        connection = current_task().connection
        seen.append(type(connection))
        await credit(execute)
        enqueueing = following.options(connection=connection)
        seen.append(await enqueueing.adelay() if kind == "async" else enqueueing.delay())
        # Nobody else sees anything of it yet.
        seen.append((effects(), state_of(conn, seen[1]), state_of(conn, task_id)))
        return {"cents": 50}

    task_id = queue.enqueue(transactional(queue, kind, body))
    stats = drain(queue)

    assert seen[0] is (psycopg.AsyncConnection if kind == "async" else psycopg.Connection)
    assert seen[2] == ([], None, "running")
    assert effects() == [1]
    task = read(queue, task_id)
    assert (task.state, task.attempt, task.result) == (
        "completed",
        1,
        {"value": {"cents": 50}},
    )
    assert read(queue, seen[1]).state == "completed"
    assert (stats.claimed, stats.completed, stats.lost) == (2, 2, 0)
    # The row and the end of the task were written by one transaction.
    assert conn.execute(
        "select count(distinct xmin::text) from (select xmin from effect union all "
        "select xmin from tasklib.done where task_id = %s) as both_rows",
        [task_id],
    ).fetchone() == (1,)


def test_an_exception_rolls_everything_back_and_the_task_is_tried_again(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects
) -> None:
    def boom() -> None:
        raise ValueError("no luck")

    async def body(execute: Any) -> None:
        await credit(execute)
        once(boom)

    task_id = queue.enqueue(transactional(queue, kind, body, max_retries=1))
    assert drain(queue).failed == 1
    assert effects() == []
    failed = read(queue, task_id)
    assert (failed.state, failed.is_terminal) == ("failed", False)
    assert (failed.error or "").startswith("Traceback")
    assert (failed.error or "").endswith("ValueError: no luck\n")
    assert "tasklib/worker" not in (failed.error or "").splitlines()[1]

    drained(queue, drain, 2)
    assert effects() == [2]
    assert read(queue, task_id).state == "completed"


@pytest.mark.parametrize(
    ("error", "state", "is_terminal"),
    [
        (tasklib.Retry("later", in_seconds=77), "failed", False),
        (tasklib.Cancel("not worth it"), "cancelled", True),
        (tasklib.Snooze(77), "pending", False),
        (KeyError("listed"), "failed", True),
        (psycopg.Rollback(), "failed", True),
        (tasklib.LeaseLost("of another task"), "failed", False),
        (SystemExit(3), "failed", False),
    ],
)
def test_what_a_task_raises_means_what_it_means_elsewhere(
    queue: SyncTaskQueue,
    drain: Any,
    kind: str,
    effects: Effects,
    error: BaseException,
    state: str,
    is_terminal: bool,
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        raise error

    task_id = queue.enqueue(transactional(queue, kind, body, give_up_on=KeyError))
    drain(queue)

    task = read(queue, task_id)
    assert (task.state, task.is_terminal, effects()) == (state, is_terminal, [])


@pytest.mark.parametrize("result", [object(), "x" * 1_100_000], ids=["no JSON", "too large"])
def test_a_result_that_cannot_be_stored_rolls_back_and_fails_for_good(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, result: object
) -> None:
    async def body(execute: Any) -> object:
        await credit(execute)
        return result

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    task = read(queue, task_id)
    assert (task.state, task.is_terminal, effects()) == ("failed", True, [])
    assert "InvalidResult" in (task.error or "") or "LimitExceeded" in (task.error or "")


@pytest.mark.parametrize("statement", ["select 1/0", "insert into nowhere values (1)"])
def test_an_error_of_sql_that_was_swallowed_fails_the_attempt(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, statement: str
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        with contextlib.suppress(psycopg.Error):
            await execute(statement)

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    task = read(queue, task_id)
    assert (task.state, task.is_terminal, effects()) == ("failed", False, [])
    assert "InFailedSqlTransaction" in (task.error or "")


def test_what_a_commit_refuses_fails_the_attempt(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    conn.execute(
        "alter table effect add constraint single unique (attempt) deferrable initially deferred"
    )

    async def body(execute: Any) -> None:
        await credit(execute)
        once_more = [current_task().attempt] if current_task().attempt == 1 else [77]
        await execute(CREDIT, once_more)

    task_id = queue.enqueue(transactional(queue, kind, body))
    assert drain(queue).failed == 1
    assert "UniqueViolation" in (read(queue, task_id).error or "")

    drained(queue, drain, 2)
    assert effects() == [2, 77]


# ---- the lease -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["released", "deregistered"])
def test_effects_of_an_attempt_that_lost_its_lease_are_rolled_back(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any, how: str
) -> None:
    def lose() -> None:
        task = current_task()
        if how == "deregistered":
            conn.execute("select tasklib.deregister_worker(%s)", [task.worker_id])
        else:
            conn.execute(
                "select tasklib.release(%s, array[%s::uuid], array[1])", [task.worker_id, task.id]
            )

    async def body(execute: Any) -> None:
        await credit(execute)
        once(lose)

    task_id = queue.enqueue(transactional(queue, kind, body))
    stats = drain(queue)

    assert effects() == [2]
    task = read(queue, task_id)
    assert (task.state, task.attempt) == ("completed", 2)
    assert (stats.lost, stats.completed) == (1, 1)


def test_a_completion_wins_over_a_cancellation(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        asked = conn.execute("select tasklib.cancel(%s)", [current_task().id]).fetchone()
        assert asked == ("requested",)

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    assert (read(queue, task_id).state, effects()) == ("completed", [1])


def test_a_cancelled_task_that_stops_leaves_nothing(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        conn.execute("select tasklib.cancel(%s)", [current_task().id])
        if kind == "async":
            await asyncio.sleep(60)
        while not current_task().cancelled:
            time.sleep(0.01)
        raise RuntimeError("stopped early")

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    assert (read(queue, task_id).state, effects()) == ("cancelled", [])


# ---- timeouts ------------------------------------------------------------------------------------


def still_sleeping(conn: Any) -> bool:
    """Tell whether the server still does what a task asked for."""
    return bool(
        conn.execute(
            "select from pg_stat_activity where datname = current_database() "
            "and query like '%pg_sleep(60)%' and pid <> pg_backend_pid() and state <> 'idle'"
        ).fetchall()
    )


def test_a_statement_that_runs_at_the_timeout_is_ended(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        if current_task().attempt == 1:
            await execute("select pg_sleep(60)")

    task_id = queue.enqueue(transactional(queue, kind, body, timeout_seconds=0.3))
    began = time.monotonic()
    assert drain(queue).failed == 1
    assert time.monotonic() - began < 10
    assert not still_sleeping(conn)
    assert "TimeoutError" in (read(queue, task_id).error or "")
    assert effects() == []

    drained(queue, drain, 2)
    assert effects() == [2]


def test_a_commit_that_runs_at_the_timeout_is_ended(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    conn.execute(
        """
        create function wait() returns trigger language plpgsql as $$
        begin
          perform pg_sleep(case when nextval('chance') = 1 then 60 else 0 end);
          return null;
        end $$;
        create constraint trigger wait after insert on effect deferrable initially deferred
          for each row execute function wait()
        """
    )
    task_id = queue.enqueue(transactional(queue, kind, credit, timeout_seconds=0.5))
    began = time.monotonic()
    drain(queue)
    assert time.monotonic() - began < 10
    task = read(queue, task_id)
    assert (task.state, effects()) == ("failed", [])
    assert "TimeoutError" in (task.error or "")

    drained(queue, drain, 2)
    assert effects() == [2]


def test_a_timeout_after_the_commit_changes_nothing(
    queue: SyncTaskQueue, drain: Any, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = psycopg.AsyncTransaction.__aexit__

    async def slow(self: Any, *raised: Any) -> bool:
        answer = await leave(self, *raised)
        await asyncio.sleep(60)
        return answer

    monkeypatch.setattr(psycopg.AsyncTransaction, "__aexit__", slow)
    task_id = queue.enqueue(transactional(queue, "async", credit, timeout_seconds=0.5))
    stats = drain(queue)

    assert (read(queue, task_id).state, effects()) == ("completed", [1])
    assert (stats.completed, stats.failed, stats.lost) == (1, 0, 0)


def test_a_thread_that_goes_on_after_its_timeout_cannot_write(
    queue: SyncTaskQueue, drain: Any, effects: Effects
) -> None:
    after: list[object] = []

    @queue.task(transactional=True, timeout_seconds=0.2)
    def stubborn() -> None:
        connection = current_task().connection
        connection.execute(CREDIT, [1])
        while not current_task().cancelled:
            time.sleep(0.01)
        time.sleep(0.3)
        try:
            connection.execute(CREDIT, [2])
        except psycopg.OperationalError as error:
            after.append(error)

    task_id = queue.enqueue(stubborn)
    stats = drain(queue)

    assert len(after) == 1
    assert effects() == []
    assert "TimeoutError" in (read(queue, task_id).error or "")
    assert (stats.failed, stats.completed, stats.lost) == (1, 0, 0)


def test_the_database_refuses_what_comes_after_the_timeout(
    queue: SyncTaskQueue,
    drain: Any,
    kind: str,
    effects: Effects,
    conn: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if the connection could not be taken away, and the task swallows its interruption."""
    monkeypatch.setattr(Hold, "cut", lambda _self: None)
    monkeypatch.setattr("tasklib.worker.execute.GRACE_SECONDS", 0.1)
    seen: list[str | None] = []

    async def body(execute: Any) -> None:
        await credit(execute)
        if kind == "async":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
        else:
            time.sleep(0.7)
        seen.append(state_of(conn, task_id))
        await execute(CREDIT, [99])

    task_id = queue.enqueue(transactional(queue, kind, body, timeout_seconds=0.2, max_retries=0))
    drain(queue)

    assert seen == ["failed"]
    assert effects() == []
    assert "TimeoutError" in (read(queue, task_id).error or "")


def test_a_coroutine_that_swallows_its_interruption_loses_its_connection(
    queue: SyncTaskQueue, drain: Any, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasklib.worker.execute.GRACE_SECONDS", 0.1)
    after: list[object] = []

    @queue.task(transactional=True, timeout_seconds=0.2)
    async def stubborn() -> None:
        await current_task().connection.execute(CREDIT, [1])
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
        try:
            await current_task().connection.execute(CREDIT, [2])
        except psycopg.OperationalError as error:
            after.append(error)

    queue.enqueue(stubborn)
    assert drain(queue).failed == 1
    assert len(after) == 1
    assert effects() == []


async def test_a_worker_that_stops_rolls_back_and_gives_back(
    aqueue: TaskQueue, kind: str, effects: Effects, conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def body(execute: Any) -> None:
        await credit(execute)
        loop.call_soon_threadsafe(started.set)
        await execute("select pg_sleep(60)")

    task_id = await aqueue.enqueue(transactional(aqueue, kind, body))
    worker = aqueue.worker(handle_signals=False, shutdown_timeout=0.1)
    working = asyncio.create_task(worker.run())
    await asyncio.wait_for(started.wait(), 10)
    await worker.stop()
    await working

    task = await aqueue.get_task(task_id)
    assert task is not None
    assert (task.state, task.retry_count, effects()) == ("pending", 0, [])
    assert worker.stats.released == 1
    assert "its connection broke" not in caplog.text  # it was cut
    async with asyncio.timeout(10):
        while still_sleeping(conn):
            await asyncio.sleep(0.05)


# ---- broken connections --------------------------------------------------------------------------


def test_a_session_that_was_ended_before_the_commit_costs_no_attempt(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        pid = current_task().connection.info.backend_pid
        once(lambda: conn.execute("select pg_terminate_backend(%s, 5000)", [pid]))

    task_id = queue.enqueue(transactional(queue, kind, body))
    stats = drain(queue)

    assert effects() == [2]
    task = read(queue, task_id)
    assert (task.state, task.retry_count) == ("completed", 0)
    assert (stats.released, stats.completed) == (1, 1)


def test_the_end_of_another_session_is_the_tasks_failure(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, make_conn: Any
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        make_conn().execute("select pg_terminate_backend(pg_backend_pid())")

    task_id = queue.enqueue(transactional(queue, kind, body))
    assert drain(queue).failed == 1
    assert "AdminShutdown" in (read(queue, task_id).error or "")
    assert effects() == []


def test_a_session_that_the_task_left_idle_for_too_long_is_the_tasks_failure(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        await execute("set local idle_in_transaction_session_timeout = 50")
        time.sleep(0.3)

    task_id = queue.enqueue(transactional(queue, kind, body))
    assert drain(queue).failed == 1
    assert "IdleInTransactionSessionTimeout" in (read(queue, task_id).error or "")
    assert effects() == []


def test_a_session_that_is_ended_during_the_commit_costs_no_attempt(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, conn: Any
) -> None:
    conn.execute(
        """
        create function die() returns trigger language plpgsql as $$
        begin
          if nextval('chance') = 1 then
            perform pg_terminate_backend(pg_backend_pid());
            perform pg_sleep(5);
          end if;
          return null;
        end $$;
        create constraint trigger die after insert on effect deferrable initially deferred
          for each row execute function die()
        """
    )
    task_id = queue.enqueue(transactional(queue, kind, credit))
    stats = drain(queue)

    assert effects() == [2]
    task = read(queue, task_id)
    assert (task.state, task.retry_count) == ("completed", 0)
    assert (stats.released, stats.completed, stats.lost) == (1, 1, 0)


@pytest.fixture
def wire(database: str, tmp_path: Any) -> Iterator[Wire]:
    """A line to the server that can be cut at a statement."""
    with Wire(database, tmp_path) as wire:
        yield wire


@pytest.mark.parametrize(
    ("statement", "is_answered", "released", "attempts"),
    [
        ("COMMIT", True, 0, [1]),
        ("COMMIT", False, 1, [2]),
        ("tasklib.complete", True, 1, [2]),
        ("tasklib.complete", False, 1, [2]),
        ("transaction_timestamp", True, 1, [2]),
        ("insert into effect", True, 1, [2]),
        ("insert into effect", False, 1, [2]),
    ],
)
def test_a_lost_answer_is_asked_for(
    wire: Wire,
    drain: Any,
    kind: str,
    effects: Effects,
    statement: str,
    is_answered: bool,
    released: int,
    attempts: list[int],
) -> None:
    """The line breaks just before the server gets a statement, or just before its answer comes."""
    config = tasklib.Config(database_url=wire.conninfo)
    with SyncTaskQueue(config) as queue:
        task_id = queue.enqueue(transactional(queue, kind, credit))
        wire.cut(statement, is_answered=is_answered)
        stats = drain(queue)

        assert effects() == attempts
        task = read(queue, task_id)
    assert wire.was_cut
    assert (task.state, task.retry_count) == ("completed", 0)
    assert (stats.completed, stats.released, stats.lost) == (1, released, 0)


def test_a_broken_session_is_replaced_and_a_sound_one_is_kept(
    queue: SyncTaskQueue, drain: Any, kind: str, conn: Any
) -> None:
    pids: list[int] = []

    async def body(execute: Any) -> None:
        pids.append(current_task().connection.info.backend_pid)
        if len(pids) == 2:
            raise tasklib.Cancel
        if len(pids) == 3:
            conn.execute("select pg_terminate_backend(%s, 5000)", [pids[-1]])

    task = transactional(queue, kind, body)
    queue.enqueue_many([(task, {})] * 4)
    assert drain(queue).completed == 3
    assert len(pids) == 5
    assert len({*pids[:3]}) == len({*pids[3:]}) == 1
    assert len({*pids}) == 2
    deadline = time.monotonic() + 10
    while conn.execute(
        "select from pg_stat_activity where application_name = 'tasklib task' "
        "and datname = current_database()"
    ).fetchall():
        assert time.monotonic() < deadline


def test_a_session_that_died_while_idle_is_not_used(
    queue: SyncTaskQueue, drain: Any, kind: str, conn: Any
) -> None:
    pids: list[int] = []

    async def body(execute: Any) -> None:
        pids.append(current_task().connection.info.backend_pid)

    @queue.task(name="app.kill")
    def kill() -> None:
        conn.execute("select pg_terminate_backend(%s, 5000)", [pids[-1]])

    work = transactional(queue, kind, body)
    first, last = work.options(priority=1), work.options(priority=-1)
    queue.enqueue_many([(first, {}), (kill, {}), (last, {})])
    stats = drain(queue)

    assert (stats.completed, stats.released) == (3, 0)
    assert len(set(pids)) == 2


def test_a_session_that_was_to_be_cut_is_not_used_again(
    queue: SyncTaskQueue, drain: Any, kind: str
) -> None:
    """The request to cancel may still be on its way, and would end somebody else's statement."""
    pids: list[int] = []

    async def body(execute: Any) -> None:
        pids.append(current_task().connection.info.backend_pid)
        hold = current_task()._run.hold
        assert hold is not None
        hold.is_cut = len(pids) == 1

    queue.enqueue_many([(transactional(queue, kind, body), {})] * 3)

    assert drain(queue).completed == 3
    assert pids[0] != pids[1] == pids[2]


def refuse_connections(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let tasks get no connection for so many times; return a list that grows with each."""
    refused: list[int] = []
    connect, aconnect = _connections.connect, _connections.aconnect

    def refuse(name: str) -> None:
        if name == "tasklib task" and len(refused) < times:
            refused.append(1)
            raise DatabaseUnavailable("too many connections")

    def late(config: Any, name: str = "") -> Any:
        refuse(name)
        return connect(config, name)

    async def alate(config: Any, name: str = "") -> Any:
        refuse(name)
        return await aconnect(config, name)

    monkeypatch.setattr(_connections, "connect", late)
    monkeypatch.setattr(_connections, "aconnect", alate)
    return refused


def test_a_task_waits_for_its_connection(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refuse_connections(monkeypatch, 2)
    queue.enqueue(transactional(queue, kind, credit))
    stats = drain(queue)

    assert len(refused) == 2
    assert (stats.completed, stats.released, effects()) == (1, 0, [1])


def test_a_task_that_waits_for_its_connection_times_out(
    queue: SyncTaskQueue, drain: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_connections(monkeypatch, 1000)
    task_id = queue.enqueue(transactional(queue, kind, credit, timeout_seconds=0.3))

    assert drain(queue).failed == 1
    assert "TimeoutError" in (read(queue, task_id).error or "")


async def test_a_worker_keeps_few_sessions(database: str, kind: str, conn: Any) -> None:
    async def body(execute: Any) -> None:
        await execute("select pg_sleep(0.2)")

    def sessions() -> int:
        return conn.execute(
            "select count(*) from pg_stat_activity where application_name = 'tasklib task' "
            "and datname = current_database()"
        ).fetchone()[0]

    async with TaskQueue(tasklib.Config(database_url=database, pool_size=2)) as queue:
        task = transactional(queue, kind, body)
        ids = await queue.enqueue_many([(task, {})] * 4)
        worker = queue.worker(handle_signals=False, concurrency=4)
        working = asyncio.create_task(worker.run())
        for task_id in ids:
            await queue.get_result(task_id, timeout=10)
        async with asyncio.timeout(10):
            while sessions() > 2:
                await asyncio.sleep(0.05)
        assert sessions() == 2
        await worker.stop()
        await working


# ---- what a task may do to its connection --------------------------------------------------------


def test_savepoints_work(queue: SyncTaskQueue, drain: Any, effects: Effects) -> None:
    @queue.task(transactional=True)
    def work() -> None:
        connection = current_task().connection
        with connection.transaction():
            connection.execute(CREDIT, [1])
        with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute(CREDIT, [2])
            connection.execute("select 1/0")
        with connection.transaction() as savepoint:
            connection.execute(CREDIT, [3])
            raise psycopg.Rollback(savepoint)
        connection.execute(CREDIT, [4])

    queue.enqueue(work)
    assert drain(queue).completed == 1
    assert effects() == [1, 4]


@pytest.mark.parametrize("method", ["commit", "rollback"])
def test_a_task_may_not_commit_or_roll_back(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, method: str
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        end = getattr(current_task().connection, method)()
        if kind == "async":
            await end

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    task = read(queue, task_id)
    assert (task.state, effects()) == ("failed", [])
    assert f"Explicit {method}() forbidden within a Transaction" in (task.error or "")


@pytest.mark.parametrize("statement", ["commit", "rollback", "commit and chain"])
def test_a_transaction_that_was_ended_by_sql_is_noticed(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects, statement: str
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        await execute(statement)
        await execute(CREDIT, [99])

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    task = read(queue, task_id)
    assert (task.state, task.is_terminal) == ("failed", True)
    assert "ended its transaction or its attempt itself" in (task.error or "")
    assert effects() == ([] if statement == "rollback" else [1])


def test_a_task_that_completes_itself_is_told_not_to(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        task = current_task()
        await execute(
            "select tasklib.complete(%s, %s, %s)", [task.id, task.worker_id, task.attempt]
        )

    task_id = queue.enqueue(transactional(queue, kind, body))
    stats = drain(queue)

    task = read(queue, task_id)
    assert (task.state, task.is_terminal, effects()) == ("failed", True, [])
    assert "leave" in (task.error or "").lower()
    assert (stats.failed, stats.lost) == (1, 0)


def test_a_task_may_not_close_its_connection(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects
) -> None:
    async def body(execute: Any) -> None:
        await credit(execute)
        closing = current_task().connection.close()
        if kind == "async":
            await closing

    task_id = queue.enqueue(transactional(queue, kind, body))
    drain(queue)

    task = read(queue, task_id)
    assert (task.is_terminal, effects()) == (True, [])
    assert "the task closed its connection" in (task.error or "")


def test_a_transaction_that_was_begun_and_not_left_fails_the_attempt(
    queue: SyncTaskQueue, drain: Any, effects: Effects
) -> None:
    kept: list[Any] = []

    @queue.task(transactional=True)
    def work() -> None:
        connection = current_task().connection
        connection.execute(CREDIT, [1])
        if not kept:
            kept.append(connection.transaction())
            kept[0].__enter__()

    task_id = queue.enqueue(work)
    assert drain(queue).failed == 1
    assert "OutOfOrderTransactionNesting" in (read(queue, task_id).error or "")
    assert effects() == []
    drained(queue, drain, 2)
    assert effects() == [1]


def test_nothing_of_a_session_reaches_the_next_task(
    queue: SyncTaskQueue, drain: Any, kind: str
) -> None:
    left: list[Any] = []

    async def spoil(execute: Any) -> int:
        connection = current_task().connection
        left.append(connection)
        connection.row_factory = dict_row
        connection.prepare_threshold = 0
        connection.adapters.register_loader("int4", TextLoader)
        for statement in (
            "set timezone = 'Asia/Kathmandu'",
            "set application_name = 'spoiled'",
            "create temp table mine (n int)",
            "select pg_advisory_lock(7)",
            "listen spoiled",
            "prepare mine as select 1",
            "declare mine cursor with hold for select 1",
            "set session characteristics as transaction read only",
        ):
            await execute(statement)
        return connection.info.backend_pid

    async def look(execute: Any) -> list[Any]:
        answer = await execute(
            "select pg_backend_pid(), current_setting('timezone') = 'Asia/Kathmandu', "
            "current_setting('application_name'), to_regclass('mine') is null, "
            "(select count(*) from pg_locks where locktype = 'advisory' "
            "  and pid = pg_backend_pid()), "
            "(select count(*) from pg_listening_channels()), "
            "(select count(*) from pg_prepared_statements), "
            "(select count(*) from pg_cursors where name = 'mine')"
        )
        found = answer.fetchone()
        return list(await found if kind == "async" else found)

    async def body(execute: Any) -> Any:
        return await (look if left else spoil)(execute)

    task = transactional(queue, kind, body)
    first = queue.enqueue(task)
    second = queue.enqueue(task)
    drain(queue)

    pid: Any = read(queue, first).result
    assert read(queue, second).result == {
        "value": [pid["value"], False, "tasklib task", True, 0, 0, 0, 0],
    }
    assert left[0].closed


def test_statements_can_be_prepared_again_in_the_next_task(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects
) -> None:
    async def body(execute: Any) -> None:
        for _ in range(7):
            await credit(execute)

    task = transactional(queue, kind, body)
    queue.enqueue_many([(task, {})] * 3)

    assert drain(queue).completed == 3
    assert len(effects()) == 21


def test_behind_a_pooler_the_session_is_left_alone(
    queue: SyncTaskQueue, drain: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another client's as well: no task may change it, and nothing is reset."""

    def made_up() -> Call[int]:
        return Call("select 0", {}, lambda rows: int(rows[0][0]))

    monkeypatch.setattr(_calls, "backend_pid", made_up)
    monkeypatch.setattr(_worker_calls, "FORGET_SESSION", "select 1/0")
    pids: list[int] = []

    async def body(execute: Any) -> None:
        assert current_task().connection.prepare_threshold is None
        pids.append(current_task().connection.info.backend_pid)

    task = transactional(queue, kind, body)
    queue.enqueue_many([(task, {})] * 2)

    assert drain(queue).completed == 2
    assert len(set(pids)) == 1


# ---- around and outside --------------------------------------------------------------------------


def test_hooks_are_inside_the_transaction(
    queue: SyncTaskQueue, drain: Any, kind: str, effects: Effects
) -> None:
    async def ahook(task: CurrentTask) -> AsyncGenerator[None]:
        await task.connection.execute(CREDIT, [10])
        yield
        await task.connection.execute(CREDIT, [20])

    def hook(task: CurrentTask) -> Generator[None]:
        task.connection.execute(CREDIT, [10])
        yield
        task.connection.execute(CREDIT, [20])

    queue.around(ahook if kind == "async" else hook)

    async def body(execute: Any) -> None:
        await credit(execute)
        once(lambda: 1 / 0)

    queue.enqueue(transactional(queue, kind, body))
    drain(queue)
    assert effects() == []
    drained(queue, drain, 2)
    assert effects() == [2, 10, 20]


def test_there_is_no_connection_elsewhere(queue: SyncTaskQueue, drain: Any) -> None:
    kept: list[CurrentTask] = []

    @queue.task(max_retries=0)
    def plain() -> None:
        _ = current_task().connection

    @queue.task(transactional=True)
    def keeping() -> None:
        assert current_task().connection
        kept.append(current_task())

    task_id = queue.enqueue(plain)
    queue.enqueue(keeping)
    assert drain(queue).completed == 1

    error = read(queue, task_id).error or ""
    assert "NoTransaction" in error
    assert "transactional=True" in error
    with pytest.raises(NoTransaction, match="until it returns"):
        _ = kept[0].connection
    with inline(queue.registry), pytest.raises(NoTransaction):
        keeping.delay()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transactional": True, "isolation": "process"}, "a process of its own"),
        ({"transactional": "yes"}, "transactional='yes' is not True or False"),
        ({"transactional": None}, "transactional=None is not True or False"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    def work() -> None: ...

    with pytest.raises(ConfigurationError, match=message):
        Registry().task(**options)(work)
