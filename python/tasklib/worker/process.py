"""One child process, seen from the worker's event loop: started, talked to, ended, reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tasklib.worker import wire

# The path comes along, so that it does not matter how this process has found its modules.
_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from tasklib.worker.child import main; main()"
PIECE_BYTES = 65536
# A child that hangs up is about to end; one that does not could never say that its task has ended.
LAST_SECONDS = 1.0


class ChildProcess:
    """A process in a group of its own, which everything that it starts belongs to.

    It is started with exec, because a fork of a process with threads may find any lock taken, and
    by the thread of the event loop, because it dies with the thread that started it.

    Args:
        received: Called with the kind and the body of each message.
        died: Called once, with the return code as `subprocess` tells it, when nothing of the
            group is left.

    Raises:
        OSError: The system lets no more processes start.
        RuntimeError: The same for threads.
    """

    def __init__(self, received: Callable[[str, Any], None], died: Callable[[int], None]) -> None:
        self._received = received
        self._on_death = died
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._decoder = wire.Decoder()
        self._is_reaped = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    _command(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                self._socket.close()
                raise
        self._socket.setblocking(False)
        try:
            threading.Thread(target=self._wait, name="tasklib-child", daemon=True).start()
        except RuntimeError:
            self._reap()
            raise
        self._loop.add_reader(self._socket, self._read)

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        return self._process.pid

    def send(self, kind: str, body: object = None) -> None:
        """Send a message; a process that has died meanwhile does not hear it."""
        if not self._is_reaped:
            self._unsent += wire.encode(kind, body)
            self._write()

    def hang_up(self) -> None:
        """Say that there is nothing more to do: it ends in order."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to everything in its group."""
        if not self._is_reaped:
            # macOS: a group of nothing but the dead gives no permission.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
            return
        except OSError:  # it has died, which is noticed elsewhere
            self._unsent.clear()
        self._loop.remove_writer(self._socket)

    def _read(self) -> bool:
        """Take what has come; tell whether there may be more."""
        try:
            data = self._socket.recv(PIECE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(LAST_SECONDS, self.signal, signal.SIGKILL)
            return False
        try:
            messages = list(self._decoder.feed(data))
        except (TypeError, ValueError):  # something else writes to the child's end
            self.signal(signal.SIGKILL)
            return False
        for kind, body in messages:
            self._received(kind, body)
        return True

    def _wait(self) -> None:
        """Wait for its death, in a thread; where possible without reaping it."""
        with contextlib.suppress(ChildProcessError):
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            else:
                self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(self._died)

    def _died(self) -> None:
        try:
            while self._read():  # what it said last
                pass
        finally:
            self._reap()
            self._on_death(self._process.returncode)

    def _reap(self) -> None:
        # The group first: until its leader is reaped, its number belongs to nobody else.
        self.signal(signal.SIGKILL)
        self._is_reaped = True
        self._process.wait()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()


def _command(descriptor: int) -> list[str]:
    flags = subprocess._args_from_interpreter_flags()  # pyright: ignore
    return [sys.executable, *flags, "-c", _BOOT, str(descriptor), str(os.getpid()), *sys.path]
