"""Producers with TaskLib's own clients; BENCH_MODE=sync takes the blocking one."""

from __future__ import annotations

import asyncio
import os

import beat

import tasklib

IS_SYNC = os.environ.get("BENCH_MODE") == "sync"


async def blocking() -> None:
    """Enqueue from ordinary code, in a thread without an event loop."""
    queue = tasklib.SyncTaskQueue()

    @queue.task(name="bench.noop")
    def noop(at: int = 0) -> None: ...

    with queue:

        async def one(at: int) -> None:
            await asyncio.to_thread(queue.enqueue, noop, at=at)

        async def many(count: int) -> None:
            await asyncio.to_thread(queue.enqueue_many, [(noop, {"at": 0})] * count)

        await beat.produce(one, many)


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
    asyncio.run(blocking() if IS_SYNC else main())
