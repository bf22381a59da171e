"""Queues on the test's database, and workers that drain them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol

import pytest
from processes import start_worker

import tasklib
from tasklib import Config, SyncTaskQueue, TaskQueue, TaskWorker
from tasklib.registry import default_registry
from tasklib.worker import WorkerStats


@pytest.fixture
def config(database: str) -> Config:
    """A configuration of the test's database."""
    return Config(database_url=database)


@pytest.fixture
def queue(config: Config) -> Generator[SyncTaskQueue]:
    """The blocking client, with no tasks yet."""
    with SyncTaskQueue(config) as queue:
        yield queue


@pytest.fixture
async def aqueue(config: Config) -> AsyncGenerator[TaskQueue]:
    """The async client, with no tasks yet."""
    async with TaskQueue(config) as queue:
        yield queue


@pytest.fixture
def start(database: str) -> Generator[Callable[..., subprocess.Popen[str]]]:
    """Start worker processes; those left at the end of the test are killed."""
    started: list[subprocess.Popen[str]] = []

    def run(url: str = database, **options: float) -> subprocess.Popen[str]:
        process = start_worker(url, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


@pytest.fixture
def app(config: Config) -> Generator[None]:
    """The functions of the module ``tasklib`` use the test's database, and no task is known."""
    known = dict(default_registry.tasks)
    default_registry.tasks.clear()
    tasklib.init(config)
    yield
    tasklib.close()
    default_registry.tasks.clear()
    default_registry.tasks.update(known)


class Drain(Protocol):
    """Runs what is due in a queue, and returns what the worker did."""

    def __call__(self, queue: SyncTaskQueue, **options: Any) -> WorkerStats: ...


@pytest.fixture
def drain() -> Drain:
    def run(queue: SyncTaskQueue, **options: Any) -> WorkerStats:
        worker = queue.worker(drain=True, handle_signals=False, **options)
        asyncio.run(worker.run())
        return worker.stats

    return run


@pytest.fixture
async def running(aqueue: TaskQueue) -> AsyncGenerator[Callable[..., TaskWorker]]:
    """Start workers of the async client that are stopped when the test ends."""
    started: list[tuple[TaskWorker, asyncio.Task[None]]] = []

    def start(**options: Any) -> TaskWorker:
        worker = aqueue.worker(handle_signals=False, **options)
        started.append((worker, asyncio.create_task(worker.run())))
        return worker

    yield start
    for worker, task in started:
        await worker.stop()
        await task
