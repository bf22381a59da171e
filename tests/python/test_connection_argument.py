"""``connection=``: the task exists if and only if the caller's transaction commits."""

from collections.abc import AsyncGenerator, Generator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections as django_connections
from django.db import transaction
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import tasklib
from tasklib import InvalidArguments, submit_task

atomic: Any = transaction.atomic


@pytest.fixture
def work(app: None) -> tasklib.TaskFunction[..., Any]:
    @tasklib.task
    def work(n: int = 0) -> None: ...

    return work


def tasks() -> int:
    return len(tasklib.list_tasks())


def parts(database: str) -> dict[str, Any]:
    return {key: value for key, value in conninfo_to_dict(database).items() if value is not None}


@pytest.fixture
def engine(database: str) -> Generator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", connect_args=parts(database))
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(database: str) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine("postgresql+psycopg://", connect_args=parts(database))
    yield engine
    await engine.dispose()


@pytest.fixture
def django_connection(database: str) -> Generator[Any]:
    known = parts(database)
    entry = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": known["dbname"],
        "USER": known.get("user", ""),
        "PASSWORD": known.get("password", ""),
        "HOST": known.get("host", ""),
        "PORT": str(known.get("port", "")),
    }
    if not settings.configured:
        settings.configure(DATABASES={"default": {}})
    databases: Any = django_connections
    databases.databases["test"] = databases.configure_settings({"default": entry, "test": entry})[
        "test"
    ]
    yield django_connections["test"]
    django_connections["test"].close()
    del django_connections["test"]


def test_a_psycopg_transaction_takes_the_task_along(work: Any, make_conn: Any) -> None:
    connection = make_conn(autocommit=False)
    work.options(connection=connection).delay(n=1)
    assert tasks() == 0
    connection.rollback()
    work.options(connection=connection).delay(n=2)
    connection.commit()

    assert [task.kwargs for task in tasklib.list_tasks()] == [{"n": 2}]


async def test_submit_task_takes_a_blocking_connection_too(work: Any, make_conn: Any) -> None:
    connection = make_conn(autocommit=False)
    await submit_task(work, connection=connection)
    assert tasks() == 0
    connection.commit()

    assert tasks() == 1


async def test_an_async_psycopg_transaction_takes_the_task_along(work: Any, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await submit_task(work, n=1, connection=connection)
        await connection.rollback()
        await work.options(connection=connection).adelay(n=2)
        assert tasks() == 0

    assert [task.kwargs for task in tasklib.list_tasks()] == [{"n": 2}]


def test_a_sqlalchemy_session_takes_the_task_along(work: Any, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        work.options(connection=session).delay(n=1)
        session.rollback()
        work.options(connection=session).delay(n=2)
        assert tasks() == 0
        session.commit()

    assert [task.kwargs for task in tasklib.list_tasks()] == [{"n": 2}]


def test_a_sqlalchemy_connection_takes_the_task_along(work: Any, engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        work.options(connection=connection).delay(n=1)
        connection.rollback()
        work.options(connection=connection).delay(n=2)
        assert tasks() == 0
        connection.commit()
    with engine.begin() as connection:
        work.options(connection=connection).delay(n=3)

    assert [task.kwargs for task in tasklib.list_tasks()] == [{"n": 3}, {"n": 2}]


async def test_an_async_sqlalchemy_session_takes_the_task_along(
    work: Any, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session:
        await submit_task(work, n=1, connection=session)
        await session.rollback()
        await submit_task(work, n=2, connection=session)
        assert tasks() == 0
        await session.commit()
    async with async_engine.begin() as connection:
        await submit_task(work, n=3, connection=connection)

    assert [task.kwargs for task in tasklib.list_tasks()] == [{"n": 3}, {"n": 2}]


def test_a_django_transaction_takes_the_task_along(work: Any, django_connection: Any) -> None:
    task = work.options(connection=django_connection)
    with atomic(using="test"):
        task.delay(n=1)
        transaction.set_rollback(True, using="test")
    with atomic(using="test"):
        task.delay(n=2)
        assert tasks() == 0

    assert [found.kwargs for found in tasklib.list_tasks()] == [{"n": 2}]


def test_any_connection_with_cursors_will_do(work: Any, make_conn: Any) -> None:
    class Foreign:
        """The shape of a driver that TaskLib does not know."""

        def cursor(self) -> Any:
            return make_conn().cursor()

    work.options(connection=Foreign()).delay(n=1)

    assert tasks() == 1


@pytest.mark.parametrize("connection", [1, "postgresql://", object()])
def test_what_is_no_connection_is_refused(work: Any, connection: object) -> None:
    with pytest.raises(InvalidArguments, match="no connection that TaskLib knows"):
        work.options(connection=connection).delay()


async def test_an_async_connection_is_refused_by_a_blocking_call(
    work: Any, database: str, async_engine: AsyncEngine
) -> None:
    async with (
        await psycopg.AsyncConnection.connect(database) as plain,
        AsyncSession(async_engine) as session,
    ):
        for connection in (plain, session):
            with pytest.raises(InvalidArguments, match="is async"):
                work.options(connection=connection).delay()


def test_many_tasks_go_with_one_transaction(queue: tasklib.SyncTaskQueue, make_conn: Any) -> None:
    connection = make_conn(autocommit=False)
    queue.enqueue_many([("app.a", {}), ("app.b", {"n": 1})], connection=connection)
    assert queue.list_tasks() == []
    connection.commit()

    assert [task.name for task in queue.list_tasks()] == ["app.b", "app.a"]


def test_many_tasks_bound_to_one_connection_go_with_it(
    queue: tasklib.SyncTaskQueue, work: Any, make_conn: Any
) -> None:
    connection, other = make_conn(autocommit=False), make_conn()
    bound = work.options(connection=connection)
    queue.enqueue_many([(bound, {}), (bound.options(priority=1), {})])
    assert queue.list_tasks() == []
    connection.commit()
    assert len(queue.list_tasks()) == 2

    for mixed in ([(bound, {}), (work, {})], [(bound, {}), (work.options(connection=other), {})]):
        with pytest.raises(InvalidArguments, match="different connections"):
            queue.enqueue_many(mixed)


def test_an_error_of_the_queue_is_tasklibs_on_any_connection(
    work: Any, make_conn: Any, engine: sqlalchemy.Engine
) -> None:
    too_much = work.options(tags={"a": "x" * 20_000})
    with Session(engine) as session, pytest.raises(tasklib.LimitExceeded, match="tags has"):
        too_much.options(connection=session).delay()
    with pytest.raises(tasklib.LimitExceeded, match="tags has"):
        too_much.options(connection=make_conn()).delay()
