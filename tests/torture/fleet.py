"""The processes of a run: started, replaced when they die, found, and in the end all gone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "TORTURE_RUN"
CALM = "TORTURE_CALM"

# What its command line tells of a process; the first that fits.
KINDS = {
    "keeper": "keeping.py",
    "child": "tasklib.worker.child",
    "supervisor": "_supervise.py",
    "worker": "tasklib.cli",
    "producer": "producers.py",
    "zombie": "zombies.py",
}

# What those who are told to stop may end with: programs, and workers that are still starting, know
# no better answer to SIGTERM than to die.
STOPPED = (0, -signal.SIGTERM)


@dataclass(frozen=True)
class Found:
    """A process of the run; it stays the same when its parent dies."""

    pid: int
    started: int
    parent: int = field(compare=False)
    kind: str = field(compare=False)
    is_calm: bool = field(compare=False)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal, if it is still this process; return whether that was so."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # The handle is that of a process; only now is it sure to be the one that was found.
            if _look(self.pid) != self:
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except OSError:
            return False
        finally:
            os.close(handle)


def _look(pid: int, run: str | None = None) -> Found | None:
    proc = Path("/proc") / str(pid)
    try:
        environment = (proc / "environ").read_bytes().split(b"\0")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        command = (proc / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return None
    state, parent, started = fields[0], fields[1], fields[19]  # 3, 4 and 22 of proc(5)
    if (run is not None and f"{VARIABLE}={run}".encode() not in environment) or state in "ZX":
        return None
    kind = next((kind for kind, word in KINDS.items() if word in command), "other")
    is_calm = f"{CALM}=1".encode() in environment
    return Found(pid, int(started), int(parent), kind, is_calm)


def find(run: str) -> list[Found]:
    """Return every living process of a run, also those that lost their parents."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [found for pid in pids if (found := _look(pid, run))]


@dataclass
class Member:
    """A process that shall always be there.

    Attributes:
        name: What its log is called.
        command: How it is started.
        environment: What is particular about its environment.
        restarts: Whether it comes back when it has ended.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict[str, str])
    restarts: bool = True
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    started: float = 0.0
    was_told: bool = False


class Fleet:
    """All of them. Who died is replaced a moment later, by a thread.

    Args:
        run: What all their environments say, so that every process is found that comes of one.
        logs: The folder of their logs.
        dice: What decides how long a moment is.
    """

    def __init__(self, run: str, logs: Path, dice: random.Random) -> None:
        self.run = run
        self.members: list[Member] = []
        self.ends: Counter[tuple[str, int]] = Counter()
        self._logs = logs
        self._dice = dice
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._nurse = threading.Thread(target=self._look_after, daemon=True)

    def start(self) -> None:
        """Begin to look after them."""
        self._nurse.start()

    def add(self, member: Member) -> Member:
        """Have one more."""
        with self._lock:
            self.members.append(member)
            self._start(member)
        return member

    def retire(self, member: Member, seconds: float) -> int | None:
        """Tell one to stop, and wait for it; return its exit code, None when it did not end."""
        with self._lock:
            member.restarts, member.was_told = False, True
            process = member.process
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        with self._lock:
            if member in self.members:
                self.members.remove(member)
        return code

    def stop(self, seconds: float, wanted: Callable[[Member], bool]) -> list[str]:
        """Tell some to stop; return what is wrong with how they did."""
        chosen = [member for member in self.members if wanted(member)]
        wrong: list[str] = []

        def retire(member: Member) -> None:
            code = self.retire(member, seconds)
            if code is None:
                wrong.append(f"{member.name} did not end within {seconds:.0f} s of SIGTERM")
            elif code not in STOPPED:
                wrong.append(f"{member.name} was told to stop, and ended with {code}")

        threads = [threading.Thread(target=retire, args=(member,)) for member in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return wrong

    def leave(self) -> None:
        """Replace nobody any more."""
        self._is_over.set()
        self._nurse.join()

    def kill_all(self) -> list[Found]:
        """End whatever is left; return what that was."""
        left = find(self.run)
        for found in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
        for member in self.members:
            if member.process is not None:
                member.process.wait()
        return left

    def _look_after(self) -> None:
        while not self._is_over.wait(0.1):
            with self._lock:
                for member in list(self.members):
                    self._look_at(member)

    def _look_at(self, member: Member) -> None:
        now = time.monotonic()
        if member.process is not None and not member.was_told:
            code = member.process.poll()
            if code is None:
                return
            self.ends[member.name, code] += 1
            member.process = None
            # One that cannot even start shall not take all the time there is.
            member.due = now + self._dice.uniform(0, 0.3) + 1.0 * (now - member.started < 2)
        if member.process is None and member.restarts and now >= member.due:
            self._start(member)

    def _start(self, member: Member) -> None:
        with (self._logs / f"{member.name}.log").open("ab") as log:
            member.process = subprocess.Popen(
                member.command,
                env={**os.environ, **member.environment, VARIABLE: self.run},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        member.started = time.monotonic()
