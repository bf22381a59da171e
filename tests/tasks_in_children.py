"""Tasks that the tests run in child processes, which import this module by its name."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tasklib
from tasklib import Config, TaskQueue

queue = TaskQueue(Config(database_url="postgresql:///the_worker_has_its_own"))
task = queue.task
log = logging.getLogger("app.children")


@task(isolation="process", max_retries=0)
def look() -> dict[str, Any]:
    """Tell who is asked."""
    current = tasklib.current_task()
    return {
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "parent": os.getppid(),
        "id": str(current.id),
        "name": current.name,
        "queue": current.queue,
        "attempt": current.attempt,
        "tags": dict(current.tags),
        "headers": dict(current.headers),
        "cancelled": current.cancelled,
    }


@task(isolation="process", max_retries=0)
async def look_async() -> int:
    """Tell in a coroutine."""
    await asyncio.sleep(0)
    assert tasklib.current_task().attempt == 1
    return os.getpid()


@task(isolation="process", max_retries=0)
def fail() -> None:
    """Say so on the standard output, which is not the wire."""
    print("a line of the task's own", flush=True)
    raise LookupError("not today")


@task(isolation="process", max_retries=0)
def unstorable() -> object:
    """Return what JSON does not know."""
    return object()


@task(isolation="process", max_retries=0)
def count(n: int) -> int:
    """Take a number and nothing else."""
    return n


@task(isolation="process", max_retries=0)
def echo(text: str) -> str:
    """Give back what was given."""
    return text


@task(isolation="process")
def judge(verdict: str) -> None:
    """Say what shall become of the task."""
    match verdict:
        case "retry":
            raise tasklib.Retry(in_seconds=60)
        case "snooze":
            raise tasklib.Snooze(60)
        case _:
            raise tasklib.Cancel("no need")


@task(isolation="process", give_up_on=LookupError)
def give_up() -> None:
    """Fail with what is not worth another try."""
    raise KeyError("there is none")


@task(isolation="process", max_retries=0)
def spin(path: Path) -> None:
    """Compute for ever."""
    _note(path, os.getpid())
    try:
        while True:
            pass
    finally:
        path.with_suffix(".clean").touch()


@task(isolation="process", max_retries=0)
def hold_gil(path: Path) -> None:
    """Let nothing else happen in this process."""
    _note(path, os.getpid())
    _hold_gil()


@task(isolation="process", max_retries=0)
def ignore(path: Path) -> None:
    """Do not want to end, and have started something that does not want to, either."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    other = subprocess.Popen(["sleep", "600"])  # inherits what is ignored
    _note(path, os.getpid(), other.pid)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


@task(isolation="process", max_retries=0)
def clean_up(path: Path, seconds: float = 0) -> None:
    """End in order when that is asked."""
    _note(path, os.getpid())
    try:
        time.sleep(600)
    finally:
        time.sleep(seconds)
        path.with_suffix(".clean").write_text(str(tasklib.current_task().cancelled))


@task(isolation="process", max_retries=0)
async def clean_up_async(path: Path) -> None:
    """End in order when that is asked."""
    _note(path, os.getpid())
    try:
        while True:
            for _ in range(1_000_000):
                pass  # the signal comes here, most of the time
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        path.with_suffix(".clean").write_text("yes")
        raise


@task(isolation="process", max_retries=0)
def see(path: Path) -> str:
    """Look whether to end, and say how far it is."""
    _note(path, os.getpid())
    current = tasklib.current_task()
    n = 0
    while not current.cancelled:
        n += 1
        current.progress(0.5, "half of it")
        time.sleep(0.001)
    return "seen"


@task(isolation="process", max_retries=0)
def insist(path: Path) -> str:
    """Complete in spite of the signal."""
    _note(path, os.getpid())
    with contextlib.suppress(SystemExit):
        time.sleep(600)
    return "complete"


@task(isolation="process", max_retries=0)
def leave(path: Path) -> int:
    """End, and leave something running."""
    other = subprocess.Popen(["sleep", "600"])
    _note(path, other.pid)
    return os.getpid()


@task(isolation="process")
def die(how: str, path: Path | None = None) -> None:
    """End the process in the middle of it."""
    if path is not None:
        path.write_text(f"{tasklib.current_task().attempt}")
    sys.stderr.close()  # what Python says of a broken process is not what is tested
    os.close(2)
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "deaf":
            os.closerange(3, 4096)
            _hold_gil()
        case "babble":
            for descriptor in range(3, 4096):
                with contextlib.suppress(OSError):
                    os.write(descriptor, b"\0\0\0\1?")
            time.sleep(600)
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


@task(isolation="process", max_retries=0)
def write_log() -> None:
    """Log at two levels, and a traceback."""
    log.debug("not to be seen")
    log.warning("seen %s", "once", extra={"shelf": 7})
    try:
        raise LookupError("inside")
    except LookupError:
        log.exception("and this")


@task(isolation="process", max_retries=0)
def shout(path: Path) -> None:
    """Be about to say something, all the time."""
    _note(path, os.getpid())
    loud = logging.getLogger("app.loud")
    try:
        while True:
            loud.warning("%s", "A" * 1_000_000)
    finally:
        log.warning("bye")


@task
async def tick(path: Path, n: int) -> int:
    """Go on while others end, on the loop of the worker."""
    for _ in range(n):
        await asyncio.sleep(0.02)
    return os.getpid()


@task(isolation="process", max_retries=0)
def submit() -> str:
    """Enqueue another task, by the functions of the module ``tasklib``."""
    return str(asyncio.run(tasklib.submit_task("children.unknown", n=1)))


def _made() -> None:
    @task(isolation="process", name="children.inner", max_retries=0)
    def inner() -> int:
        return 7


_made()


def _hold_gil() -> None:
    """Hold the interpreter and wait in C, for a lock that this thread has itself."""
    mutex = ctypes.create_string_buffer(256)
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _note(path: Path, *pids: int) -> None:
    """Write process ids, all at once."""
    draft = path.with_suffix(".draft")
    draft.write_text(" ".join(map(str, pids)))
    draft.rename(path)
