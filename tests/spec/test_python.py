"""The Python interface, name by name, as its users would call it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import tasklib
from tasklib import (
    Cancel,
    Config,
    ConfigurationError,
    InvalidArguments,
    LeaseLost,
    Retry,
    Snooze,
    SyncTaskQueue,
    Task,
    TaskLibError,
    TaskNotRegistered,
    TaskQueue,
    TaskWorker,
    current_task,
    submit_task,
    task,
)

from .conftest import Working

SUBMIT_OPTIONS = (
    "delay_seconds",
    "scheduled_at",
    "priority",
    "queue",
    "tags",
    "unique_key",
    "concurrency_key",
    "connection",
)


def rows(conn: Connection[Any]) -> int:
    row = conn.execute("select count(*) from tasklib.tasks").fetchone()
    assert row
    return row[0]


def stored(task_id: UUID) -> Task:
    found = tasklib.get_task(task_id)
    assert found is not None
    return found


def run_script(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(code)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "TASKLIB_DATABASE"))}
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@task(max_retries=5, timeout_seconds=30)
def send_email(to: str, subject: str) -> bool:
    return True


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task
async def add_async(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


@task(name="spec.always_fails")
def always_fails() -> None:
    raise RuntimeError("the disk is full")


# --- the block


def test_the_block_as_written(database: str, tmp_path: Path) -> None:
    code = f"""
import asyncio, tasklib
from tasklib import task, submit_task, Config, TaskWorker

config = Config(database_url={database!r})
tasklib.init(config)

@task(max_retries=5, timeout_seconds=30)
def send_email(to: str, subject: str) -> bool:
    return True

async def main():
    task_id = await submit_task(send_email, to="a@b.c", subject="Hi", delay_seconds=60, priority=10,
                                tags={{"batch": "w1"}})
    other = send_email.delay("a@b.c", subject="Hi")
    third = await send_email.adelay("a@b.c", subject="Hi")
    t = tasklib.get_task(task_id)
    assert (t.state, t.priority, t.tags) == ("pending", 10, {{"batch": "w1"}}), t
    assert t.error is None and t.next_retry_at is None and t.result is None
    worker = TaskWorker(config, concurrency=4)
    running = asyncio.create_task(worker.run())
    for i in (other, third):
        r = await tasklib.get_result(i, timeout=5)
        assert (r.state, r.value, r.error) == ("completed", True, None), r
        assert tasklib.get_task(i).result == {{"value": True}}
    assert await tasklib.get_result(task_id, timeout=0.3) is None
    await worker.stop()
    await running
    print("done")

