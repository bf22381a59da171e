"""Through PgBouncer in transaction mode, where sessions are shared by all clients."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner
from processes import start_worker, wait_for, wait_until
from psycopg import Connection
from psycopg.conninfo import make_conninfo

import pgbouncer
import tasklib
from pgbouncer import PgBouncer
from servers import Server
from tasklib import (
    Config,
    DatabaseUnavailable,
    SyncTaskQueue,
    TaskQueue,
    _connections,
    embedded,
)
from tasklib._migrate import migrate
from tasklib.cli import main
from tasklib.worker.link import Link

POLLING = "no notification comes through a pooler"

pytestmark = pytest.mark.skipif(
    pgbouncer.program() is None, reason="PgBouncer is not on this machine"
)


@pytest.fixture
def narrow(server: Server) -> Generator[PgBouncer]:
    """A pooler with two sessions for all clients of a database."""
    with PgBouncer(server.dsn, more="default_pool_size = 2") as pooler:
        yield pooler


@pytest.fixture
def pooled(narrow: PgBouncer, server: Server, postgresql: Connection[Any]) -> str:
    """The connection string of the test's database through that pooler."""
    return narrow.conninfo(server.conninfo(postgresql.info.dbname))


@pytest.fixture
def direct(server: Server, postgresql: Connection[Any]) -> Generator[Connection[Any]]:
    """A session on the test's database that goes past the pooler."""
    with psycopg.connect(server.conninfo(postgresql.info.dbname), autocommit=True) as conn:
        yield conn


@pytest.fixture
def queue(pooled: str) -> Generator[SyncTaskQueue]:
    """The blocking client through the pooler."""
    with SyncTaskQueue(Config(database_url=pooled)) as queue:
        yield queue


