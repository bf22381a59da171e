"""Test code that uses tasks: a pytest plugin, loaded by itself where the package is installed.

Ask for the fixture ``tasklib_database``, and the functions of ``tasklib`` talk to an empty
database of this test run. Then `drain` runs what was enqueued, `advance` lets time pass,
`assert_enqueued` looks, and `inline` does without a database.
"""

# Every pytest run imports this module: what it needs is imported where it is needed.
from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from tasklib._testing import Inlined
    from tasklib.config import Config
    from tasklib.models import Task
    from tasklib.registry import Registry, TaskFunction
    from tasklib.worker import WorkerStats

__all__ = [
    "adrain",
    "advance",
    "assert_enqueued",
    "assert_not_enqueued",
    "drain",
    "inline",
    "tasklib_config",
    "tasklib_database",
    "tasklib_inline",
]


@pytest.fixture(scope="session")
def tasklib_config() -> Generator[Config]:
    """The configuration of a migrated database that lives as long as this test run.

    ``TASKLIB_TEST_DATABASE_URL`` names a server to make it on; without it, a throw-away server is
    started.
    """
    from tasklib import _testing

    with _testing.run_database() as config:
        yield config


@pytest.fixture
def tasklib_database(tasklib_config: Config) -> Generator[Config]:
    """Empty the database of this run, and make it the one of ``tasklib``'s functions."""
    import tasklib
    from tasklib import _testing

    _testing.empty(tasklib_config)
    tasklib.init(tasklib_config)
    yield tasklib_config
    tasklib.close()


@pytest.fixture
def tasklib_inline() -> Generator[list[Inlined]]:
    """Run tasks where they are submitted; see `inline`."""
    with inline() as ran:
        yield ran


@contextmanager
def inline(registry: Registry | None = None) -> Generator[list[Inlined]]:
    """Run tasks where they are submitted, without a database.

    Arguments go through JSON as they would; exceptions reach the caller of ``delay``.

    Args:
        registry: Whose tasks; those of ``@tasklib.task`` when left out.

    Yields:
        What ran so far, in order: name, arguments, result.
    """
    from tasklib import _testing
    from tasklib import registry as registries

    chosen = registries.default_registry if registry is None else registry
    before, inliner = chosen.submitter, _testing.Inliner(chosen)
    chosen.submitter = inliner
    try:
        yield inliner.ran
    finally:
        chosen.submitter = before


def drain(
    *,
    config: Config | None = None,
    registry: Registry | None = None,
    queues: Iterable[str] | None = None,
    concurrency: int = 1,
) -> WorkerStats:
    """Run tasks with a worker in this process until nothing is due.

    Args:
        config: The database; that of `tasklib.init` when left out.
        registry: The tasks; those of ``@tasklib.task`` when left out.
        queues: As a worker takes them.
        concurrency: How many run at a time.

    Returns:
        What the worker did: ``completed``, ``failed`` and so on.
    """
    import asyncio

    return asyncio.run(
        adrain(config=config, registry=registry, queues=queues, concurrency=concurrency)
    )


async def adrain(
    *,
    config: Config | None = None,
    registry: Registry | None = None,
    queues: Iterable[str] | None = None,
    concurrency: int = 1,
) -> WorkerStats:
    """Run tasks until nothing is due; `drain` for async tests."""
    from tasklib import TaskWorker
    from tasklib._default import database

    worker = TaskWorker(
        config or database().config,
        registry=registry,
        queues=queues,
        concurrency=concurrency,
        drain=True,
        handle_signals=False,
    )
    await worker.run()
    return worker.stats


def advance(interval: timedelta | float, *, config: Config | None = None) -> None:
    """Let time pass: shift every stored time back by the interval.

    Plain SQL of this plugin; nothing in an installed database can do it.

    Args:
        interval: How much; a number is seconds.
        config: The database; that of `tasklib.init` when left out.
    """
    from tasklib import _testing

    seconds = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)
    _testing.shift(config, seconds)


def assert_enqueued(
    task: TaskFunction[..., Any] | str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    tags: Mapping[str, Any] | None = None,
    count: int | None = None,
) -> list[Task]:
    """Check that a task is pending.

    Args:
        task: The task, or its name.
        kwargs: Arguments that it has, among others, as JSON shows them.
        queue: Where it is.
        tags: Tags that it has, among others.
        count: How often; at least once when left out.

    Returns:
        The tasks found, newest first.
    """
    __tracebackhide__ = True
    from tasklib import _testing

    name = task if isinstance(task, str) else task.name
    pending, found = _testing.pending(name, kwargs, queue, tags)
    if not found if count is None else len(found) != count:
        wanted = "at least one" if count is None else count
        others = [each.kwargs for each in pending]
        raise AssertionError(
            f"{wanted} pending {name} with kwargs={kwargs} queue={queue} tags={tags} wanted, "
            f"{len(found)} found; pending are {others}"
        )
    return found


def assert_not_enqueued(
    task: TaskFunction[..., Any] | str, *, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Check that no such task is pending; see `assert_enqueued`."""
    __tracebackhide__ = True
    assert_enqueued(task, kwargs=kwargs, count=0)