asyncio.run(main())
"""
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


# --- Config, init, migrate


def test_config_defaults(database: str) -> None:
    config = Config(database_url=database)
    assert config.max_retries == 3
    assert config.base_retry_delay_seconds == 5.0
    assert config.retry_backoff_multiplier == 2.0
    assert config.lock_timeout_seconds == 60


def test_config_reads_the_environment_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLIB_MAX_RETRIES", "7")
    monkeypatch.setenv("DATABASE_URL", "postgresql://second/db")
    assert Config().max_retries == 7
    assert Config().database_url == "postgresql://second/db"
    monkeypatch.setenv("TASKLIB_DATABASE_URL", "postgresql://first/db")
    assert Config().database_url == "postgresql://first/db"
    assert Config(database_url="postgresql://given/db").database_url == "postgresql://given/db"


def test_config_reads_libpq_variables_when_pghost_is_set(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = conninfo_to_dict(database)
    for name, key in (("PGHOST", "host"), ("PGPORT", "port"), ("PGUSER", "user")):
        monkeypatch.setenv(name, str(parts[key]))
    monkeypatch.setenv("PGDATABASE", str(parts["dbname"]))
    if parts.get("password"):
        monkeypatch.setenv("PGPASSWORD", str(parts["password"]))
    with SyncTaskQueue(Config()) as queue:
        assert queue.list_tasks() == []


def test_an_empty_url_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLIB_EMBEDDED", "never")
    with pytest.raises(ConfigurationError), SyncTaskQueue(Config(database_url="")):
        pass
    monkeypatch.setenv("DATABASE_URL", "postgresql://second/db")
    assert Config(database_url="").database_url == "postgresql://second/db"


def test_a_bad_setting_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="max_retries"):
        Config(database_url="postgresql://x/y", max_retries=-1)
    with pytest.raises(ConfigurationError, match="max_retrys"):
        Config(database_url="postgresql://x/y", max_retrys=1)


def test_migrate_installs_and_may_be_repeated(conn: Connection[Any], config: Config) -> None:
    conn.execute("drop schema tasklib cascade")
    tasklib.migrate(config)
    tasklib.migrate(config)
    with SyncTaskQueue(config) as queue:
        assert queue.list_tasks() == []


async def test_config_values_are_the_defaults_of_its_workers_tasks(
    database: str, working: Working
) -> None:
    config = Config(database_url=database, base_retry_delay_seconds=100, max_retries=1)
    task_id = await submit_task(always_fails)
    async with working(config):
        t = await until(task_id, lambda t: t.is_failed)
    assert t.max_retries == 1
    assert t.next_retry_at - datetime.now(UTC) > timedelta(seconds=90)


async def until(task_id: UUID, holds: Callable[[Any], bool], timeout: float = 8) -> Any:
    end = time.monotonic() + timeout
    while True:
        t = await tasklib.aget_task(task_id)
        if holds(t):
            return t
        assert time.monotonic() < end, t
        await asyncio.sleep(0.03)


# --- @task


def test_calling_a_task_runs_it_here_and_now(app: Config, conn: Connection[Any]) -> None:
    assert add(1, b=2) == 3
    assert asyncio.run(add_async(4)) == 5
    assert rows(conn) == 0


async def test_decorator_options_reach_the_task(app: Config, working: Working) -> None:
    @task(name="spec.opts", queue="spec-q", priority=7, max_retries=9, timeout_seconds=12)
    def opts() -> None: ...

    async with working(queues=["nothing-here"]):  # a worker's start stores them
        task_id = await submit_task(opts)
        t = await tasklib.aget_task(task_id)
    assert t is not None
    assert (t.name, t.queue, t.priority, t.max_retries, t.timeout_seconds) == (
        "spec.opts",
        "spec-q",
        7,
        9,
        12,
    )


def test_unknown_decorator_option_is_refused() -> None:
    with pytest.raises((TypeError, TaskLibError), match="max_retrys"):

        @task(max_retrys=1)  # pyright: ignore[reportUntypedFunctionDecorator]
        def f() -> None: ...


@pytest.mark.parametrize("option", SUBMIT_OPTIONS)
def test_a_parameter_named_like_a_submit_option_is_refused(option: str) -> None:
    names: dict[str, Any] = {}
    exec(f"def clash({option}: int) -> None: ...", names)
    with pytest.raises(TaskLibError, match=option) as caught:
        task(names["clash"])
    assert "options" in str(caught.value)


async def test_strict_validation_at_submit(app: Config, conn: Connection[Any]) -> None:
    wrong: list[dict[str, Any]] = [
        {"a": "5"},
        {"a": 1.0},
        {"a": True},
        {"a": None},
        {},
        {"a": 1, "c": 2},
    ]
    for kwargs in wrong:
        with pytest.raises(InvalidArguments) as caught:
            await submit_task(add, **kwargs)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(InvalidArguments):
            add.delay(**kwargs)
        with pytest.raises(InvalidArguments):
            await add_async.adelay(**kwargs)
    with pytest.raises(InvalidArguments):
        add.delay(1, 2, 3)
    with pytest.raises(InvalidArguments):
        add.delay(1, a=1)
    assert rows(conn) == 0


async def test_arguments_are_checked_again_before_they_are_run(
    app: Config, conn: Connection[Any], working: Working
) -> None:
    ids: list[UUID] = []
    for kwargs in ('{"a": "5"}', "{}", '{"a": 1, "z": 1}', "{}"):
        row = conn.execute("select tasklib.enqueue(%s, %s)", (add.name, kwargs)).fetchone()
        assert row
        ids.append(row[0])
    async with working():
        results = [await tasklib.get_result(i, timeout=5) for i in ids]
    for result, word in zip(results, ("a", "a", "z", "a"), strict=True):
        assert result is not None
        assert result.state == "failed"
        assert result.error is not None
        assert "InvalidArguments" in result.error
        assert word in result.error
    assert stored(ids[0]).next_retry_at is None


async def test_an_unregistered_function_is_refused(app: Config, conn: Connection[Any]) -> None:
    def plain(a: int) -> None: ...

    with pytest.raises(TaskNotRegistered) as caught:
        await submit_task(plain, a=1)
    assert isinstance(caught.value, TaskLibError)
    assert rows(conn) == 0


async def test_a_row_for_an_unknown_name_waits_for_a_worker_that_knows_it(
    app: Config, conn: Connection[Any], working: Working
) -> None:
    row = conn.execute("select tasklib.enqueue('spec.nobody_knows')").fetchone()
    assert row
    async with working():
        await asyncio.sleep(0.5)
    t = stored(row[0])
    assert (t.state, t.attempt) == ("pending", 0)


async def test_retry_for_and_give_up_on(app: Config, working: Working) -> None:
    @task(name="spec.give_up", give_up_on=[LookupError])
    def give_up() -> None:
        raise KeyError("gone")

    @task(name="spec.only_for", retry_for=[ConnectionError])
    def only_for(which: str) -> None:
        raise ConnectionResetError if which == "net" else ValueError

    given_up = await submit_task(give_up)
    other = await submit_task(only_for, which="value")
    again = await submit_task(only_for, which="net")
    async with working():
        for task_id in (given_up, other):
            t = await until(task_id, lambda t: t.is_terminal)
            assert (t.state, t.next_retry_at, t.retry_count) == ("failed", None, 0)
        t = await until(again, lambda t: t.is_failed)
    assert t.next_retry_at is not None
    assert not t.is_terminal


async def test_backoff_of_the_decorator(app: Config, working: Working) -> None:
    @task(name="spec.backoff", backoff={"base_seconds": 50, "multiplier": 3})
    def f() -> None:
        raise ValueError

    task_id = await submit_task(f)
    async with working():
        t = await until(task_id, lambda t: t.is_failed)
    assert timedelta(seconds=45) < t.next_retry_at - datetime.now(UTC) < timedelta(seconds=51)


# --- submitting


async def test_submit_options(app: Config) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    task_id = await submit_task(
        add,
        a=1,
        b=2,
        scheduled_at=at,
        priority=-3,
        queue="other",
        tags={"k": [1, 2]},
        unique_key="u",
        concurrency_key="c",
    )
    assert isinstance(task_id, UUID)
    t = stored(task_id)
    assert (t.scheduled_at, t.priority, t.queue, t.tags) == (at, -3, "other", {"k": [1, 2]})
    assert t.kwargs == {"a": 1, "b": 2}
    assert t.is_pending
    assert await submit_task(add, a=9, queue="other", unique_key="u") == task_id


async def test_delay_seconds(app: Config) -> None:
    t = stored(await submit_task(add, a=1, delay_seconds=60))
    assert t.scheduled_at is not None
    assert timedelta(seconds=55) < t.scheduled_at - datetime.now(UTC) <= timedelta(seconds=61)


async def test_submit_task_takes_kwargs_only(app: Config, conn: Connection[Any]) -> None:
    with pytest.raises((TypeError, TaskLibError)):
        await submit_task(add, 1)
    assert rows(conn) == 0


async def test_delay_and_adelay_bind_positional_arguments_to_names(app: Config) -> None:
    first, second = add.delay(1, 2), await add_async.adelay(3, b=4)
    assert (stored(first).kwargs, stored(second).kwargs) == (
        {"a": 1, "b": 2},
        {"a": 3, "b": 4},
    )


async def test_options_give_a_task_with_these_options(app: Config) -> None:
    urgent = add.options(priority=50, delay_seconds=60, tags={"x": 1}, queue="u")
    one = tasklib.get_task(urgent.delay(1))
    two = tasklib.get_task(await urgent.adelay(1))
    async with TaskQueue(app) as queue:
        three = await queue.get_task(await queue.enqueue(urgent, 1))
    for t in (one, two, three):
        assert t is not None
        assert (t.priority, t.tags, t.queue) == (50, {"x": 1}, "u")
    plain = stored(add.delay(1))
    assert plain.priority == 0
    with pytest.raises((TypeError, TaskLibError), match="priorty"):
        add.options(priorty=1)


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1001},
        {"priority": "high"},
        {"delay_seconds": -1},
        {"delay_seconds": float("nan")},
        {"scheduled_at": datetime(2030, 1, 1)},
        {"delay_seconds": 1, "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"queue": ""},
        {"tags": ["no object"]},
        {"tags": {"x": object()}},
        {"unique_key": ""},
        {"concurrency_key": "x" * 300},
    ],
)
async def test_bad_options_are_refused_and_leave_no_row(
    app: Config, conn: Connection[Any], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArguments):
        await submit_task(add, a=1, **options)
    with pytest.raises(InvalidArguments):
        add.options(**options).delay(1)
    assert rows(conn) == 0


# --- connection=


@pytest.mark.parametrize("commit", [True, False])
def test_a_psycopg_connection_decides(
    app: Config, make_conn: Callable[..., Connection[Any]], commit: bool
) -> None:
    mine = make_conn(autocommit=False, row_factory=dict_row)
    task_id = add.options(connection=mine).delay(1)
    assert tasklib.get_task(task_id) is None
    mine.commit() if commit else mine.rollback()
    assert (tasklib.get_task(task_id) is not None) is commit
    assert not mine.closed


@pytest.mark.parametrize("commit", [True, False])
async def test_an_async_psycopg_connection_decides(
    app: Config, database: str, commit: bool
) -> None:
    async with await psycopg.AsyncConnection.connect(database) as mine:
        first = await submit_task(add, a=1, connection=mine)
        second = await add.options(connection=mine).adelay(2)
        assert tasklib.get_task(first) is None
        await (mine.commit() if commit else mine.rollback())
    for task_id in (first, second):
        assert (tasklib.get_task(task_id) is not None) is commit


async def test_submit_task_takes_a_blocking_connection_too(
    app: Config, make_conn: Callable[..., Connection[Any]]
) -> None:
    mine = make_conn(autocommit=False)
    task_id = await submit_task(add, a=1, connection=mine)
    mine.commit()
    assert await tasklib.aget_task(task_id) is not None


async def test_delay_cannot_use_an_async_connection(app: Config, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as mine:
        with pytest.raises(TaskLibError):
            add.options(connection=mine).delay(1)


@pytest.mark.parametrize("commit", [True, False])
def test_sqlalchemy_connections_and_sessions_decide(
    app: Config, database: str, commit: bool
) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    with engine.connect() as connection:
        connection.execute(text("create table mine (id int)"))
        first = add.options(connection=connection).delay(1)
        connection.commit() if commit else connection.rollback()
    with Session(engine) as session:
        second = add.options(connection=session).delay(1)
        session.commit() if commit else session.rollback()
    engine.dispose()
    for task_id in (first, second):
        assert (tasklib.get_task(task_id) is not None) is commit


async def test_an_async_sqlalchemy_session_decides(app: Config, database: str) -> None:
    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(database),
        poolclass=NullPool,
    )
    async with AsyncSession(engine) as session:
        gone = await submit_task(add, a=1, connection=session)
        await session.rollback()
        kept = await submit_task(add, a=1, connection=session)
        await session.commit()
    await engine.dispose()
    assert await tasklib.aget_task(gone) is None
    assert await tasklib.aget_task(kept) is not None


def test_something_else_as_connection_is_refused(app: Config, conn: Connection[Any]) -> None:
    with pytest.raises(TaskLibError, match="connection"):
        add.options(connection=object()).delay(1)
    assert rows(conn) == 0


# --- clients


async def test_the_async_client(config: Config) -> None:
    queue = TaskQueue(config)
    await queue.connect()

    @queue.task(name="spec.double")
    def double(n: int) -> int:
        return n * 2

    one = await queue.enqueue(double, 4)
    two = await queue.enqueue(double, n=5)
    many = await queue.enqueue_many([(double, {"n": 6}), (double, {"n": 7})])
    assert [t.id for t in await queue.list_tasks()] == [many[1], many[0], two, one]
    worker = queue.worker(concurrency=2)
    running = asyncio.create_task(worker.run())
    values = [await queue.get_result(i, timeout=5) for i in (one, two, *many)]
    assert [(r.state, r.value, r.error) for r in values if r] == [
        ("completed", n, None) for n in (8, 10, 12, 14)
    ]
    await worker.stop()
    await running
    await queue.close()


def test_the_blocking_client(config: Config) -> None:
    with SyncTaskQueue(config) as queue:

        @queue.task
        async def double(n: int) -> int:
            return n * 2

        one = queue.enqueue(double, 4)
        many = queue.enqueue_many([(double, {"n": 6})])
        assert queue.get_result(one, timeout=0.1) is None
        t = queue.get_task(many[0])
        assert t is not None
        assert t.kwargs == {"n": 6}

        async def work() -> None:
            worker = queue.worker(concurrency=2)
            running = asyncio.create_task(worker.run())
            while not all(t.is_completed for t in await asyncio.to_thread(queue.list_tasks)):
                await asyncio.sleep(0.02)
            await worker.stop()
            await running

        asyncio.run(asyncio.wait_for(work(), 8))
        result = queue.get_result(one, timeout=1)
        assert result is not None
        assert (result.state, result.value) == ("completed", 8)


def test_blocking_connect_and_close(config: Config) -> None:
    queue = SyncTaskQueue(config)
    queue.connect()
    assert queue.get_task(uuid4()) is None
    queue.close()


async def test_the_blocking_client_says_so_inside_a_running_loop(config: Config) -> None:
    with pytest.raises(TaskLibError, match="event loop"), SyncTaskQueue(config) as queue:
        queue.list_tasks()


def test_a_clients_registry_is_its_own(config: Config) -> None:
    one, other = SyncTaskQueue(config), SyncTaskQueue(config)

    @one.task(name="spec.same")
    def first() -> None: ...

    @other.task(name="spec.same")
    def second() -> None: ...

    with pytest.raises(TaskLibError, match=r"spec\.same"):
        one.task(name="spec.same")(lambda: None)


def test_enqueue_many_is_all_or_nothing(config: Config, conn: Connection[Any]) -> None:
    with SyncTaskQueue(config) as queue:

        @queue.task
        def one(n: int) -> None: ...

        with pytest.raises(InvalidArguments, match="1"):
            queue.enqueue_many([(one, {"n": 1}), (one, {"n": "x"})])
        assert queue.enqueue_many([]) == []
    assert rows(conn) == 0


async def test_lists_and_lookups(app: Config) -> None:
    assert tasklib.get_task(uuid4()) is None
    assert await tasklib.aget_task(uuid4()) is None
    ids = [await submit_task(add, a=n, tags={"n": n}) for n in range(5)]
    newest_first = ids[::-1]
    assert [t.id for t in tasklib.list_tasks()] == newest_first
    assert [t.id for t in tasklib.list_tasks(limit=2)] == newest_first[:2]
    assert [t.id for t in tasklib.list_tasks(limit=2, before=ids[3])] == newest_first[2:4]
    assert [t.id for t in await tasklib.alist_tasks(tags={"n": 3})] == [ids[3]]
    assert len(tasklib.list_tasks(state="pending", name=add.name, queue="default")) == 5
    assert tasklib.list_tasks(state="failed") == []
    with pytest.raises(InvalidArguments, match="finishd"):
        tasklib.list_tasks(state="finishd")
    with pytest.raises(InvalidArguments, match="tags"):
        tasklib.list_tasks(tags={"at": datetime.now(UTC)})


async def test_cancel_and_retry(app: Config, working: Working) -> None:
    task_id = await submit_task(add, a=1)
    tasklib.cancel_task(task_id)
    t = stored(task_id)
    assert (t.state, t.is_terminal) == ("cancelled", True)
    tasklib.retry_task(task_id)
    t = stored(task_id)
    assert (t.state, t.is_pending) == ("pending", True)
    async with working():
        result = await tasklib.get_result(task_id, timeout=5)
    assert result is not None
    assert result.value == 2
    with pytest.raises(TaskLibError):
        tasklib.retry_task(task_id)
    with pytest.raises(TaskLibError):
        tasklib.cancel_task(uuid4())


async def test_predicates(app: Config, working: Working) -> None:
    def facts(t: Any) -> dict[str, bool]:
        names = ["pending", "running", "completed", "failed", "terminal"]
        return {n: getattr(t, f"is_{n}") for n in names} | {
            "result": t.has_result,
            "error": t.has_error,
        }

    gate = threading.Event()

    @task(name="spec.gate")
    def wait() -> None:
        gate.wait(5)

    pending, failed, waiting = (
        await submit_task(add, a=1, delay_seconds=99),
        await submit_task(always_fails),
        await submit_task(wait),
    )
    none = dict.fromkeys(facts(tasklib.get_task(pending)), False)
    async with working(concurrency=3):
        f = await until(failed, lambda t: t.is_failed)
        r = await until(waiting, lambda t: t.is_running)
        assert r.locked_until > datetime.now(UTC)
        assert r.worker_id is not None
        gate.set()
        c = await until(waiting, lambda t: t.is_completed)
    assert facts(tasklib.get_task(pending)) == none | {"pending": True}
    assert facts(f) == none | {"failed": True, "error": True}
    assert facts(r) == none | {"running": True}
    assert facts(c) == none | {"completed": True, "terminal": True, "result": True}
    assert c.result == {"value": None}


async def test_results_of_sql_are_kept_as_given(app: Config, conn: Connection[Any]) -> None:
    ids = [await submit_task(add, a=1) for _ in range(2)]
    worker = conn.execute("select tasklib.register_worker()").fetchone()
    assert worker
    for result in ('{"rows": 3}', "[1, 2]"):
        conn.execute(
            "select tasklib.complete(id, %s, attempt, %s) from tasklib.claim(%s)",
            (worker[0], result, worker[0]),
        )
    assert [stored(i).result for i in ids] == [{"rows": 3}, [1, 2]]
    for i in ids:
        result = await tasklib.get_result(i, timeout=1)
        assert result is not None
        assert result.state == "completed"


async def test_get_result_of_what_failed_or_was_cancelled(app: Config, working: Working) -> None:
    @task(name="spec.bad", max_retries=0)
    def bad() -> None:
        raise RuntimeError("boom")

    cancelled = await submit_task(add, a=1, delay_seconds=99)
    tasklib.cancel_task(cancelled)
    failed = await submit_task(bad)
    async with working():
        r = await tasklib.get_result(failed, timeout=5)
    assert r is not None
    assert (r.state, r.value) == ("failed", None)
    assert r.error is not None
    assert "RuntimeError: boom" in r.error
    r = await tasklib.get_result(cancelled, timeout=1)
    assert r is not None
    assert (r.state, r.value) == ("cancelled", None)


# --- workers


async def test_a_worker_runs_sync_and_async_tasks_at_a_time(app: Config, working: Working) -> None:
    together = threading.Barrier(2, timeout=5)
    everybody = asyncio.Barrier(2)

    @task(name="spec.in_thread")
    def in_thread() -> str:
        together.wait()
        return threading.current_thread().name

    @task(name="spec.on_loop")
    async def on_loop() -> str:
        await everybody.wait()
        return threading.current_thread().name

    ids = [await submit_task(f) for f in (in_thread, in_thread, on_loop, on_loop)]
    async with working(concurrency=4):
        results = [await tasklib.get_result(i, timeout=6) for i in ids]
    names = [r.value for r in results if r]
    main = threading.main_thread().name
    assert names[2:] == [main, main]
    assert main not in names[:2]


async def test_a_worker_takes_from_its_queues_and_no_others(
    app: Config, config: Config, working: Working
) -> None:
    mail, other = await submit_task(add, a=1, queue="mail"), await submit_task(add, a=1, queue="x")
    async with working(concurrency=1, poll_interval=0.2, queues=["default", "mail"]):
        assert await tasklib.get_result(mail, timeout=5)
        await asyncio.sleep(0.3)
    assert stored(other).is_pending


def test_a_worker_with_nonsense_is_refused(config: Config) -> None:
    for options in (
        {"concurrency": 0},
        {"poll_interval": -1},
        {"queues": []},
        {"poll_interval": float("nan")},
    ):
        with pytest.raises(TaskLibError):
            TaskWorker(config, **options)


async def test_stop_lets_running_tasks_end(app: Config, config: Config) -> None:
    started = asyncio.Event()

    @task(name="spec.takes_a_moment")
    async def takes_a_moment() -> str:
        started.set()
        await asyncio.sleep(0.5)
        return "ended"

    task_id = await submit_task(takes_a_moment)
    later = await submit_task(takes_a_moment)
    worker = TaskWorker(config, concurrency=1)
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(started.wait(), 5)
    await worker.stop()
    await asyncio.wait_for(running, 5)
    assert stored(task_id).result == {"value": "ended"}
    t = stored(later)
    assert (t.state, t.retry_count) == ("pending", 0)


async def test_a_task_is_timed_out(app: Config, working: Working) -> None:
    @task(name="spec.slow", timeout_seconds=0.3, max_retries=0)
    async def slow() -> None:
        await asyncio.sleep(60)

    @task(name="spec.slow_thread", timeout_seconds=0.3, max_retries=0)
    def slow_thread() -> None:
        time.sleep(2)

    ids = [await submit_task(slow), await submit_task(slow_thread)]
    async with working(concurrency=2):
        for task_id in ids:
            r = await tasklib.get_result(task_id, timeout=6)
            assert r is not None
            assert r.state == "failed"
            assert r.error is not None
            assert "0.3" in r.error


# --- inside a task


async def test_current_task(app: Config, working: Working) -> None:
    @task(name="spec.introspect")
    def introspect() -> dict[str, Any]:
        me = current_task()
        me.progress(0.5, "half")
        return {
            "id": str(me.id),
            "name": me.name,
            "attempt": me.attempt,
            "cancelled": me.cancelled,
        }

    @task(name="spec.introspect_async")
    async def introspect_async() -> str:
        await asyncio.sleep(0)
        return str(current_task().id)

    task_id, other = await submit_task(introspect), await submit_task(introspect_async)
    async with working(concurrency=2):
        r = await tasklib.get_result(task_id, timeout=5)
        assert r is not None
        assert r.value == {
            "id": str(task_id),
            "name": "spec.introspect",
            "attempt": 1,
            "cancelled": False,
        }
        r = await tasklib.get_result(other, timeout=5)
        assert r is not None
        assert r.value == str(other)
    with pytest.raises(TaskLibError):
        current_task()


async def test_a_running_task_learns_that_it_is_to_be_cancelled(
    app: Config, working: Working
) -> None:
    @task(name="spec.polite")
    def polite() -> str:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if current_task().cancelled:
                raise Cancel("asked to")
            time.sleep(0.02)
        return "never asked"

    @task(name="spec.stubborn")
    def stubborn() -> str:
        time.sleep(1.5)
        return "done all the same"

    @task(name="spec.interrupted")
    async def interrupted() -> None:
        await asyncio.sleep(30)

    ids = [await submit_task(f) for f in (polite, stubborn, interrupted)]
    async with working(concurrency=3):
        for task_id in ids:
            await until(task_id, lambda t: t.is_running)
            tasklib.cancel_task(task_id)
        asked = time.monotonic()
        r = await tasklib.get_result(ids[0], timeout=5)
        assert r is not None
        assert r.state == "cancelled"
        assert time.monotonic() - asked < 2.5
        r = await tasklib.get_result(ids[1], timeout=5)
        assert r is not None
        assert (r.state, r.value) == ("completed", "done all the same")
        r = await tasklib.get_result(ids[2], timeout=5)
        assert r is not None
        assert r.state == "cancelled"


async def test_retry_cancel_and_snooze(app: Config, working: Working) -> None:
    @task(name="spec.end")
    def end(how: str) -> None:
        if how == "retry":
            raise Retry(in_seconds=40)
        if how == "cancel":
            raise Cancel
        raise Snooze(30)

    retry, cancel, snooze = [await submit_task(end, how=h) for h in ("retry", "cancel", "snooze")]
    async with working(concurrency=3):
        t = await until(retry, lambda t: t.is_failed)
        assert timedelta(seconds=35) < t.next_retry_at - datetime.now(UTC) < timedelta(seconds=41)
        await until(cancel, lambda t: t.state == "cancelled")
        t = await until(snooze, lambda t: t.attempt == 1 and t.is_pending)
        assert timedelta(seconds=25) < t.scheduled_at - datetime.now(UTC) < timedelta(seconds=31)
        assert t.retry_count == 0
        assert t.next_retry_at is None


async def test_progress_is_seen_while_it_runs(
    app: Config, conn: Connection[Any], working: Working
) -> None:
    gate = threading.Event()

    @task(name="spec.progress")
    def work() -> None:
        current_task().progress(0.25, "a quarter")
        gate.wait(5)

    task_id = await submit_task(work)
    async with working():
        seen = None
        for _ in range(100):
            seen = conn.execute(
                "select progress, progress_message from tasklib.tasks where id = %s", (task_id,)
            ).fetchone()
            if seen and seen[0] is not None:
                break
            await asyncio.sleep(0.03)
        gate.set()
        await until(task_id, lambda t: t.is_completed)
    assert seen == (0.25, "a quarter")


# --- exceptions


def test_exceptions_have_one_base() -> None:
    for error in (TaskNotRegistered, InvalidArguments, LeaseLost, ConfigurationError):
        assert issubclass(error, TaskLibError)
    assert issubclass(InvalidArguments, ValueError)


def test_sqlstates_become_classes(app: Config, conn: Connection[Any]) -> None:
    with pytest.raises(TaskLibError) as caught:
        tasklib.cancel_task(uuid4())
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert caught.value.__cause__.sqlstate is not None
    assert caught.value.__cause__.sqlstate.startswith("TL")


# --- values


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: Decimal


class Line(BaseModel):
    begin: Point
    end: Point
    colour: Colour = Colour.RED
    at: datetime


async def test_values_come_back_as_they_were(app: Config, working: Working) -> None:
    seen: dict[str, Any] = {}

    @task(name="spec.values")
    def values(
        at: datetime,
        day: date,
        pause: timedelta,
        key: UUID,
        price: Decimal,
        colour: Colour,
        point: Point,
        line: Line,
        lines: list[Line],
        table: dict[str, tuple[int, Decimal]],
        maybe: Point | None,
        raw: bytes,
        numbers: set[int],
        either: int | str,
    ) -> Line:
        seen.update(locals())
        return line

    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    line = Line(begin=Point(1, Decimal("1.10")), end=Point(2, Decimal(7)), at=at)
    given: dict[str, Any] = {
        "at": at,
        "day": date(2026, 2, 3),
        "pause": timedelta(days=1, microseconds=5),
        "key": uuid4(),
        "price": Decimal("0.10"),
        "colour": Colour.RED,
        "point": Point(3, Decimal("1E+2")),
        "line": line,
        "lines": [line, line],
        "table": {"a": (1, Decimal("2.5"))},
        "maybe": None,
        "raw": b"abc",
        "numbers": {1, 2},
        "either": "5",
    }
    task_id = await submit_task(values, **given)
    async with working():
        r = await tasklib.get_result(task_id, timeout=5)
    assert r is not None
    assert r.error is None
    seen.pop("seen", None)
    assert seen == given
    assert str(seen["price"]) == "0.10"
    assert r.value == line


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: None,
        float("nan"),
        float("inf"),
        b"\xff",
        "nul \0",
        "\ud800",
        1j,
        {1: object()},
    ],
    ids=["object", "lambda", "nan", "inf", "bytes", "nul", "surrogate", "complex", "nested"],
)
async def test_what_json_cannot_hold_is_refused_at_submit(
    app: Config, conn: Connection[Any], value: Any
) -> None:
    @task(name="spec.anything")
    def anything(value: Any) -> None: ...

    with pytest.raises(InvalidArguments):
        await submit_task(anything, value=value)
    with pytest.raises(InvalidArguments):
        anything.delay([value])
    assert rows(conn) == 0


async def test_a_circle_is_refused(app: Config, conn: Connection[Any]) -> None:
    circle: list[Any] = []
    circle.append(circle)

    @task(name="spec.circle")
    def f(value: list[Any]) -> None: ...

    with pytest.raises(TaskLibError):
        await submit_task(f, value=circle)
    assert rows(conn) == 0


async def test_a_result_that_json_cannot_hold_fails_clearly(app: Config, working: Working) -> None:
    @task(name="spec.bad_result")
    def bad() -> Any:
        return object()

    task_id = await submit_task(bad)
    async with working():
        t = await until(task_id, lambda t: t.is_failed)
    assert "InvalidResult" in t.error


# --- failing for good


def test_always_failing_task_waits_5_10_20_seconds_then_has_failed(
    tasklib_database: Any,
) -> None:
    from tasklib.testing import advance, drain

    task_id = always_fails.delay()
    for retry_count, pause in enumerate((5, 10, 20)):
        drain()
        t = stored(task_id)
        assert (t.state, t.retry_count, t.is_terminal) == ("failed", retry_count, False)
        assert t.next_retry_at is not None
        left = (t.next_retry_at - datetime.now(UTC)).total_seconds()
        assert pause - 2 < left <= pause + 0.2
        advance(timedelta(seconds=pause - 3))
        drain()
        again = stored(task_id)
        assert again.attempt == t.attempt
        advance(timedelta(seconds=3))
        due = stored(task_id)
        assert due.state == "pending"
    drain()
    t = stored(task_id)
    assert (t.state, t.next_retry_at, t.retry_count, t.is_terminal) == ("failed", None, 3, True)
    assert t.error is not None
    assert "the disk is full" in t.error


# --- tasklib.testing


PLUGIN_TESTS = """
from datetime import timedelta
import pytest, tasklib
from tasklib import task
from tasklib.testing import advance, assert_enqueued, drain