@pytest.fixture
def start() -> Generator[Callable[..., subprocess.Popen[str]]]:
    """Start worker processes; those left at the end of the test are killed."""
    started: list[subprocess.Popen[str]] = []

    def run(url: str, **options: float) -> subprocess.Popen[str]:
        started.append(start_worker(url, **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def changed_settings(pooled: str) -> dict[str, str]:
    """Return what is not as it was when the sessions began, but for what a pooler keeps apart."""
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as conn:
        return dict(
            conn.execute(
                "select name, setting from pg_settings where source = 'session' and name not in "
                "('application_name', 'client_encoding', 'DateStyle', 'TimeZone') "
                # those of a transaction say 'session' after it, and begin anew with the next one
                "and name not like 'transaction\\_%'"
            ).fetchall()
        )


@pytest.mark.parametrize(
    "one", [one for group in pgbouncer.NEEDS_A_SESSION.values() for one in group]
)
def test_what_is_left_out_through_a_pooler_is_there(one: str) -> None:
    pattern, _, name = one.partition("::")
    texts = [path.read_text() for path in Path(__file__).parents[1].glob(pattern)]
    assert any(
        fnmatchcase(found, name) for text in texts for found in re.findall(r"def (test_\w+)", text)
    )


@pytest.mark.parametrize("listens", [True, False])
async def test_a_worker_polls_and_says_so_once(
    pooled: str, caplog: pytest.LogCaptureFixture, listens: bool
) -> None:
    async with TaskQueue(Config(database_url=pooled, listen=listens)) as queue:

        @queue.task
        async def work() -> int:
            return tasklib.current_task().attempt

        worker = queue.worker(handle_signals=False, poll_interval=0.1)
        with caplog.at_level(logging.WARNING, "tasklib.worker"):
            running = asyncio.create_task(worker.run())
            for _ in range(12):  # more than it takes for statements to be prepared
                result = await queue.get_result(await queue.enqueue(work), timeout=20)
                assert result is not None
                assert result.value == 1
            await worker.stop()
            await running

    assert caplog.text.count(POLLING) == (1 if listens else 0)
    assert not changed_settings(pooled)


async def test_a_pooler_that_cannot_be_recognised_is_found_out_by_trying(
    pooled: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def looks_direct(_self: Link, _connection: object) -> bool:
        return True

    monkeypatch.setattr(Link, "_is_direct", looks_direct)
    monkeypatch.setattr("tasklib.worker.link.HEARING_SECONDS", 0.5)
    link = Link(Config(database_url=pooled), "test link", lambda _payload: None)
    # Another client comes in between, as others do: what is said next is heard by nobody.
    with caplog.at_level(logging.WARNING, "tasklib.worker"):
        await link.listen()
    link.drop()

    assert not link.is_listening
    assert POLLING in caplog.text


def test_clients_share_sessions_and_prepare_nothing(
    queue: SyncTaskQueue, direct: Connection[Any]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda n: queue.enqueue("app.t", n=n), range(120)))

    assert len(set(ids)) == 120
    assert len(queue.list_tasks(limit=200)) == 120
    sessions = direct.execute(
        "select count(*) from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid() and backend_type = 'client backend'"
    ).fetchone()
    assert sessions
    assert sessions[0] <= 3  # two of the pooler's, and the fixture's own


def test_a_role_set_for_a_transaction_is_whose_call_it_is(
    pooled: str, direct: Connection[Any]
) -> None:
    people = [f"person_{uuid4().hex[:12]}" for _ in range(2)]
    for name in people:
        direct.execute(f"create role {name} in role tasklib_producer")  # pyright: ignore
    try:
        made: dict[str, set[object]] = {}
        for name in people * 3:
            with psycopg.connect(pooled, prepare_threshold=None) as conn:
                conn.execute(f"set local role {name}")  # pyright: ignore
                (task_id,) = conn.execute("select tasklib.enqueue('app.t')").fetchall()[0]
                made.setdefault(name, set()).add(task_id)
        for name in people:
            with psycopg.connect(pooled, prepare_threshold=None) as conn:
                conn.execute(f"set local role {name}")  # pyright: ignore
                assert {row[0] for row in conn.execute("select id from tasklib.list()")} == made[
                    name
                ]
        assert not changed_settings(pooled)
    finally:
        for name in people:
            direct.execute(f"drop role {name}")  # pyright: ignore


def test_startup_options_are_refused_in_words(pooled: str) -> None:
    config = Config(database_url=make_conninfo(pooled, options="-c statement_timeout=1000"))
    with pytest.raises(DatabaseUnavailable, match="unsupported startup parameter"):
        _connections.connect(config)


def test_migrate_and_doctor_work_through_it(pooled: str) -> None:
    assert migrate(pooled) == []
    found = CliRunner().invoke(main, ["--database-url", pooled, "doctor"])
    assert "there is a pooler between here and the server" in found.output
    assert "Traceback" not in found.output
    assert not changed_settings(pooled)


def test_the_keeper_of_a_killed_worker_hands_back_its_task(
    pooled: str, queue: SyncTaskQueue, start: Callable[..., subprocess.Popen[str]]
) -> None:
    first = start(pooled)
    task_id = queue.enqueue("app.sleep", seconds=2)
    wait_for(queue, task_id, lambda task: task.is_running)
    first.send_signal(signal.SIGKILL)
    start(pooled)

    task = wait_for(queue, task_id, lambda task: task.is_terminal)
    assert (task.state, task.result, task.retry_count) == ("completed", {"value": 2}, 1)


@pytest.mark.parametrize("name", ["app.credit", "app.acredit"])
def test_transactional_tasks_leave_their_effect_once(
    pooled: str,
    queue: SyncTaskQueue,
    direct: Connection[Any],
    start: Callable[..., subprocess.Popen[str]],
    name: str,
) -> None:
    direct.execute("create table effect (attempt int)")
    start(pooled)
    ids = [queue.enqueue(name, seconds=0.01) for _ in range(20)]
    for task_id in ids:
        assert wait_for(queue, task_id, lambda task: task.is_terminal).state == "completed"

    assert direct.execute("select count(*), max(attempt) from effect").fetchone() == (20, 1)
    assert not changed_settings(pooled)


def test_a_worker_survives_a_restart_of_the_pooler(
    narrow: PgBouncer,
    pooled: str,
    queue: SyncTaskQueue,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    start(pooled)
    across = queue.enqueue("app.sleep", seconds=3)
    wait_for(queue, across, lambda task: task.is_running)
    narrow.stop()
    time.sleep(0.5)
    narrow.start()
    after = queue.enqueue("app.sleep", seconds=0)

    for task_id in (across, after):
        task = wait_for(queue, task_id, lambda task: task.is_terminal)
        assert (task.state, task.attempt) == ("completed", 1)


def test_a_worker_notices_that_the_server_behind_the_pooler_is_another(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """Its own connection stays as it is: only the server can tell it."""
    server = embedded.temporary()
    with server as url:
        migrate(url)
        with PgBouncer(url, more="server_login_retry = 1") as pooler:
            through = pooler.conninfo(url)
            with SyncTaskQueue(Config(database_url=through)) as queue:
                worker = start(through)
                across = queue.enqueue("app.sleep", seconds=4)
                wait_for(queue, across, lambda task: task.is_running)
                server.shutdown()
                server.start()

                def enqueued() -> bool:
                    try:
                        ids.append(queue.enqueue("app.sleep", seconds=0))
                    except DatabaseUnavailable:
                        return False
                    return True

                ids = [across]
                wait_until(enqueued)
                for task_id in ids:
                    task = wait_for(queue, task_id, lambda task: task.is_terminal)
                    assert (task.state, task.attempt) == ("completed", 1)
                with psycopg.connect(url) as conn:
                    alive = conn.execute(
                        "select count(*) from tasklib.worker_health where alive"
                    ).fetchone()
                assert alive == (1,)
                # Its keeper would try to give back until the lease is over.
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(20) == 0
