"""The worker's side of its keeper, the process that keeps its leases; `keeping` is its program."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasklib import _connections, _worker_calls
from tasklib.config import Config
from tasklib.worker.context import Run
from tasklib.worker.link import pause_after

log = logging.getLogger("tasklib.worker")

ID_BYTES = 36
PROGRAM = Path(__file__).with_name("keeping.py")
SQL = {
    "heartbeat": _worker_calls.HEARTBEAT,
    "cancel_requests": _worker_calls.CANCEL_REQUESTS,
    "set_progress": _worker_calls.SET_PROGRESS,
    "tick": _worker_calls.TICK,
    "crashed": _worker_calls.CRASHED,
}


class Begun:
    """Which tasks have begun, in memory that the keeper can read when this process is gone.

    What was claimed ahead and had not begun cannot be to blame for the death of the worker. Writing
    an id here costs a task a fraction of a microsecond; a message would cost a hundred times that.

    Args:
        slots: How many may be under way at a time.

    Attributes:
        descriptor: Of the memory, for the keeper.
    """

    def __init__(self, slots: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(slots * ID_BYTES)
            self._memory = mmap.mmap(file.fileno(), slots * ID_BYTES)
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self._free = list(range(0, slots * ID_BYTES, ID_BYTES))
        # By run, as a thread may still be at an attempt that timed out when the next one begins.
        self._places: dict[Run, int] = {}

    def add(self, run: Run) -> None:
        """Note that a run begins."""
        place = self._places[run] = self._free.pop()
        self._memory[place : place + ID_BYTES] = run.claimed.id.encode()

    def remove(self, run: Run) -> None:
        """Note that nothing of it runs any more."""
        place = self._places.pop(run)
        self._memory[place : place + ID_BYTES] = bytes(ID_BYTES)
        self._free.append(place)


class Keeper:
    """Starts the keeper, tells it what to keep, and hears what it found; one that died comes back.

    Args:
        config: The database, and the lease.
        slots: How many tasks may be under way at a time.
        cancel: Called on the loop with the ids of tasks that were asked to stop.
        lost: Called on the loop with a registration that is no more.

    Attributes:
        begun: The tasks that have begun.
    """

    def __init__(
        self,
        config: Config,
        slots: int,
        cancel: Callable[[list[str]], None],
        lost: Callable[[str], None],
    ) -> None:
        self.begun = Begun(slots)
        self._config = config
        self._cancel = cancel
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        self._heard = b""
        self._known: set[str] = set()
        self._groups: set[int] = set()
        self._failures = 0
        self._restart: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the keeper; None when there is none at the moment."""
        return self._process and self._process.pid

    async def start(self) -> None:
        """Start the process; it is at work before the first task runs."""
        # Finding the store again may take a moment: not on the loop.
        self._conninfo = await asyncio.to_thread(
            _connections.conninfo, self._config, "tasklib keeper"
        )
        self._spawn()

    async def stop(self) -> None:
        """End the process; what it kept the worker has given back."""
        if self._restart is not None:
            self._restart.cancel()
        process, self._process = self._process, None
        if process is None:
            return
        self._loop.remove_reader(_fileno(process.stdout))
        process.kill()
        await asyncio.to_thread(process.wait)
        _close(process)

    def replace(self) -> None:
        """End a process that has let a registration run out, for a new one to do better."""
        if self._process is not None:
            self._process.kill()

    def renewed(self, worker_id: str) -> None:
        """Keep a registration alive whose lease has just begun anew."""
        self._known.add(worker_id)
        self._tell(renewed=worker_id)

    def drop(self, worker_id: str) -> None:
        """Keep a registration no longer."""
        self._known.discard(worker_id)
        self._tell(drop=worker_id)

    def running(self, count: int) -> None:
        """Say that the loop moves, and how many tasks run."""
        if not self._unsent:  # the next one says the same
            self._tell(running=count)

    def progress(self, **progress: object) -> None:
        """Store how far a task is."""
        self._tell(progress=progress)

    def group_started(self, group: int) -> None:
        """Kill a process group when the worker is gone."""
        self._groups.add(group)
        self._tell(group=group)

    def group_ended(self, group: int) -> None:
        """Forget a process group."""
        self._groups.discard(group)
        self._tell(group_ended=group)

    def _spawn(self) -> None:
        # -P: this folder has modules that are named like some of Python's own.
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A signal to the worker's group must not take the one that cleans up after it.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[self.begun.descriptor],
        )
        os.set_blocking(_fileno(process.stdin), False)
        os.set_blocking(_fileno(process.stdout), False)
        self._process, self._unsent, self._heard = process, b"", b""
        self._loop.add_reader(_fileno(process.stdout), self._hear, process)
        self._tell(
            conninfo=self._conninfo,
            lease_seconds=self._config.lock_timeout_seconds,
            watchdog_seconds=self._config.watchdog_seconds,
            sql=SQL,
            begun=self.begun.descriptor,
        )
        for worker_id in self._known:
            self._tell(renewed=worker_id)
        for group in self._groups:
            self._tell(group=group)

    def _tell(self, **order: object) -> None:
        if self._process is None:
            return  # a new one is told everything
        self._unsent += _line(**order)
        try:
            sent = os.write(_fileno(self._process.stdin), self._unsent)
        except BlockingIOError:
            return  # it is busy; the next order takes this one along
        except OSError:
            return  # it is gone: its silence is heard
        self._unsent = self._unsent[sent:]

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        try:
            data = os.read(_fileno(process.stdout), 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(_fileno(process.stdout))
            self._process = None
            self._bury(process)
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._understand(json.loads(line))

    def _understand(self, report: dict[str, Any]) -> None:
        if "cancel" in report:
            self._cancel(report["cancel"])
        elif "lost" in report:
            self._known.discard(report["lost"])
            self._lost(report["lost"])
        elif "trouble" in report:
            log.warning("keeping the lease: %s", report["trouble"])

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        _close(process)
        self._spawn_later("the keeper of the lease ended")

    def _spawn_later(self, what: str) -> None:
        pause = pause_after(self._failures)
        self._failures += 1
        log.warning("%s; a new one starts in %.1f s", what, pause)
        self._restart = self._loop.call_later(pause, self._spawn_again)

    def _spawn_again(self) -> None:
        try:
            self._spawn()
        except OSError as error:
            self._spawn_later(f"the keeper of the lease could not be started ({error})")


def _line(**order: object) -> bytes:
    return json.dumps(order).encode() + b"\n"


def _fileno(stream: Any) -> int:
    return stream.fileno()


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