@task(name="app.add")
def add(a: int, b: int = 1) -> int:
    if a < 0:
        raise ValueError("negative")
    return a + b

def test_inline(tasklib_inline):
    add.delay(1)
    with pytest.raises(tasklib.InvalidArguments):
        add.delay("1")
    with pytest.raises(ValueError, match="negative"):
        add.delay(-1)

@pytest.mark.usefixtures("tasklib_database")
def test_assert_enqueued():
    add.delay(1)
    assert_enqueued(add, kwargs={"a": 1})
    with pytest.raises(AssertionError):
        assert_enqueued(add, kwargs={"a": 2})
    with pytest.raises(AssertionError):
        assert_enqueued("app.other")

@pytest.mark.usefixtures("tasklib_database")
def test_drain_and_advance():
    assert tasklib.list_tasks() == []
    now, later = add.delay(1), add.options(delay_seconds=3600).delay(5)
    drain()
    assert tasklib.get_task(now).result == {"value": 2}
    assert tasklib.get_task(later).is_pending
    advance(timedelta(hours=1))
    drain()
    assert tasklib.get_task(later).result == {"value": 6}
"""


def test_the_pytest_plugin(database: str, tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(PLUGIN_TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py"],
        cwd=tmp_path,
        env=os.environ | {"TASKLIB_TEST_DATABASE_URL": database},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_production_has_no_settable_clock(conn: Connection[Any]) -> None:
    found = conn.execute(
        "select count(*) from pg_proc where pronamespace = 'tasklib'::regnamespace"
        " and proname ~ 'advance|shift|clock'"
    ).fetchone()
    assert found == (0,)


# --- the embedded server

EMBEDDED = """
import asyncio, sys, tasklib

