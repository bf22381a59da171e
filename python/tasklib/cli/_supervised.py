"""What a worker process has to do with its supervisor."""

from __future__ import annotations

import os
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tasklib
from tasklib._postmaster import Locks
from tasklib.embedded import Embedded, project_root

from ._children import STOP, VARIABLE

# On top of what running tasks are given: to hand back, to say good-bye to the database.
LEAVE_SECONDS = 15.0


class Supervisor:
    """The process that started this one, at the other end of a socket.

    When it ends, in whatever way, this process is told to stop; when that does not help in time,
    it is ended: a worker that nobody looks after would keep its tasks for ever.

    Attributes:
        number: Which of its processes this is, from 1.
        is_first: Whether this process speaks for all when it starts.
        stop: Called, in a thread, when this process shall let its tasks end, and end.
        leave: Called when it shall not even do that.
        patience: How many seconds running tasks are given.
    """

    def __init__(self, number: int, descriptor: int, *, is_first: bool) -> None:
        self.number = number
        self.is_first = is_first
        self.stop: Callable[[], object] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        self.leave = self.stop
        self.patience = 0.0
        self._line = socket.socket(fileno=descriptor)
        self._line.set_inheritable(False)
        threading.Thread(target=self._follow, name="tasklib-supervisor", daemon=True).start()

    def tell(self, word: str, about: str = "") -> None:
        """Say a word, see `supervisor`; not heard when there is nobody any more."""
        with suppress(OSError):
            self._line.sendall(os.fsencode(f"{word} {about}\n"))

    def tell_sources(self) -> None:
        """Name the source files of the project that were loaded from outside its folder."""
        apart = [os.getcwd(), str(Path(tasklib.__file__).parent), *sysconfig.get_paths().values()]
        folders = tuple(os.path.join(folder, "") for folder in apart)
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if path and path.endswith(".py") and not path.startswith(folders):
                self.tell("watch", path)

    def tell_locks(self) -> None:
        """Name the locks that keep the embedded server of this folder alive."""
        locks = Locks(Embedded(project_root()).home)
        self.tell("hold", str(locks.users))
        self.tell("hold", str(locks.alive))

    def _follow(self) -> None:
        with suppress(OSError):
            while word := self._line.recv(1):
                self.stop() if word == STOP else self.leave()
        self.stop()  # it is gone
        time.sleep(self.patience + LEAVE_SECONDS)
        os._exit(1)


def find_supervisor() -> Supervisor | None:
    """Return this process's supervisor, if it has one; to be called once, at the start."""
    # Not for the programs that tasks start: those are nobody's worker processes.
    told = os.environ.pop(VARIABLE, None)
    if told is None:
        return None
    number, descriptor, is_first = map(int, told.split())
    # Ctrl-C reaches the supervisor, too, and it says what follows from that. A handler, unlike
    # SIG_IGN, is not handed down to programs that tasks start.
    signal.signal(signal.SIGINT, _do_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    return Supervisor(number, descriptor, is_first=bool(is_first))


def _do_nothing(_number: int, _frame: object) -> None:
    pass
