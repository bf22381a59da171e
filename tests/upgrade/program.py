"""A worker or a producer, run with the driver of any release: only what 0.1.0 had is used here.

Run as ``python FILE worker|producer URL FOLDER``, with the driver first in PYTHONPATH. It goes on
until SIGTERM. What it knows to be true goes into files in FOLDER, one JSON object a line: ``ran``,
``acknowledged``, ``rolled_back`` and ``errors``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

import tasklib

# Child processes import this file with the arguments of their worker.
FOLDER = Path(sys.argv[3])
PAUSE = 0.05


def note(kind: str, **what: Any) -> None:
    """Append a line to a file, in one write that no other one can tear."""
    with (FOLDER / f"{kind}-{os.getpid()}").open("ab", buffering=0) as file:
        file.write(json.dumps(what, default=str).encode() + b"\n")


# ---- tasks ---------------------------------------------------------------------------------------


def ran() -> None:
    """Note that the current attempt ran."""
    task = tasklib.current_task()
    note("ran", id=task.id, attempt=task.attempt)


@tasklib.task(name="up.loop")
async def on_loop(number: int) -> int:
    """Run on the loop."""
    ran()
    await asyncio.sleep(0.002)
    return number


@tasklib.task(name="up.thread")
def in_thread(number: int) -> int:
    """Run in a thread."""
    ran()
    time.sleep(0.002)
    return number


@tasklib.task(name="up.process", isolation="process")
def in_process(number: int) -> int:
    """Run in a child process."""
    ran()
    return number


@tasklib.task(name="up.flaky", max_retries=3, backoff={"base_seconds": 0.2})
async def flaky(number: int) -> int:
    """Fail once."""
    ran()
    if tasklib.current_task().retry_count == 0:  # what was given back unstarted does not count
        raise RuntimeError("the first attempt fails")
    return number


@tasklib.task(name="up.credit", transactional=True)
def credit(number: int) -> int:
    """Write, and complete in the same transaction."""
    task = tasklib.current_task()
    task.connection.execute(
        "insert into effect (id, attempt) values (%s, %s)", [task.id, task.attempt]
    )
    return number


@tasklib.task(name="up.acredit", transactional=True)
async def acredit(number: int) -> int:
    """The same on the loop."""
    task = tasklib.current_task()
    await task.connection.execute(
        "insert into effect (id, attempt) values (%s, %s)", [task.id, task.attempt]
    )
    return number


@tasklib.task(name="up.long")
async def long(number: int, seconds: float) -> int:
    """Run from before the upgrade until after it."""
    ran()
    for step in range(10):
        await asyncio.sleep(seconds / 10)
        tasklib.current_task().progress(step / 10)
    return number


@tasklib.task(name="up.long_thread", timeout_seconds=600)
def long_thread(number: int, seconds: float) -> int:
    """The same in a thread, and with a deadline."""
    ran()
    time.sleep(seconds)
    return number


KINDS = (on_loop, in_thread, in_process, flaky, credit, acredit)


# ---- producers -----------------------------------------------------------------------------------


class Producer:
    """Enqueues until told to stop, in several ways at once."""

    def __init__(self, config: tasklib.Config, conninfo: str) -> None:
        self._config = config
        self._conninfo = conninfo
        self._stopped = threading.Event()
        self._numbers = iter(range(10**9))
        self._longest = 0.0

    def run(self) -> None:
        """Go on until SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self._stopped.set())
        note("started", version=tasklib.__version__)
        threads = [
            threading.Thread(target=self._until_stopped, args=(each,))
            for each in (self._sync_loop, self._caller_loop, self._async_loop)
        ]
        for thread in threads:
            thread.start()
        while not self._stopped.wait(0.2):
            pass
        for thread in threads:
            thread.join()
        note("waited", longest=self._longest)

    def _until_stopped(self, body: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                body()
            except Exception as error:
                note("errors", error=f"{type(error).__name__}: {error}", at=time.time())
                time.sleep(0.1)

    def _sync_loop(self) -> None:
        with tasklib.SyncTaskQueue(self._config) as queue:
            while not self._stopped.is_set():
                number = next(self._numbers)
                kind = KINDS[number % len(KINDS)]
                began = time.monotonic()
                self._acknowledge(began, [queue.enqueue(kind, number=number)])
                many = [(on_loop, {"number": number}), (credit, {"number": number})]
                began = time.monotonic()
                self._acknowledge(began, queue.enqueue_many(many))
                time.sleep(PAUSE)

    def _caller_loop(self) -> None:
        """In transactions of the caller; one of five is rolled back."""
        with psycopg.connect(self._conninfo) as connection:
            while not self._stopped.is_set():
                number = next(self._numbers)
                kind = KINDS[number % len(KINDS)].options(connection=connection, delay_seconds=0.1)
                began = time.monotonic()
                task_id = kind.delay(number=number)
                if number % 5:
                    connection.commit()
                    self._acknowledge(began, [task_id])
                else:
                    connection.rollback()
                    note("rolled_back", id=task_id)
                time.sleep(PAUSE)

    def _async_loop(self) -> None:
        asyncio.run(self._async_body())

    async def _async_body(self) -> None:
        tasklib.init(self._config)
        while not self._stopped.is_set():
            number = next(self._numbers)
            began = time.monotonic()
            task_id = await tasklib.submit_task(
                KINDS[number % len(KINDS)], number=number, tags={"n": number % 7}
            )
            self._acknowledge(began, [task_id])
            found = await tasklib.aget_task(task_id)
            if found is None:
                note("errors", error="a task that was enqueued cannot be found", at=time.time())
            await asyncio.sleep(PAUSE)
        tasklib.close()

    def _acknowledge(self, began: float, ids: list[UUID]) -> None:
        self._longest = max(self._longest, time.monotonic() - began)
        for task_id in ids:
            note("acknowledged", id=task_id)


def main() -> None:
    """Be what the arguments say."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s"
    )
    config = tasklib.Config(database_url=sys.argv[2])
    if sys.argv[1] == "producer":
        Producer(config, sys.argv[2]).run()
    else:
        note("started", version=tasklib.__version__)
        asyncio.run(tasklib.TaskWorker(config, concurrency=4).run())


if __name__ == "__main__":
    main()
