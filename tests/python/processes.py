"""Workers as processes of their own, and what is left of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from tasklib import SyncTaskQueue
from tasklib.models import Task

PROGRAM = Path(__file__).with_name("tasks_for_processes.py")
Start = Callable[..., subprocess.Popen[str]]


def start_worker(
    url: str, lease: float = 60, shutdown: float = 30, watchdog: float = 3600
) -> subprocess.Popen[str]:
    """Start a worker of the tasks in ``tasks_for_processes.py``."""
    command = [sys.executable, str(PROGRAM), url, *map(str, (lease, shutdown, watchdog))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.05)


def wait_for(queue: SyncTaskQueue, task_id: UUID, condition: Callable[[Task], bool]) -> Task:
    """Read a task until it is as wanted."""
    deadline = time.monotonic() + 30
    while True:
        task = queue.get_task(task_id)
        assert task is not None
        if condition(task):
            return task
        assert time.monotonic() < deadline, f"still not so: {task!r}"
        time.sleep(0.05)


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read what a worker logs until it has said something."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"it ended without saying {text!r}")


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def is_alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
