"""The same for threads: the task is an ordinary function."""

from __future__ import annotations

import tasklib
from beat import ran


@tasklib.task(name="bench.noop")
def noop(at: int = 0) -> None:
    ran(at)
