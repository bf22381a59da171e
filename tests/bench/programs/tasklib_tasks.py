"""The module that `tasklib worker` imports."""

from __future__ import annotations

import asyncio

from beat import ran

import tasklib


@tasklib.task(name="bench.noop")
async def noop(at: int = 0) -> None:
    ran(at)


@tasklib.task(name="bench.pause")
async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)
