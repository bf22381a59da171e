"""What a worker process shows to probes: a small file, written anew each second by its event loop.

It is locked for as long as the process lives, so that what a killed one has left counts for
nothing. No database is needed to look at it: a worker that waits for its database is alive.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasklib.worker import TaskWorker

logger = logging.getLogger("tasklib.cli")

BEAT_SECONDS = 1.0
SIZE = 512


@dataclass(frozen=True, slots=True)
class Pulse:
    """A living worker process of this user and machine (in a container: of this container).

    Attributes:
        pid: Its process id.
        age: Seconds since its event loop has moved.
        worker_id: Its registration in the database; None when it has none at the moment.
    """

    pid: int
    age: float
    worker_id: str | None


def folder() -> Path:
    """Return where the files are: ``TASKLIB_STATE_DIR``, or a folder of this user in /tmp."""
    given = os.environ.get("TASKLIB_STATE_DIR")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"tasklib-{os.geteuid()}"


async def beat(worker: TaskWorker) -> None:
    """Show until cancelled that the event loop moves, and under which registration."""
    file: _File | None = None
    has_complained = False
    try:
        while True:
            try:
                file = file or _File()
                file.write(worker.registration)
            except OSError as error:
                if not has_complained:
                    logger.warning("doctor --live and --ready do not see this worker: %s", error)
                has_complained = True
            await asyncio.sleep(BEAT_SECONDS)
    finally:
        if file is not None:
            file.remove()


def pulses() -> list[Pulse]:
    """Find the worker processes."""
    found: list[Pulse] = []
    for path in _paths():
        with suppress(OSError), open(path, "r+") as file:
            if _lock(file.fileno()):
                continue  # left behind; closing it gives the lock back
            with suppress(ValueError, KeyError):
                said = json.loads(file.read(SIZE))
                age = time.monotonic() - said["moved_at"]
                found.append(Pulse(said["pid"], max(0.0, age), said["worker_id"]))
    return found


class _File:
    """The file of this process."""

    def __init__(self) -> None:
        self._path = folder() / f"{_prefix()}{os.getpid()}.json"
        _make_folder()
        _clean_up()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._number = os.open(self._path, flags, 0o600)
        # Not flock: programs that tasks fork would hold it, too.
        if not _lock(self._number):
            os.close(self._number)
            raise OSError(f"{self._path} is in use")

    def write(self, worker_id: str | None) -> None:
        """Say that the loop has moved just now."""
        said = {"pid": os.getpid(), "moved_at": time.monotonic(), "worker_id": worker_id}
        # One write of one size: who reads meanwhile sees the old text or the new one.
        os.pwrite(self._number, json.dumps(said).ljust(SIZE).encode(), 0)

    def remove(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self._number)


def _make_folder() -> None:
    target = folder()
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = target.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{target} is not a folder of this user; set TASKLIB_STATE_DIR")


def _clean_up() -> None:
    """Remove what killed processes have left."""
    for path in _paths():
        with suppress(OSError), open(path, "r+") as file:
            if _lock(file.fileno()):
                path.unlink()


def _paths() -> Iterator[Path]:
    # By host: a folder that containers share has each one's process 1.
    return folder().glob(f"{_prefix()}*.json")


def _prefix() -> str:
    return f"worker-{platform.node()}-"


def _lock(number: int) -> bool:
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
