"""Context managers around every attempt: `tasklib.around`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from typing import Any

import pytest

import tasklib
from tasklib import ConfigurationError, CurrentTask, SyncTaskQueue, TaskQueue
from tasklib.models import Task
from tasklib.registry import Registry
from tasklib.testing import inline
from tasklib.worker import hooks as running_hooks


def read(queue: SyncTaskQueue, task_id: Any) -> Task:
    task = queue.get_task(task_id)
    assert task is not None
    return task


def test_hooks_go_around_the_function_in_the_order_they_were_given(
    queue: SyncTaskQueue, drain: Any
) -> None:
    seen: list[str] = []

    def note(name: str) -> Callable[[CurrentTask], Generator[None]]:
        def hook(task: CurrentTask) -> Generator[None]:
            seen.append(f"{name} enters {task.name}")
            yield
            seen.append(f"{name} leaves")

        return hook

    queue.around(note("first"))
    queue.around(contextlib.contextmanager(note("second")))

    @queue.task(name="app.work")
    def work() -> None:
        seen.append("works")

    @queue.task(name="app.awork")
    async def awork() -> None:
        seen.append("works")

    for name in ("app.work", "app.awork"):
        seen.clear()
        queue.enqueue(name)
        assert drain(queue).completed == 1
        assert seen == [
            f"first enters {name}",
            f"second enters {name}",
            "works",
            "second leaves",
            "first leaves",
        ]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_hook_shares_thread_and_context_with_the_task(
    queue: SyncTaskQueue, drain: Any, is_async: bool
) -> None:
    trace: ContextVar[str] = ContextVar("trace", default="none")

    @queue.around
    def traced(task: CurrentTask) -> Generator[None]:
        assert tasklib.current_task().id == task.id
        trace.set(f"{task.headers['trace']} in {threading.get_ident()}")
        yield

    def body() -> bool:
        return trace.get() == f"t1 in {threading.get_ident()}"

    async def awork() -> bool:
        await asyncio.sleep(0)
        return body()

    task: Any = queue.task(awork if is_async else body)
    task_id = queue.enqueue(task.options(headers={"trace": "t1"}))
    drain(queue)

    assert read(queue, task_id).result == {"value": True}
    assert trace.get() == "none"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_hook_sees_the_exception_and_cannot_keep_it(
    queue: SyncTaskQueue, drain: Any, is_async: bool
) -> None:
    seen: list[str] = []

    @queue.around
    def outer(task: CurrentTask) -> Generator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(f"outer sees {error}")
            raise

    @queue.around
    def keeps_it(task: CurrentTask) -> contextlib.suppress:
        return contextlib.suppress(ValueError)

    @queue.around
    def inner(task: CurrentTask) -> Generator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(f"inner sees {error}")

    def boom() -> None:
        raise ValueError("no luck")

    async def aboom() -> None:
        boom()

    boom_task: Any = queue.task(aboom if is_async else boom)
    task_id = queue.enqueue(boom_task)
    drain(queue)

    task = read(queue, task_id)
    assert (task.state, seen) == ("failed", ["inner sees no luck", "outer sees no luck"])
    assert (task.error or "").endswith("ValueError: no luck\n")
    assert "tasklib/worker" not in (task.error or "").splitlines()[1]


def test_a_hooks_own_exception_ends_the_attempt_as_the_tasks_would(
    queue: SyncTaskQueue, drain: Any
) -> None:
    ran: list[str] = []

    @queue.around
    def guard(task: CurrentTask) -> Generator[None]:
        if task.name == "app.closed":
            raise tasklib.Cancel("closed today")
        try:
            yield
        except ConnectionError as error:
            raise tasklib.Retry("the session is gone", in_seconds=77) from error
        if task.name == "app.late":
            raise KeyError("commit")

    @queue.task(name="app.closed")
    def closed() -> None:
        ran.append("closed")

    @queue.task(name="app.broken")
    def broken() -> None:
        raise ConnectionError

    @queue.task(name="app.late", give_up_on=KeyError)
    def late() -> None: ...

    ids = [queue.enqueue(task) for task in (closed, broken, late)]
    drain(queue)

    ended = [read(queue, task_id) for task_id in ids]
    assert [(task.state, task.is_terminal) for task in ended] == [
        ("cancelled", True),
        ("failed", False),
        ("failed", True),
    ]
    assert "the session is gone" in (ended[1].error or "")
    assert ran == []


async def test_an_async_hook_goes_around_async_tasks_only(
    aqueue: TaskQueue, running: Callable[..., Any]
) -> None:
    seen: list[str] = []

    @aqueue.around
    async def session(task: CurrentTask) -> AsyncGenerator[None]:
        await asyncio.sleep(0)
        seen.append(f"enters {task.name}")
        try:
            yield
        finally:
            await asyncio.sleep(0)
            seen.append(f"leaves {task.name}")

    @aqueue.around
    @contextlib.asynccontextmanager
    async def decorated(task: CurrentTask) -> AsyncGenerator[None]:
        seen.append("decorated")
        yield

    @aqueue.around
    class Both:
        """Serves both kinds, each in its way."""

        def __init__(self, task: CurrentTask) -> None:
            self.name = task.name

        def __enter__(self) -> None:
            seen.append(f"sync {self.name}")

        def __exit__(self, *_raised: object) -> None: ...

        async def __aenter__(self) -> None:
            seen.append(f"async {self.name}")

        async def __aexit__(self, *_raised: object) -> None: ...

    @aqueue.task(name="app.work")
    def work() -> None: ...

    @aqueue.task(name="app.awork")
    async def awork() -> None: ...

    running()
    for task in (work, awork):
        result = await aqueue.get_result(await aqueue.enqueue(task), timeout=10)
        assert result is not None
        assert result.state == "completed"

    assert seen == [
        "sync app.work",
        "enters app.awork",
        "decorated",
        "async app.awork",
        "leaves app.awork",
    ]


def test_an_async_hook_cleans_up_when_its_task_is_interrupted(
    queue: SyncTaskQueue, drain: Any
) -> None:
    seen: list[str] = []

    @queue.around
    async def session(task: CurrentTask) -> AsyncGenerator[None]:
        try:
            yield
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            seen.append("closed")

    @queue.task(timeout_seconds=0.1)
    async def slow() -> None:
        await asyncio.sleep(60)

    task_id = queue.enqueue(slow)
    drain(queue)

    assert seen == ["cancelled", "closed"]
    assert "TimeoutError" in (read(queue, task_id).error or "")


@pytest.mark.parametrize("made", [None, contextlib.AsyncExitStack])
def test_a_hook_that_makes_the_wrong_thing_fails_the_attempt(
    queue: SyncTaskQueue, drain: Any, made: Any
) -> None:
    @queue.around
    def wrong(task: CurrentTask) -> Any:
        return made and made()

    @queue.task
    def work() -> None: ...

    task_id = queue.enqueue(work)
    drain(queue)

    assert "wrong made no context manager" in (read(queue, task_id).error or "")


async def coroutine(task: CurrentTask) -> None: ...


@pytest.mark.parametrize("hook", [coroutine, None, "text", contextlib.nullcontext()])
def test_what_makes_no_context_manager_is_refused(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="makes no context manager"):
        Registry().around(hook)


def test_hooks_go_around_inline_tasks(queue: SyncTaskQueue) -> None:
    registry, seen = queue.registry, list[str]()

    @registry.around
    def hook(task: CurrentTask) -> Generator[None]:
        seen.append(task.name)
        yield

    @registry.around
    async def ahook(task: CurrentTask) -> AsyncGenerator[None]:
        seen.append(f"async {task.name}")
        yield

    @registry.task(name="app.work")
    def work(hooks: int) -> int:
        return hooks

    @registry.task(name="app.awork")
    async def awork(func: int) -> int:
        return func

    with inline(registry) as ran:
        work.delay(1)
        awork.delay(2)

    assert [each.value for each in ran] == [1, 2]
    assert seen == ["app.work", "app.awork", "async app.awork"]


def test_the_modules_own_tasks_have_hooks(app: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasklib.registry import default_registry

    monkeypatch.setattr(default_registry, "hooks", [])
    seen: list[str] = []

    @tasklib.around
    def hook(task: CurrentTask) -> Generator[None]:
        seen.append(task.name)
        yield

    @tasklib.task(name="app.work")
    def work() -> None: ...

    work()
    assert seen == []
    work.delay()
    asyncio.run(tasklib.TaskWorker(drain=True, handle_signals=False).run())
    assert seen == ["app.work"]


def test_without_hooks_nothing_is_put_around() -> None:
    @Registry().task(name="app.work")
    def work() -> None: ...

    assert running_hooks.body(work) is work.func
