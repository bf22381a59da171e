"""Keeps worker processes running: starts them, replaces those that end, stops them all.

It is a program of its own, run without site-packages, and executes `tasklib worker` again for each
process: so it is small, each process imports fresh code into clean memory, and nothing that a
user's module does can harm it. A process says to it, in lines through a socket:

    ready        it works: others may start, and from now on it is replaced when it ends
    again        it ends to make room for a fresh one
    hold PATH    a lock file that keeps the embedded server alive while processes come and go
    watch PATH   a source file that it has loaded
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ._changes import Sources
from ._children import LEAVE, STOP, Child, how_it_ended, start
from ._logging import set_up_logging

logger = logging.getLogger("tasklib.supervisor")

# Who lived for so long was healthy; who did not is replaced ever more slowly.
HEALTHY_SECONDS = 10.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# From the second signal, which makes processes leave at once, to SIGKILL.
KILL_SECONDS = 10.0
LOOK_SECONDS = 0.5
# How long tasks may go on when their code has changed.
RELOAD_SECONDS = 3.0
UNREACHABLE = 3

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to supervise.

    Attributes:
        command: What each process executes.
        processes: How many there are.
        drains: They end when nothing is left to do.
        reloads: They start anew when their code changes.
    """

    command: Sequence[str]
    processes: int
    drains: bool = False
    reloads: bool = False


def become_supervisor(plan: Plan, *, level: str, style: str) -> NoReturn:
    """Go on as the supervisor; nothing of this process is left but its id and its environment."""
    words = [f"{plan.processes}", f"{plan.drains:d}", f"{plan.reloads:d}", level, style]
    script = str(Path(__file__).with_name("_supervise.py"))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-S", script, *words, *plan.command])


def main(words: Sequence[str]) -> int:
    """Supervise what `become_supervisor` says; return the exit code."""
    processes, drains, reloads, level, style, *command = words
    set_up_logging(level=level, style=style)
    plan = Plan(command, int(processes), drains=drains == "1", reloads=reloads == "1")
    return Supervision(plan).run()


