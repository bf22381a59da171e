"""procrastinate: the psycopg connector, 30 tasks at a time, finished jobs deleted."""
# pyright: reportMissingImports=false
# pyright: reportUntypedFunctionDecorator=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import asyncio
import os

import beat
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_URL"]))


@app.task(name="noop")
async def noop(at: int) -> None:
    beat.ran(at)


async def one(at: int) -> None:
    await noop.defer_async(at=at)


async def many(count: int) -> None:
    await noop.batch_defer_async(*[{"at": 0}] * count)


async def main() -> None:
    async with app.open_async():
        match beat.words()[0]:
            case "setup":
                await app.schema_manager.apply_schema_async()
            case "work":
                await app.run_worker_async(concurrency=30, delete_jobs="always")
            case _:
                await beat.produce(one, many)


if __name__ == "__main__":
    asyncio.run(main())
