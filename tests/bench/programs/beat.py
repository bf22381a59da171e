"""What every Python program of the benchmark shares: how a task says that it ran, and a producer.

A task with ``at`` writes how long ago that was, in nanoseconds; of the others each hundredth writes
one byte. That costs a task next to nothing, and the benchmark follows a drain without asking the
server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

EVERY = 100

_count = itertools.count(1)
_flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_beats = os.open(os.environ.get("BENCH_BEATS", os.devnull), _flags)
_lines = os.open(os.environ.get("BENCH_LINES", os.devnull), _flags)


def ran(at: int) -> None:
    """Say that a task runs now."""
    if at:
        os.write(_lines, b"%d %d\n" % (os.getpid(), time.monotonic_ns() - at))
    elif next(_count) % EVERY == 0:
        os.write(_beats, b".")


def words() -> tuple[str, int, int]:
    """Return what the command line asks for: verb, number of tasks, size of a batch."""
    numbers = [int(word) for word in sys.argv[2:4]]
    return sys.argv[1], *[*numbers, 0, 0][:2]  # pyright: ignore[reportReturnType]


def say(**figures: object) -> None:
    """Hand figures to the benchmark."""
    print(json.dumps(figures), flush=True)


async def produce(
    one: Callable[[int], Awaitable[object]],
    many: Callable[[int], Awaitable[object]],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Enqueue as the command line says: ``one N``, ``bulk N BATCH`` or ``pings N MILLISECONDS``.

    Args:
        one: Enqueues one task with this ``at``.
        many: Enqueues so many tasks at once.
        sleep: Waits between two tasks.
    """
    verb, count, size = words()
    started = time.perf_counter()
    cpu = time.process_time()
    match verb:
        case "one":
            for _ in range(count):
                await one(0)
        case "bulk":
            for _ in range(count // size):
                await many(size)
        case "pings":
            await _pings(one, count, size / 1000, sleep)
        case _:
            raise SystemExit(f"{verb}: no such verb")
    say(seconds=time.perf_counter() - started, cpu=time.process_time() - cpu)


def produce_blocking(one: Callable[[int], object], many: Callable[[int], object]) -> None:
    """Do the same without an event loop, with functions that block."""

    def waiting(function: Callable[[Any], object]) -> Callable[[Any], Awaitable[object]]:
        async def call(argument: Any) -> object:
            return function(argument)

        return call

    # It never waits for anything, so that one step takes it to its end.
    with contextlib.suppress(StopIteration):
        produce(waiting(one), waiting(many), waiting(time.sleep)).send(None)


async def _pings(
    one: Callable[[int], Awaitable[object]],
    count: int,
    interval: float,
    sleep: Callable[[float], Awaitable[object]],
) -> None:
    due = time.perf_counter()
    for _ in range(count):
        await one(time.monotonic_ns())
        due += interval
        if (pause := due - time.perf_counter()) > 0:
            await sleep(pause)
        else:
            due -= pause
