"""Tasks of the workers that the tests start as processes.

Run as ``python FILE URL [LEASE [SHUTDOWN [WATCHDOG]]]``.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time

import tasklib


@tasklib.task(name="app.sleep")
def sleep(seconds: float) -> int:
    """Block a thread."""
    time.sleep(seconds)
    return tasklib.current_task().attempt


@tasklib.task(name="app.asleep")
async def asleep(seconds: float) -> int:
    """Wait on the loop."""
    await asyncio.sleep(seconds)
    return tasklib.current_task().attempt


@tasklib.task(name="app.block")
async def block(seconds: float) -> int:
    """Block the loop, as careless code does."""
    time.sleep(seconds)
    return tasklib.current_task().attempt


@tasklib.task(name="app.note")
async def note(path: str, seconds: float) -> None:
    """Write down, at the very end, that it ran to its end."""
    await asyncio.sleep(seconds)
    noted(path)


@tasklib.task(name="app.note_in_thread")
def note_in_thread(path: str, seconds: float) -> None:
    """The same in a thread."""
    time.sleep(seconds)
    noted(path)


def noted(path: str) -> None:
    """Append the task's id to a file, in one write that no other one can tear."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{tasklib.current_task().id}\n".encode())


@tasklib.task(name="app.hold")
async def hold(seconds: int) -> int:
    """Hold the interpreter in C code, so that no other thread of the process can run."""
    ctypes.PyDLL(None).sleep(seconds)
    return tasklib.current_task().attempt


@tasklib.task(name="app.crash")
async def crash() -> None:
    """Take the process along."""
    os.kill(os.getpid(), signal.SIGSEGV)


@tasklib.task(name="app.credit", transactional=True)
def credit(seconds: float) -> int:
    """Write, then wait before the commit, in the first attempt."""
    task = tasklib.current_task()
    task.connection.execute("insert into effect (attempt) values (%s)", [task.attempt])
    time.sleep(seconds if task.attempt == 1 else 0)
    return task.attempt


@tasklib.task(name="app.acredit", transactional=True)
async def acredit(seconds: float) -> int:
    """Write, then wait before the commit, in the first attempt."""
    task = tasklib.current_task()
    await task.connection.execute("insert into effect (attempt) values (%s)", [task.attempt])
    await asyncio.sleep(seconds if task.attempt == 1 else 0)
    return task.attempt


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    lease = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    config = tasklib.Config(
        database_url=sys.argv[1],
        lock_timeout_seconds=lease,
        base_retry_delay_seconds=0.1,
        shutdown_timeout_seconds=float(sys.argv[3]) if len(sys.argv) > 3 else 30.0,
        watchdog_seconds=float(sys.argv[4]) if len(sys.argv) > 4 else 3600.0,
    )
    asyncio.run(tasklib.TaskWorker(config, concurrency=4).run())
