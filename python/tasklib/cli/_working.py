"""A worker process at work: how it follows its supervisor, says how far it is, and begins again."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import NoReturn

from tasklib.worker import TaskWorker

from ._children import this_command
from ._progress import Show, progress
from ._pulse import beat
from ._supervised import Supervisor

logger = logging.getLogger("tasklib.cli")

PROGRESS_SECONDS = 0.2
# Set while a process is executed again in its own place: it has greeted already.
AGAIN = "_TASKLIB_AGAIN"


async def run(worker: TaskWorker, supervisor: Supervisor | None, *, shows_progress: bool) -> None:
    """Run the worker, and say how far it is when somebody waits for its end."""
    if supervisor is not None:
        _obey(supervisor, worker)
    beating = asyncio.create_task(beat(worker))
    try:
        if shows_progress:
            await _show_progress(worker, alone=supervisor is None)
        else:
            await worker.run()
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating  # removes its file


def execute_again() -> NoReturn:
    """Start afresh in the same place: what the memory held, and threads that do not end, are gone.

    With the end that a process has in order: exec by itself would leave that out.
    """
    os.environ[AGAIN] = "1"
    logging.shutdown()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    sys.stderr.flush()
    command = this_command()
    os.execv(command[0], command)


def _obey(supervisor: Supervisor, worker: TaskWorker) -> None:
    """Stop and leave as the supervisor says; SIGTERM from others says to stop, however often."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def leave() -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(task.cancel)

    supervisor.stop = worker.request_stop
    supervisor.leave = leave
    loop.add_signal_handler(signal.SIGTERM, worker.request_stop)


async def _show_progress(worker: TaskWorker, *, alone: bool) -> None:
    with progress(logger.info, alone=alone) as show:
        told = asyncio.create_task(_tell(worker, show))
        try:
            await worker.run()
        finally:
            told.cancel()
    logger.info("done: %s", _done(worker))


async def _tell(worker: TaskWorker, show: Show) -> None:
    while True:
        show(_done(worker))
        await asyncio.sleep(PROGRESS_SECONDS)


def _done(worker: TaskWorker) -> str:
    counts = asdict(worker.stats)
    running = counts.pop("claimed") - sum(counts.values())
    done = [f"{count:,} {what}" for what, count in counts.items() if count or what == "completed"]
    return ", ".join([*done, f"{running:,} in hand"] if running > 0 else done)
