"""The plugin ``tasklib.testing``, tried on a project of its own."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

PROJECT = """
import asyncio
from datetime import timedelta

import pytest
import tasklib
from tasklib.testing import (
    adrain, advance, assert_enqueued, assert_not_enqueued, drain, inline,
)

@tasklib.task(name="app.add")
def add(a: int, b: int = 0) -> int:
    return a + b

@tasklib.task(name="app.aadd")
async def aadd(a: int) -> int:
    await asyncio.sleep(0)
    return tasklib.current_task().attempt + a

@tasklib.task(name="app.boom")
def boom() -> None:
    raise ValueError("no luck")

def test_drain_runs_what_is_due(tasklib_database):
    first = add.delay(1, 2)
    later = add.options(delay_seconds=60).delay(3)
    assert drain().completed == 1
    assert tasklib.get_task(first).result == {"value": 3}
    advance(timedelta(minutes=1))
    assert drain().completed == 1
    assert tasklib.get_task(later).is_completed

async def test_drain_for_async_tests(tasklib_database):
    task_id = await aadd.adelay(1)
    await adrain(concurrency=2)
    assert (await tasklib.get_result(task_id)).value == 2

def test_each_test_starts_empty(tasklib_database):
    assert tasklib.list_tasks() == []

def test_what_is_pending_can_be_asserted(tasklib_database):
    assert_not_enqueued(add)
    add.options(queue="mail", tags={"x": 1}).delay(1, b=[1][0])
    (task,) = assert_enqueued(add, kwargs={"a": 1}, queue="mail", tags={"x": 1}, count=1)
    assert task.kwargs == {"a": 1, "b": 1}
    assert_not_enqueued(add, kwargs={"a": 2})
    with pytest.raises(AssertionError, match="at least one pending app.add"):
        assert_enqueued(add, kwargs={"a": 2})

def test_inline_runs_tasks_where_they_are_submitted(tasklib_inline):
    add.delay(1, 2)
    aadd.delay(1)
    with pytest.raises(ValueError, match="no luck"):
        boom.delay()
    with pytest.raises(tasklib.InvalidArguments):
        add.delay("1")
    assert [(each.name, each.kwargs, each.value) for each in tasklib_inline] == [
        ("app.add", {"a": 1, "b": 2}, 3), ("app.aadd", {"a": 1}, 2),
    ]

async def test_inline_inside_a_loop():
    with inline() as ran:
        await tasklib.submit_task(aadd, a=1)
        await tasklib.submit_task(add, a=1)
        aadd.delay(2)
    assert [each.value for each in ran] == [2, 1, 3]
"""


def test_a_project_can_test_its_tasks(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setenv("TASKLIB_TEST_DATABASE_URL", database)
    pytester.makepyfile(PROJECT)
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n"
    )

    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")

    result.assert_outcomes(passed=6)


def test_a_project_needs_no_server_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "def test_it(tasklib_database):\n"
        "    import tasklib\n"
        "    assert tasklib.list_tasks() == []\n"
    )

    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=1)


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, tasklib.testing\n"
        "heavy = {'pydantic', 'psycopg', 'asyncio', 'tasklib.client'} & set(sys.modules)\n"
        "print(sorted(heavy - before))\n"
    )
    code = "import sys, pytest\nbefore = set(sys.modules)\n" + code
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout

    assert printed.strip() == "[]"
