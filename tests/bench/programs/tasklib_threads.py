"""The same for threads: the task is an ordinary function."""

from __future__ import annotations

from beat import ran

import tasklib


@tasklib.task(name="bench.noop")
def noop(at: int = 0) -> None:
    ran(at)
