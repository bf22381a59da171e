"""Worker processes as their supervisor sees them: started by exec, heard through a socket.

Standard library only, see `supervisor`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

# Number, descriptor of the socket, and whether it is the first: see `_supervised`.
VARIABLE = "_TASKLIB_SUPERVISOR"

# What we say to a process. Signals would not do: Ctrl-C, and service managers that stop a whole
# group, send the same signals to all, and who hears a second one leaves its tasks.
STOP = b"s"
LEAVE = b"l"


@dataclass(eq=False, slots=True)
class Child:
    """One start of one worker process.

    Attributes:
        number: Which of the processes it is, from 1.
        pid: Its process id.
        line: Our end of its socket: it writes lines, we write STOP and LEAVE.
        started: When it was started, by the monotonic clock.
        is_ready: It said that it works.
        wants_successor: It said that it makes room for a fresh one.
        is_mute: It says nothing more.
    """

    number: int
    pid: int
    line: socket.socket
    started: float
    is_ready: bool = False
    wants_successor: bool = False
    is_mute: bool = False
    _unread: bytes = field(default=b"", init=False)

    def words(self) -> Iterator[tuple[str, str]]:
        """Yield what it has said: a word, and what belongs to it."""
        try:
            while data := self.line.recv(65536):
                self._unread += data
            self.is_mute = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_mute = True
        *lines, self._unread = self._unread.split(b"\n")
        for said in lines:
            word, _, rest = os.fsdecode(said).partition(" ")
            yield word, rest

    def say(self, word: bytes) -> None:
        """Say STOP or LEAVE; not heard when it is ending anyway."""
        with suppress(OSError):
            self.line.send(word)

    def kill(self) -> None:
        """End it at once; it is not reaped yet, so its process id is its own."""
        os.kill(self.pid, signal.SIGKILL)


def start(
    number: int, command: Sequence[str], environment: Mapping[str, str], now: float, *, first: bool
) -> Child:
    """Start a process.

    Args:
        number: Which of the processes it is.
        command: What to execute.
        environment: Its environment.
        now: The monotonic clock.
        first: Whether it is the one that greets.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.set_inheritable(True)
        ours.setblocking(False)
        pid = os.posix_spawn(
            command[0],
            list(command),
            {**environment, VARIABLE: f"{number} {theirs.fileno()} {int(first)}"},
            # Ctrl-C reaches the whole group; until it can disregard it, it shall not see it.
            setsigmask=[signal.SIGINT],
            # Python ignores these, and who is ignored before an exec is ignored after it.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    return Child(number, pid, ours, now)


def how_it_ended(code: int) -> str:
    """Put an exit code, negative for a signal, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def this_command() -> list[str]:
    """Return what this process was started with, to be executed again."""
    return [sys.executable, *sys.orig_argv[1:]]
