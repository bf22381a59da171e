"""Producers with TaskLib's own clients; BENCH_MODE=sync takes the blocking one."""

from __future__ import annotations

import asyncio
import os

import beat

import tasklib


def blocking() -> None:
    """Enqueue from ordinary code."""
    queue = tasklib.SyncTaskQueue()

    @queue.task(name="bench.noop")
    def noop(at: int = 0) -> None: ...

    def one(at: int) -> None:
        queue.enqueue(noop, at=at)

    def many(count: int) -> None:
        queue.enqueue_many([(noop, {"at": 0})] * count)

    with queue:
        beat.produce_blocking(one, many)


async def main() -> None:
    queue = tasklib.TaskQueue()

    @queue.task(name="bench.noop")
    async def noop(at: int = 0) -> None: ...

    async def one(at: int) -> None:
        await queue.enqueue(noop, at=at)

    async def many(count: int) -> None:
        await queue.enqueue_many([(noop, {"at": 0})] * count)

    async with queue:
        await beat.produce(one, many)


if __name__ == "__main__":
    if os.environ.get("BENCH_MODE") == "sync":
        blocking()
    else:
        asyncio.run(main())
