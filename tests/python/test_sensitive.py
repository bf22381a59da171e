"""Sensitive arguments reach the task, and nobody else's eyes."""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import Connection

from tasklib import Cancel, Config, ConfigurationError, InvalidArguments, TaskQueue, TaskWorker
from tasklib.cli import main

SECRET = 'hunter2 "quoted"\n\u00e9'
PARTS = ("hunter2", "quoted")
SEEN: list[str] = []


def run(database: str, queue: TaskQueue) -> None:
    asyncio.run(
        TaskWorker(Config(database_url=database), registry=queue.registry, drain=True).run()
    )


@pytest.fixture
def queue(database: str) -> TaskQueue:
    """Tasks whose argument `token` is sensitive."""
    made = TaskQueue(Config(database_url=database))
    SEEN.clear()

    @made.task(name="keeps", sensitive=["token"])
    def keeps(token: str, note: str = "") -> str:
        SEEN.append(token)
        return note

    @made.task(name="tells", sensitive=["token"], max_retries=0)
    async def tells(token: str) -> None:
        raise ValueError(f"bad token {token!r} ({token}, {json.dumps(token)})")

    @made.task(name="cancels", sensitive=["token"])
    def cancels(token: str) -> None:
        raise Cancel(token)

    @made.task(name="nests", sensitive=["token"], max_retries=0)
    def nests(token: dict[str, Any]) -> None:
        raise ValueError(str(token))

    @made.task(name="counts", sensitive=["token"], max_retries=0)
    def counts(token: int) -> None: ...

    return made


def enqueue(conn: Connection[Any], name: str, **kwargs: object) -> None:
    conn.execute("select tasklib.enqueue(%s, %s)", [name, json.dumps(kwargs)])


def shown(conn: Connection[Any]) -> str:
    """Return all that views, functions and commands tell of the tasks."""
    rows = conn.execute(
        "select to_jsonb(t)::text from tasklib.tasks as t union all "
        "select to_jsonb(t)::text from tasklib.list() as t union all "
        "select to_jsonb(g)::text from tasklib.task, tasklib.get(task.id) as g union all "
        "select to_jsonb(f)::text from tasklib.failures as f"
    ).fetchall()
    url = conn.info.dsn
    ids = [str(row[0]) for row in conn.execute("select id from tasklib.task").fetchall()]
    commands = [["ls", "--json"], *[["show", each] for each in ids], ["top", "--json"]]
    told = [CliRunner().invoke(main, ["--database-url", url, *words]).output for words in commands]
    return "\n".join([*[row[0] for row in rows], *told])


def test_the_task_gets_what_nobody_sees(
    queue: TaskQueue, database: str, conn: Connection[Any]
) -> None:
    enqueue(conn, "keeps", token=SECRET, note="open")
    run(database, queue)
    assert [SECRET] == SEEN
    told = shown(conn)
    assert not [part for part in PARTS if part in told]
    assert '"token": "***"' in told
    assert "open" in told


@pytest.mark.parametrize("name", ["tells", "cancels"])
def test_errors_are_stored_without_it(
    queue: TaskQueue, database: str, conn: Connection[Any], name: str
) -> None:
    enqueue(conn, name, token=SECRET)
    run(database, queue)
    row = conn.execute("select error from tasklib.tasks").fetchone()
    assert row
    assert "***" in row[0]
    assert not [part for part in PARTS if part in shown(conn)]


def test_also_what_is_deep_inside_and_what_cannot_be_read(
    queue: TaskQueue, database: str, conn: Connection[Any]
) -> None:
    enqueue(conn, "nests", token={"a": ["hunter2"], "n": 12345678})
    enqueue(conn, "counts", token="hunter2")
    run(database, queue)
    told = shown(conn)
    assert "hunter2" not in told
    assert "12345678" not in told
    assert "counts: argument 'token': int_type, got ***" in told


@pytest.mark.parametrize(
    "kwargs", [{"token": ["hunter2"]}, {"token": "hunter2\x00"}, {"token": "hunter2\ud800"}]
)
def test_what_is_refused_is_not_quoted(queue: TaskQueue, kwargs: dict[str, Any]) -> None:
    task = queue.registry.tasks["keeps"]
    with pytest.raises(InvalidArguments) as refused:
        task.new((), kwargs)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_an_old_worker_uncovers_nothing(
    queue: TaskQueue, database: str, conn: Connection[Any]
) -> None:
    run(database, queue)
    enqueue(conn, "keeps", token=SECRET)
    conn.execute("select tasklib.register_worker('old', task_types => '[{\"name\": \"keeps\"}]')")
    assert "hunter2" not in shown(conn)
    conn.execute(
        "select tasklib.register_worker('new', "
        'task_types => \'[{"name": "keeps", "sensitive": []}]\')'
    )
    assert "hunter2" in shown(conn)


def test_only_arguments_that_there_are(queue: TaskQueue) -> None:
    with pytest.raises(ConfigurationError, match="no argument 'tokn'"):

        @queue.task(name="slip", sensitive=["tokn"])
        def slip(token: str) -> None: ...

    with pytest.raises(ConfigurationError, match="no list of names"):

        @queue.task(name="text", sensitive="token")
        def text(token: str) -> None: ...


@pytest.mark.parametrize("value", ["[1]", '{"a": 1}', '"token"', json.dumps(["a"] * 101)])
def test_the_database_takes_names_only(conn: Connection[Any], value: str) -> None:
    types = f'[{{"name": "a", "sensitive": {value}}}]'
    with pytest.raises(psycopg.Error) as refused:
        conn.execute("select tasklib.register_worker('w', task_types => %s)", [types])
    assert refused.value.sqlstate == "TL001"
