"""pgqueuer: asyncpg, uvloop, and the autovacuum settings of its guide."""
# pyright: reportMissingImports=false
# pyright: reportUntypedFunctionDecorator=false

from __future__ import annotations

import json
import os

import asyncpg
import beat
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

URL = os.environ["BENCH_URL"]
SIZE = int(os.environ.get("BENCH_BATCH", "1000"))


async def setup(connection: asyncpg.Connection) -> None:
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()


async def work(connection: asyncpg.Connection) -> None:
    queue = PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint("noop")
    async def noop(job: Job) -> None:
        beat.ran(json.loads(job.payload)["at"] if job.payload else 0)

    await queue.run(batch_size=SIZE)


async def produce(connection: asyncpg.Connection) -> None:
    queries = Queries(AsyncpgDriver(connection))

    async def one(at: int) -> None:
        await queries.enqueue("noop", json.dumps({"at": at}).encode())

    async def many(count: int) -> None:
        payload = [json.dumps({"at": 0}).encode()] * count
        await queries.enqueue(["noop"] * count, payload, [0] * count)

    await beat.produce(one, many)


async def main() -> None:
    connection = await asyncpg.connect(URL)
    await {"setup": setup, "work": work}.get(beat.words()[0], produce)(connection)


if __name__ == "__main__":
    uvloop.run(main())