@tasklib.task(name="app.add")
def add(a: int) -> int:
    return a + 1

def main():
    if sys.argv[1:] == []:
        for t in tasklib.list_tasks():
            print(t.state)
        print(add.delay(1) is not None)

main()
"""


@pytest.fixture
def project() -> Generator[Path]:
    """A folder that the server's account can enter, where the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="tasklib-spec-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "pyproject.toml").touch()
        yield folder


def test_no_url_means_the_embedded_server(project: Path) -> None:
    inner = project / "src" / "deep"
    inner.mkdir(parents=True)
    first = run_script(inner, EMBEDDED)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "True\n"
    assert len(first.stderr.strip().splitlines()) == 1, first.stderr
    assert (project / ".tasklib").is_dir()
    assert not (inner / ".tasklib").exists()
    second = run_script(inner, EMBEDDED)  # durable
    assert second.stdout == "pending\nTrue\n", second.stderr
    for _ in range(100):  # stopped with its last user
        if not list((project / ".tasklib").rglob("postmaster.pid")):
            break
        time.sleep(0.1)
    assert not list((project / ".tasklib").rglob("postmaster.pid"))


def test_embedded_can_be_refused(project: Path) -> None:
    code = """
import tasklib
try:
    tasklib.list_tasks()
except tasklib.ConfigurationError as error:
    print(error)
"""
    done = run_script(project, code, TASKLIB_EMBEDDED="never")
    assert done.returncode == 0, done.stderr
    assert "TASKLIB_DATABASE_URL" in done.stdout
    assert not (project / ".tasklib").exists()


def test_memory_is_a_throw_away_store(project: Path) -> None:
    code = """
import tasklib
tasklib.init(tasklib.Config(database_url="memory://"))

@tasklib.task(name="app.add")
def add(a: int) -> int:
    return a + 1

print(len(tasklib.list_tasks()))
add.delay(1)
print(len(tasklib.list_tasks()))
"""
    for _ in range(2):
        done = run_script(project, code)
        assert done.stdout == "0\n1\n", done.stderr
    assert not (project / ".tasklib").exists()
