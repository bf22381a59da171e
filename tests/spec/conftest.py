"""The store of a test, as a user sets it up, and a worker that runs beside the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

import tasklib
from tasklib import Config, TaskWorker

Working = Callable[..., AbstractAsyncContextManager[TaskWorker]]


@pytest.fixture
def config(database: str) -> Config:
    return Config(database_url=database)


@pytest.fixture
def app(config: Config) -> Generator[Config]:
    """The functions of the module use the test's database."""
    tasklib.init(config)
    yield config
    tasklib.close()


@pytest.fixture
def working(app: Config) -> Working:
    """A worker that runs until the block ends."""

    @asynccontextmanager
    async def run(config: Config = app, **options: Any) -> AsyncGenerator[TaskWorker]:
        worker = TaskWorker(config, **options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            await worker.stop()
            await asyncio.wait_for(running, 20)

    return run
