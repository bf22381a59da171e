"""The least that is a durable queue: one table, rows deleted in the transaction that runs them.

It has no retries, no leases, no history and no results; it is the limit of what a table allows.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial

import beat
import psycopg

URL = os.environ["BENCH_URL"]
SIZE = int(os.environ.get("BENCH_BATCH", "1000"))

SCHEMA = """
create table task (id bigint generated always as identity primary key, at bigint not null)
"""
ENQUEUE = (
    "with added as (insert into task (at) select %s from generate_series(1, %s)) "
    "select pg_notify('task', '')"
)
TAKE = """
delete from task where id = any (array(
  select id from task order by id limit %s for update skip locked
)) returning at
"""


def setup() -> None:
    """Make the table."""
    with psycopg.connect(URL) as connection:
        connection.execute(SCHEMA)


def work() -> None:
    """Run tasks for ever."""
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute("listen task")
        while True:
            with connection.transaction():
                rows = connection.execute(TAKE, [SIZE]).fetchall()
                for (at,) in rows:
                    beat.ran(at)
            if not rows:
                for _ in connection.notifies(timeout=1, stop_after=1):
                    pass


async def produce() -> None:
    """Enqueue with the async connection, as the libraries do."""
    async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as connection:

        async def add(at: int, count: int) -> None:
            await connection.execute(ENQUEUE, [at, count])

        await beat.produce(partial(add, count=1), partial(add, 0))


if __name__ == "__main__":
    match beat.words()[0]:
        case "setup":
            setup()
        case "work":
            work()
        case _:
            asyncio.run(produce())
