"""Celery with Redis: ten threads, prefetching ahead, no results, no gossip."""
# pyright: reportMissingImports=false
# pyright: reportUntypedFunctionDecorator=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import os

import beat
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 10


@app.task(name="noop")
def noop(at: int) -> None:
    beat.ran(at)


def one(at: int) -> None:
    noop.delay(at)


def many(count: int) -> None:
    """There is no call for many; the first says when the worker begins."""
    for number in range(count):
        noop.delay(1 if number == 0 else 0)


def work() -> None:
    """Run tasks until the end."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", "--pool", "threads", "--concurrency", "10", *quiet])


if __name__ == "__main__":
    if beat.words()[0] == "work":
        work()
    else:
        beat.produce_blocking(one, many)
