"""What a running embedded server looks like from outside, how it ends, and who sees to that.

Standard library only: this file is also run as a script, without site-packages, as the watcher
that ends a server whose users were all killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOCKET_PREFIX = "tasklib-socket-"


class StoreGone(Exception):
    """The folder with the lock files was deleted meanwhile."""


@dataclass(frozen=True, slots=True)
class Postmaster:
    """The process that ``postmaster.pid`` names; it may be gone."""

    pid: int
    port: int
    socket_folder: Path


@dataclass(frozen=True, slots=True)
class Locks:
    """The lock files of one store; the kernel drops their locks when a holder dies."""

    home: Path

    @property
    def users(self) -> Path:
        """Held shared by every process that uses the server."""
        return self.home / "users.lock"

    @property
    def alive(self) -> Path:
        """Held shared like ``users``; the watcher waits for this one and never holds that one."""
        return self.home / "alive.lock"

    @property
    def gate(self) -> Path:
        """Held by whoever starts or stops the server, one at a time."""
        return self.home / "gate.lock"

    @property
    def watch(self) -> Path:
        """Held by the watcher, so that there is one."""
        return self.home / "watch.lock"

    def create(self) -> None:
        """Make the files, as root for the owner of the folder; nothing else ever makes them.

        So whoever deletes the folder does not find it filled again by a process that was waiting.
        """
        owner = self.home.stat()
        for path in (self.users, self.alive, self.gate, self.watch):
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                if os.geteuid() == 0:
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
                os.close(descriptor)

    @property
    def keep(self) -> Path:
        """Exists while the server shall outlive its users."""
        return self.home / "keep"


def read(data: Path) -> Postmaster | None:
    """Read ``postmaster.pid``; None when there is none or it is only half written."""
    try:
        pid, _, _, port, folder, *_ = (data / "postmaster.pid").read_text().splitlines()
        return Postmaster(int(pid), int(port), Path(folder))
    except (FileNotFoundError, ValueError):
        return None


def is_running(postmaster: Postmaster, data: Path) -> bool:
    """Tell whether the process exists, is no zombie, and serves this data directory.

    A process id alone proves nothing: after a restart of a container it belongs to somebody else,
    and where nobody reaps, a killed server stays as a zombie that ``pg_ctl`` takes for alive.
    """
    if Path("/proc/self").exists():
        try:
            return Path(os.readlink(f"/proc/{postmaster.pid}/cwd")) == data.resolve()
        except OSError:
            return False
    asked = subprocess.run(
        ["ps", "-o", "stat=,command=", "-p", str(postmaster.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, command = asked.stdout.strip().partition(" ")
    return bool(state) and not state.startswith("Z") and "postgres" in command


def stop(data: Path, seconds: float = 60.0) -> bool:
    """End the server: sessions are cut off, committed data is on disk, then it exits.

    Args:
        data: The data directory.
        seconds: How long to wait before it is ended without a checkpoint (recovery follows then).

    Returns:
        Whether there was a server to end.
    """
    postmaster = read(data)
    if postmaster is None or not is_running(postmaster, data):
        return False
    os.kill(postmaster.pid, signal.SIGINT)
    if not _gone(postmaster, data, seconds):
        os.kill(postmaster.pid, signal.SIGQUIT)
        _gone(postmaster, data, 10.0)
    if postmaster.socket_folder.name.startswith(SOCKET_PREFIX):
        shutil.rmtree(postmaster.socket_folder, ignore_errors=True)
    return True


def socket_folder(home: Path) -> Path:
    """Return where the socket goes: beside the data, unless that path is too long for a socket."""
    # The kernel's limit is 108 bytes, 104 on macOS, with "/.s.PGSQL.65535" and a NUL at the end.
    if len(os.fsencode(home)) <= 86:
        return home
    return Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX))


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the exclusive lock of a file for the block.

    Raises:
        StoreGone: The folder of the file was deleted.
    """
    while True:
        with open_lock(path) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Who held it before may have deleted a throw-away store; then this is nobody's file.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield
                return


@contextmanager
def open_lock(path: Path) -> Generator[int]:
    """Open a lock file for the block; closing it drops the lock."""
    descriptor = open_descriptor(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_descriptor(path: Path) -> int:
    """Open a lock file.

    Raises:
        StoreGone: The folder of the file was deleted.
    """
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError as error:
        raise StoreGone(f"{path} was deleted") from error


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock if nobody holds any; never wait."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_unused(home: Path) -> bool:
    """Tell whether no process uses the server. Only to be asked behind the gate."""
    with open_lock(Locks(home).users) as users:
        return try_lock(users)


def discard(folders: Iterable[Path]) -> None:
    """Delete folders. They get another name first, so that nobody starts to use half of one."""
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            gone = folder.with_name(f".{folder.name}-{os.getpid()}-gone")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def watch(home: Path, remove: Sequence[Path]) -> None:
    """Wait until no user is left, then end the server; return at once when one watches already.

    Args:
        home: The folder with the lock files; the data is in its ``pg``.
        remove: What to delete as well: the folders of a throw-away server.
    """
    locks = Locks(home)
    with open_lock(locks.watch) as watching:
        if not try_lock(watching) or _fork_away():
            return
        while True:
            with open_lock(locks.alive) as alive:
                fcntl.flock(alive, fcntl.LOCK_EX)
            # Dropped before the gate is asked for: a starting process holds that, and waits here.
            with locked(locks.gate):
                if not is_unused(home):
                    continue
                if not locks.keep.exists():
                    stop(home / "pg")
                    discard(remove)
                # Still behind the gate: whoever comes next finds that nobody watches.
                fcntl.flock(watching, fcntl.LOCK_UN)
                return


def _fork_away() -> bool:
    """Go on as a process of its own session; True in the one that shall end."""
    if os.fork():
        return True
    os.setsid()
    return False


def _gone(postmaster: Postmaster, data: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_running(postmaster, data):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


if __name__ == "__main__":
    with contextlib.suppress(StoreGone):
        watch(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
