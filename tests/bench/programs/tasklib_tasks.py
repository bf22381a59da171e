"""The module that `tasklib worker` imports."""

from __future__ import annotations

import tasklib
from beat import ran


@tasklib.task(name="bench.noop")
async def noop(at: int = 0) -> None:
    ran(at)
