"""The functions of the module ``tasklib``: the code of the README, on a real server."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import tasklib
from tasklib import Config, TaskNotFound, TaskWorker, submit_task, task


async def test_a_task_is_submitted_run_and_read(app: None, config: Config) -> None:
    @task(max_retries=5, timeout_seconds=30)
    def send_email(to: str, subject: str) -> bool:
        return to != subject

    task_id = await submit_task(
        send_email, to="a@b.c", subject="Hi", priority=10, tags={"batch": "w1"}
    )
    submitted = tasklib.get_task(task_id)
    assert submitted is not None
    assert (submitted.state, submitted.is_pending, submitted.max_retries) == ("pending", True, 5)

    worker = TaskWorker(config, concurrency=4, handle_signals=False)
    run = asyncio.create_task(worker.run())
    result = await tasklib.get_result(task_id, timeout=5)
    await worker.stop()
    await run

    assert result is not None
    assert (result.state, result.value, result.error) == ("completed", True, None)
    finished = tasklib.get_task(task_id)
    assert finished is not None
    assert finished.result == {"value": True}
    assert finished.is_completed
    assert finished.is_terminal
    assert finished.has_result
    assert not finished.has_error


async def test_delay_blocks_and_adelay_awaits(app: None) -> None:
    @task
    def send(to: str, subject: str = "") -> None: ...

    ids = [send.delay("a@b.c", subject="Hi"), await send.adelay("b@c.d")]

    assert [found.id for found in await tasklib.alist_tasks()] == ids[::-1]
    found = await tasklib.aget_task(ids[0])
    assert found is not None
    assert found.kwargs == {"to": "a@b.c", "subject": "Hi"}


async def test_a_delay_and_a_time_keep_a_task_back(app: None) -> None:
    @task
    def work() -> None: ...

    soon = tasklib.get_task(await submit_task(work, delay_seconds=60))
    at = datetime.now(UTC) + timedelta(days=1)
    later = tasklib.get_task(await submit_task(work, scheduled_at=at))

    assert soon is not None
    assert later is not None
    assert soon.scheduled_at is not None
    assert soon.created_at is not None
    assert soon.scheduled_at - soon.created_at == timedelta(seconds=60)
    assert later.scheduled_at == at


async def test_a_unique_key_exists_once(app: None) -> None:
    @task
    def work() -> None: ...

    first = await submit_task(work, unique_key="k")

    assert await submit_task(work, unique_key="k") == first
    assert await submit_task(work, unique_key="other") != first


def test_tasks_are_listed_by_what_they_are(app: None) -> None:
    @task
    def one() -> None: ...

    @task(queue="mail")
    def two() -> None: ...

    first = one.options(tags={"a": "x"}).delay()
    second = two.delay()

    assert [found.id for found in tasklib.list_tasks()] == [second, first]
    assert [found.id for found in tasklib.list_tasks(name=one.name)] == [first]
    assert [found.id for found in tasklib.list_tasks(queue="mail")] == [second]
    assert [found.id for found in tasklib.list_tasks(tags={"a": "x"})] == [first]
    assert [found.id for found in tasklib.list_tasks(limit=1)] == [second]
    assert [found.id for found in tasklib.list_tasks(before=second)] == [first]
    assert tasklib.list_tasks(state="running") == []


def test_a_task_that_is_not_there_is_none(app: None) -> None:
    assert tasklib.get_task(uuid4()) is None


async def test_waiting_for_a_task_that_is_not_there_says_so(app: None) -> None:
    with pytest.raises(TaskNotFound, match="there is no task"):
        await tasklib.get_result(uuid4(), timeout=5)


async def test_waiting_ends_when_the_time_is_up(app: None) -> None:
    @task
    def work() -> None: ...

    assert await tasklib.get_result(work.delay(), timeout=0.05) is None


def test_an_id_may_be_text(app: None) -> None:
    @task
    def work() -> None: ...

    task_id = work.delay()

    assert tasklib.get_task(str(task_id)) == tasklib.get_task(task_id)
    with pytest.raises(tasklib.InvalidArguments, match="'abc' is not the id of a task"):
        tasklib.get_task("abc")


def test_a_cancelled_task_can_be_retried(app: None) -> None:
    @task
    def work() -> None: ...

    task_id = work.delay()

    assert tasklib.cancel_task(task_id) == "cancelled"
    assert tasklib.cancel_task(task_id) == "finished"
    assert tasklib.retry_task(task_id) == "pending"
    with pytest.raises(TaskNotFound):
        tasklib.cancel_task(uuid4())


def test_a_name_of_another_process_can_be_submitted(app: None) -> None:
    task_id = asyncio.run(submit_task("other.app.work", a=1))

    assert isinstance(task_id, UUID)
    assert asyncio.run(tasklib.aget_task(task_id)).kwargs == {"a": 1}  # pyright: ignore


def test_a_task_enqueues_where_it_came_from(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``init``, what a worker's tasks submit goes to the worker's database."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys, tasklib\n"
        "@tasklib.task\n"
        "def second() -> str: return 'done'\n"
        "@tasklib.task\n"
        "def first() -> str: return str(second.delay())\n"
        "config = tasklib.Config(database_url=sys.argv[1])\n"
        "with tasklib.SyncTaskQueue(config) as queue:\n"
        "    task_id = queue.enqueue(first)\n"
        "    asyncio.run(tasklib.TaskWorker(config, drain=True).run())\n"
        "    print(queue.get_result(queue.get_result(task_id).value, timeout=0).value)\n"
    )
    monkeypatch.setenv("TASKLIB_EMBEDDED", "never")
    command = [sys.executable, "-W", "error", str(program), database]

    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (printed.stdout, printed.stderr) == ("done\n", "")