class Supervision:
    """The processes of one command, from its start to its end."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._children: dict[int, Child] = {}
        self._due: dict[int, float] = {}
        self._failures: dict[int, int] = {}
        self._sources = Sources(os.getcwd()) if plan.reloads else None
        self._locks: dict[str, int] = {}
        self._code = 0
        self._has_greeted = False
        # One process shows that the code can be started, before the others do the same.
        self._works = False
        self._is_reloading = False
        self._stops = 0
        self._next_look = 0.0 if plan.reloads else NEVER
        self._hurry_at = self._kill_at = NEVER

    def run(self) -> int:
        """Supervise until the last process is gone; return the exit code."""
        wakened = _signals_as_bytes()
        self._due[1] = 0.0
        while self._children or self._due or (self._plan.reloads and not self._stops):
            self._start_due()
            self._wait(wakened)
            self._react(wakened)
            self._reap()
            self._look_at_clock()
        return self._code

    # ---- one turn --------------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in sorted(number for number, when in self._due.items() if when <= now):
            del self._due[number]
            first = number == 1 and not self._has_greeted
            try:
                child = start(number, self._plan.command, os.environ, now, first=first)
            except OSError as error:
                self._start_later(number, f"could not be started ({error})", is_healthy=False)
            else:
                self._children[child.pid] = child

    def _wait(self, wakened: int) -> None:
        now = time.monotonic()
        times = [*self._due.values(), self._next_look, self._hurry_at, self._kill_at]
        until = min(times)
        lines = [child.line for child in self._children.values() if not child.is_mute]
        select.select([wakened, *lines], [], [], None if until == NEVER else max(0.0, until - now))

    def _react(self, wakened: int) -> None:
        try:
            numbers = os.read(wakened, 4096)
        except BlockingIOError:
            numbers = b""
        for number in numbers:
            if number != signal.SIGCHLD:
                self._stop(number)
        for child in self._children.values():
            self._hear(child)

    def _hear(self, child: Child) -> None:
        for word, about in child.words():
            if word == "ready":
                child.is_ready = True
                self._spread()
            elif word == "again":
                child.wants_successor = True
            elif word == "hold":
                self._hold(about)
            elif word == "watch" and self._sources is not None:
                self._sources.add(about)

    def _spread(self) -> None:
        """Start the other processes, when there is a first one that works."""
        self._has_greeted = True
        if self._works or self._stops or self._is_reloading:
            return
        self._works = True
        there = {child.number for child in self._children.values()}
        for number in range(1, self._plan.processes + 1):
            if number not in there:
                self._due[number] = 0.0

    def _hold(self, path: str) -> None:
        if path in self._locks:
            return
        try:
            self._locks[path] = os.open(path, os.O_RDWR)
            fcntl.flock(self._locks[path], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # who told us has died, and the server with it
            logger.debug("cannot hold %s (%s)", path, error)

    def _reap(self) -> None:
        while True:
            try:
                # Anybody: as the first process of a container we inherit orphans.
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if child := self._children.pop(pid, None):
                self._hear(child)
                child.line.close()
                self._bury(child, os.waitstatus_to_exitcode(status))

    # ---- when a process has ended ----------------------------------------------------------------

    def _bury(self, child: Child, code: int) -> None:
        """Decide what follows the end of a process."""
        if self._stops:
            self._note_end(child, code)
        elif self._is_reloading:
            self._renew()
        elif child.wants_successor and code == 0:
            self._due[child.number] = 0.0
        elif self._plan.drains and code == 0:
            logger.debug("process %d is done", child.number)
        elif self._works:
            lived = time.monotonic() - child.started
            how = f"(pid {child.pid}) {how_it_ended(code)}"
            self._start_later(child.number, how, is_healthy=lived > HEALTHY_SECONDS)
        elif self._plan.reloads and code != UNREACHABLE:
            logger.warning("the code cannot be started; waiting until it changes")
        else:
            self._fail(child, code)

    def _note_end(self, child: Child, code: int) -> None:
        # One that was still starting knows no better answer than to die; the other one is that of a
        # worker that was told to leave.
        if code in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            return
        self._code = self._code or 1
        logger.warning("process %d (pid %d) %s", child.number, child.pid, how_it_ended(code))

    def _fail(self, child: Child, code: int) -> None:
        """End with the error of the first process: the others would have the same."""
        if code <= 0:  # the process itself cannot have said it
            how = how_it_ended(code)
            logger.error("process %d (pid %d) %s before it worked", child.number, child.pid, how)
        self._code = code if code > 0 else 128 - code if code else 1
        self._stops = 1
        self._due.clear()

    def _start_later(self, number: int, what: str, *, is_healthy: bool) -> None:
        self._failures[number] = 0 if is_healthy else self._failures.get(number, 0) + 1
        failures = self._failures[number]
        # Capped twice: a number of failures has no end, a float has.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10)) if failures else 0.0
        when = f"in {pause:g} s" if pause else "now"
        logger.warning("process %d %s; another starts %s", number, what, when)
        self._due[number] = time.monotonic() + pause

    # ---- stopping and starting anew --------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """The first signal lets running tasks end, the second does not, the third is the last."""
        self._stops += 1
        self._due.clear()
        self._next_look = self._hurry_at = NEVER
        if self._stops == 1:
            logger.info(
                "%s: stopping %d processes; running tasks may end, a second one does not wait",
                signal.Signals(number).name,
                len(self._children),
            )
        else:
            logger.warning("%s again: leaving at once", signal.Signals(number).name)
            self._code = 128 + number
            self._kill_at = time.monotonic() + (KILL_SECONDS if self._stops == 2 else 0.0)
        self._say(STOP if self._stops == 1 else LEAVE)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now >= self._next_look and self._sources is not None:
            self._next_look = now + LOOK_SECONDS
            if changed := self._sources.changed():
                self._reload(changed)
        if now >= self._hurry_at:
            self._hurry_at, self._kill_at = NEVER, now + KILL_SECONDS
            self._say(LEAVE)
        if now >= self._kill_at:
            self._kill_at = NEVER
            logger.error("killing %d processes that do not leave", len(self._children))
            for child in self._children.values():
                child.kill()

    def _reload(self, changed: Sequence[str]) -> None:
        if self._is_reloading:
            return
        names = ", ".join(os.path.relpath(path) for path in changed[:3])
        logger.info("%s%s changed: starting anew", names, ", …" if len(changed) > 3 else "")
        self._is_reloading = True
        self._works = False
        self._due.clear()
        self._failures.clear()
        self._hurry_at = time.monotonic() + RELOAD_SECONDS
        self._say(STOP)
        self._renew()

    def _renew(self) -> None:
        """Start the changed code when nothing of the old one is left."""
        if not self._children:
            self._is_reloading = False
            self._hurry_at = self._kill_at = NEVER
            self._due[1] = 0.0

    def _say(self, word: bytes) -> None:
        for child in self._children.values():
            child.say(word)


def _signals_as_bytes() -> int:
    """Have signals come as bytes, their numbers, through a descriptor; none is lost or early."""
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    return ours
