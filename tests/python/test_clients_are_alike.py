"""The async and the blocking client are one interface; every call names its arguments rightly."""

import inspect
import re
from typing import Any
from uuid import uuid4

import pytest

import tasklib
from tasklib import EventLoopRunning, SyncTaskQueue, TaskQueue, _calls, _default, _worker_calls
from tasklib._calls import Call
from tasklib.models import NewTask

METHODS = sorted(
    name
    for name, value in vars(TaskQueue).items()
    if inspect.isfunction(value) and not name.startswith("_")
)
PAIRS = ["get_task", "list_tasks", "retry_task", "cancel_task"]

A = uuid4()
ENDED = _worker_calls.Ended("w", [], [], [])
CALLS: list[Call[Any]] = [
    _calls.enqueue(NewTask("a", "{}")),
    _calls.enqueue_many([]),
    _calls.get(A),
    _calls.list_tasks(None, None, None, None, 1, None),
    _calls.cancel(A),
    _calls.retry(A),
    _worker_calls.register_worker(None, 1, [], {}),
    _worker_calls.finish(ENDED),
    _worker_calls.exchange("w", [], 1),
    _worker_calls.exchange("w", [], 1, ENDED),
    _worker_calls.exchange("w", [], 1, None, _worker_calls.Idle(1, for_long=True)),
    _worker_calls.tick(),
    _worker_calls.deregister_worker("w"),
    Call(_worker_calls.HEARTBEAT, {"worker_id": "w"}, list),
    Call(_worker_calls.CANCEL_REQUESTS, {"worker_id": "w"}, list),
    Call(_worker_calls.CRASHED, {"worker_id": "w", "begun": []}, list),
]


@pytest.mark.parametrize("name", METHODS)
def test_both_clients_have_the_method_with_the_same_signature(name: str) -> None:
    a, b = getattr(TaskQueue, name), getattr(SyncTaskQueue, name)

    assert inspect.signature(a) == inspect.signature(b)
    assert not inspect.iscoroutinefunction(b)


def test_the_blocking_client_has_no_method_of_its_own() -> None:
    own = {name for name in vars(SyncTaskQueue) if not name.startswith("_")}
    assert own == {name for name in vars(TaskQueue) if not name.startswith("_")}


@pytest.mark.parametrize("name", PAIRS)
def test_the_functions_of_the_module_come_in_pairs(name: str) -> None:
    blocking, awaited = getattr(_default, name), getattr(_default, f"a{name}")

    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert inspect.iscoroutinefunction(awaited)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.sql.split("(")[0].split(".")[-1])
def test_a_call_uses_the_argument_names_of_its_function(conn: Any, call: Call[Any]) -> None:
    for call_text in re.split(r"(?=tasklib\.\w+\()", call.sql)[1:]:
        row = conn.execute(
            "select proargnames[1:pronargs] from pg_proc "
            "where pronamespace = 'tasklib'::regnamespace and proname = %s",
            re.match(r"tasklib\.(\w+)", call_text).groups(),  # pyright: ignore
        ).fetchone()

        assert row is not None
        assert set(re.findall(r"(\w+) =>", call_text)) <= set(row[0])
    assert set(re.findall(r"%\((\w+)\)s", call.sql)) == set(call.params)


async def test_the_blocking_client_refuses_a_running_loop(queue: SyncTaskQueue) -> None:
    @queue.task
    def work() -> None: ...

    for blocks in (queue.connect, queue.list_tasks, work.delay, lambda: queue.enqueue(work)):
        with pytest.raises(EventLoopRunning, match="Use TaskQueue there"):
            blocks()


def test_the_blocking_client_does_it_all(queue: SyncTaskQueue, drain: Any) -> None:
    @queue.task
    def add(a: int, b: int) -> int:
        return a + b

    one = queue.enqueue(add, 1, b=2)
    two, three = queue.enqueue_many(
        [(add, {"a": 3, "b": 4}), (add.options(queue="x"), {"a": 0, "b": 0})]
    )
    assert queue.get_result(one, timeout=0) is None
    assert drain(queue).completed == 2

    results = [queue.get_result(task_id, timeout=1) for task_id in (one, two)]
    assert [result and result.value for result in results] == [3, 7]
    assert queue.cancel_task(three) == "cancelled"
    assert queue.retry_task(three) == "pending"
    assert [task.id for task in queue.list_tasks(limit=2)] == [three, two]


async def test_the_async_client_does_it_all(aqueue: TaskQueue) -> None:
    @aqueue.task
    async def add(a: int, b: int) -> int:
        return a + b

    one = await aqueue.enqueue(add, 1, b=2)
    two, three = await aqueue.enqueue_many(
        [(add, {"a": 3, "b": 4}), (add.options(queue="x"), {"a": 0, "b": 0})]
    )
    assert await aqueue.get_result(one, timeout=0) is None
    await aqueue.worker(drain=True, handle_signals=False).run()

    results = [await aqueue.get_result(task_id, timeout=1) for task_id in (one, two)]
    assert [result and result.value for result in results] == [3, 7]
    assert await aqueue.cancel_task(three) == "cancelled"
    assert await aqueue.retry_task(three) == "pending"
    assert [task.id for task in await aqueue.list_tasks(limit=2)] == [three, two]
    assert await add.adelay(5, 6)
    assert add.delay(7, 8)


def test_a_database_without_the_queue_says_what_to_do(server: Any) -> None:
    url = server.conninfo(server.maintenance_dbname)
    with SyncTaskQueue(url) as queue, pytest.raises(tasklib.NotInstalled, match="tasklib migrate"):
        queue.list_tasks()


def test_a_database_that_cannot_be_reached_is_one_error() -> None:
    queue = SyncTaskQueue("postgresql://localhost:1/none?connect_timeout=2")
    with pytest.raises(tasklib.DatabaseUnavailable):
        queue.list_tasks()


def test_a_lost_connection_is_replaced(queue: SyncTaskQueue, conn: Any) -> None:
    queue.list_tasks()
    conn.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where application_name = 'tasklib' and datname = current_database()"
    )

    assert queue.list_tasks() == []
