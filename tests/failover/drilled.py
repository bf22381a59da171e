"""The tasks of the failover tests: each run writes to a file, as it begins."""

from __future__ import annotations

import json
import os
import time
from uuid import uuid4

import tasklib

LEDGER = "FAILOVER_LEDGER"


def noted() -> str:
    """Write down that a run begins, in one write that no other one can tear; return its name."""
    run = str(uuid4())
    task = tasklib.current_task()
    line = {"task": str(task.id), "attempt": task.attempt, "run": run, "at": time.time()}
    with open(os.environ[LEDGER], "ab", buffering=0) as file:
        file.write(json.dumps(line | {"pid": os.getpid()}).encode() + b"\n")
    return run


@tasklib.task(name="drill.quick")
async def quick() -> str:
    """End at once."""
    return noted()


@tasklib.task(name="drill.slow")
def slow(seconds: float) -> str:
    """Run in a thread while things break."""
    run = noted()
    time.sleep(seconds)
    return run


@tasklib.task(name="drill.apart", isolation="process")
def apart(seconds: float) -> str:
    """The same in a process."""
    run = noted()
    time.sleep(seconds)
    return run


@tasklib.task(name="drill.hold")
def hold(path: str) -> str:
    """Run until a file appears."""
    run = noted()
    while not os.path.exists(path):
        time.sleep(0.05)
    return run


@tasklib.task(name="drill.effect", transactional=True)
def effect(seconds: float) -> str:
    """Leave a row that is there exactly once."""
    run = noted()
    task = tasklib.current_task()
    task.connection.execute("insert into effect (task_id, run) values (%s, %s)", (task.id, run))
    time.sleep(seconds)
    return run
