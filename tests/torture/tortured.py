"""The tasks: some do their work, some fail, and some are the trouble themselves.

Each attempt says in the ledger when it began and how it ended, and returns a token that it wrote
there: so the end of the run knows which attempt a stored result is from.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import secrets
import signal
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sabotage
from ledger import Ledger

import tasklib
from tasklib import CurrentTask, current_task, task

FOLDER = Path(os.environ.get("TORTURE_FOLDER", "."))
LEASE = float(os.environ.get("TORTURE_LEASE", "5"))
OVER = FOLDER / "over"
# How many attempts and crashes never end a task that has to be completed.
SURE: Any = {
    "max_retries": 1000,
    "max_crashes": 1000,
    "backoff": {"base_seconds": 0.2, "multiplier": 1},
}
SOON: Any = {"backoff": {"base_seconds": 0.2, "multiplier": 1}}
CHANCE = random.Random()

_ledger: Ledger | None = None
_token: ContextVar[str] = ContextVar("token")

sabotage.apply_to_driver(os.environ.get("TORTURE_MUTANT"))


def ledger() -> Ledger:
    """Return this process's ledger."""
    global _ledger
    if _ledger is None:
        (FOLDER / "ledger").mkdir(exist_ok=True)
        _ledger = Ledger(FOLDER / "ledger", "tasks")
    return _ledger


@tasklib.around
def written(running: CurrentTask) -> Generator[None]:
    """Write when an attempt begins and ends."""
    token = f"{running.attempt}.{secrets.token_hex(4)}"
    _token.set(token)
    words = {"task": running.id, "attempt": running.attempt, "worker": running.worker_id}
    ledger().write("began", token=token, kind=running.name, pid=os.getpid(), **words)
    how = "returned"
    try:
        yield
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        ledger().write("ended", token=token, how=how, **words)


async def sleep(seconds: float, is_enough: Callable[[], bool] = OVER.exists) -> None:
    """Sleep, for shorter when the run is over."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not (left > 0.2 and is_enough()):
        await asyncio.sleep(min(left, 0.2))


def sleep_here(seconds: float, is_enough: Callable[[], bool] = OVER.exists) -> None:
    """Sleep in a thread or a process of its own."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not (left > 0.2 and is_enough()):
        time.sleep(min(left, 0.2))


# ---- tasks that have to be completed -------------------------------------------------------------


@task(name="quick", **SURE)
async def quick(mark: str, seconds: float = 0.0) -> str:
    if seconds:
        await asyncio.sleep(seconds)
    return _token.get()


@task(name="thread", **SURE)
def in_thread(mark: str, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return _token.get()


@task(name="child", isolation="process", **SURE)
def in_child(mark: str, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return _token.get()


EFFECT = "insert into torture.effect (task_id, attempt, mark) values (%s, %s, %s)"


@task(name="move", transactional=True, **SURE)
async def move(mark: str, seconds: float = 0.0) -> str:
    me = current_task()
    await me.connection.execute(EFFECT, (me.id, me.attempt, mark))
    await asyncio.sleep(seconds)
    return _token.get()


@task(name="move_in_thread", transactional=True, **SURE)
def move_in_thread(mark: str, seconds: float = 0.0) -> str:
    me = current_task()
    me.connection.execute(EFFECT, (me.id, me.attempt, mark))
    time.sleep(seconds)
    return _token.get()


@task(name="long", **SURE)
async def long(mark: str) -> str:
    current_task().progress(0.5, "outliving the lease")
    await sleep(LEASE * CHANCE.uniform(1.2, 2.2))
    return _token.get()


@task(name="long_in_thread", **SURE)
def long_in_thread(mark: str) -> str:
    sleep_here(LEASE * CHANCE.uniform(1.2, 2.2))
    return _token.get()


@task(name="flaky", **SURE)
def flaky(mark: str) -> str:
    if CHANCE.random() < 0.5:
        raise ConnectionError("somebody else's fault")
    return _token.get()


@task(name="again", **SURE)
async def again(mark: str) -> str:
    if CHANCE.random() < 0.5:
        raise tasklib.Retry(in_seconds=0.1)
    return _token.get()


@task(name="snooze", **SURE)
async def snooze(mark: str) -> str:
    if CHANCE.random() < 0.5:
        raise tasklib.Snooze(0.1)
    return _token.get()


@task(name="calm", queue="calm", **SURE)
async def calm(mark: str, seconds: float = 0.0) -> str:
    await sleep(seconds)
    return _token.get()


if os.environ.get("TORTURE_RARE"):
    # Only one worker knows this one: while it is dead, such tasks are parked.
    @task(name="rare", **SURE)
    async def rare(mark: str) -> str:
        return _token.get()


# ---- tasks that fail or are cancelled ------------------------------------------------------------


@task(name="give_up", **SURE)
async def give_up(mark: str) -> str:
    raise tasklib.Cancel("not wanted any more")


@task(name="broken", max_retries=2, **SOON)
async def broken(mark: str) -> str:
    raise ValueError("always")


@task(name="typed", max_retries=2, **SOON)
async def typed(mark: str, count: int) -> str:
    return _token.get()


# ---- tasks that hang -----------------------------------------------------------------------------


@task(name="hang", timeout_seconds=1, max_retries=1, **SOON)
async def hang(mark: str) -> str:
    await sleep(60)
    return _token.get()


@task(name="hang_in_thread", timeout_seconds=1, max_retries=1, **SOON)
def hang_in_thread(mark: str) -> str:
    # Now and then for so long that the worker has itself replaced.
    sleep_here(CHANCE.choice([2, 2, 2, 8]))
    return _token.get()


@task(name="hang_in_child", isolation="process", timeout_seconds=1, max_retries=1, **SOON)
def hang_in_child(mark: str) -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep_here(60)
    return _token.get()


# ---- tasks that take their process with them -----------------------------------------------------


def _die() -> None:
    if CHANCE.random() < 0.5:
        os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(17)


@task(name="crash_child", isolation="process", max_crashes=2, **SOON)
def crash_child(mark: str) -> str:
    _die()
    return _token.get()


@task(name="crash_worker", max_crashes=2, **SOON)
def crash_worker(mark: str) -> str:
    _die()
    return _token.get()


@task(name="hog", isolation="process", max_retries=1, **SOON)
def hog(mark: str) -> str:
    """Take more memory than there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, hard))
    try:
        held = [bytearray(10_000_000) for _ in range(1000)]
        return str(len(held))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
