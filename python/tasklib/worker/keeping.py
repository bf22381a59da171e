"""The program of the keeper: the process beside a worker that outlives what tasks may do to it.

It is run by path, knows nothing but psycopg and what the worker tells it (see `Keeper`), and so
stays small and starts fast. It renews leases, watches for cancel requests and does housekeeping
while the worker runs tasks; none of this can be starved by a task that blocks the worker's event
loop or holds its interpreter. When the worker is gone without a word, it kills what the worker left
running and hands back its tasks at once.

Orders and reports are JSON objects, one a line: orders on standard input, reports on standard
output. Neither ever goes to a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, cast

import psycopg

ROUND_SECONDS = 1.0
# Old history and dead workers do not wait for long when all workers idle.
IDLE_TICK_SECONDS = 30.0
RETRY_SECONDS = 1.0
# Less than a quarter of a lease is no time for a server under load.
SHORTEST_CALL_SECONDS = 2.0
# A line of so many ids is shorter than what a pipe takes as a whole or not at all.
IDS_IN_REPORT = 50
ID_BYTES = 36


class Gone(Exception):
    """The worker has died: one that leaves in order ends this process itself."""


class Keeping:
    """What is kept alive, and when something is due.

    Args:
        orders: The first line: ``conninfo``, ``lease_seconds``, ``watchdog_seconds``, ``sql``, the
            texts of the calls by name, and ``begun``, a descriptor of the ids of tasks under way.
    """

    def __init__(self, orders: dict[str, Any]) -> None:
        self._conninfo: str = orders["conninfo"]
        self._renew_seconds: float = orders["lease_seconds"] / 4
        self._lease_seconds: float = orders["lease_seconds"]
        self._round_seconds = min(ROUND_SECONDS, self._renew_seconds)
        self._call_seconds = max(SHORTEST_CALL_SECONDS, self._renew_seconds)
        self._watchdog_seconds: float = orders["watchdog_seconds"]
        self._sql: dict[str, Any] = orders["sql"]
        self._begun: int = orders["begun"]
        self._worker_pid = os.getppid()
        self._connection: psycopg.Connection[Any] | None = None
        self._renewed: dict[str, float] = {}
        self._groups: set[int] = set()
        self._progress: list[dict[str, object]] = []
        self._running = 0
        self._pulse = time.monotonic()
        self._ticked = time.monotonic()
        self._buffer = b""

    def keep(self) -> None:
        """Go on until the worker is gone."""
        pause = 0.0
        try:
            while True:
                self._listen(pause)
                try:
                    self._round()
                    pause = self._round_seconds
                except psycopg.Error as error:
                    self._drop()
                    what = str(error).strip().partition("\n")[0] or type(error).__name__
                    report(trouble=what[:1000])
                    pause = RETRY_SECONDS
        except Gone:
            self._bury()

    # ---- orders ----------------------------------------------------------------------------------

    def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            if select.select([0], [], [], left)[0]:
                self._read()
            elif left == 0:
                break
        if os.getppid() != self._worker_pid:
            raise Gone

    def _read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            raise Gone
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        now = time.monotonic()
        for what, value in order.items():
            if what == "running":
                self._running, self._pulse = value, now
            elif what == "renewed":
                self._renewed[value] = now
            elif what == "drop":
                self._renewed.pop(value, None)
            elif what == "progress":
                self._progress.append(value)
            elif what == "group":
                self._groups.add(value)
            elif what == "group_ended":
                self._groups.discard(value)

    # ---- rounds ----------------------------------------------------------------------------------

    def _round(self) -> None:
        now = time.monotonic()
        if self._running and now - self._pulse > self._watchdog_seconds:
            report(trouble=f"the event loop has not moved for {now - self._pulse:.0f} s: killed")
            os.kill(self._worker_pid, signal.SIGKILL)
            raise Gone
        if is_stopped(self._worker_pid):
            return  # nobody is at work: the lease may run out
        for worker_id in list(self._renewed):
            self._renew(worker_id, now)
        while self._progress:
            self._store(self._progress[0])
            del self._progress[0]
        if self._running or now - self._ticked > IDLE_TICK_SECONDS:
            self._ticked = now
            while self._call("tick") == [(True,)]:
                self._listen(0)

    def _renew(self, worker_id: str, now: float) -> None:
        # Half a round early: the next look may come a whole round later.
        is_due = now + self._round_seconds / 2 >= self._renewed[worker_id] + self._renew_seconds
        if not is_due and not self._running:
            return
        name = "heartbeat" if is_due else "cancel_requests"
        try:
            asked = self._call(name, worker_id=worker_id)
        except psycopg.Error as error:
            if error.sqlstate != "TL007":
                raise
            self._renewed.pop(worker_id, None)
            report(lost=worker_id)
            return
        if is_due:
            self._renewed[worker_id] = now
        ids = [task_id for (task_id,) in asked]
        for first in range(0, len(ids), IDS_IN_REPORT):
            report(cancel=ids[first : first + IDS_IN_REPORT])

    def _store(self, progress: dict[str, object]) -> None:
        try:
            self._call("set_progress", **progress)
        except psycopg.Error as error:
            # Refused, or the attempt has ended: nothing that matters.
            if not (error.sqlstate or "").startswith(("TL", "22")):
                raise

    # ---- the end ---------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Kill what the worker left running, and hand back its tasks: what had begun as crashed."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        begun = self._read_begun()
        deadline = time.monotonic() + self._lease_seconds
        left = list(self._renewed)
        while left and time.monotonic() < deadline:
            try:
                self._call("crashed", worker_id=left[0], begun=begun)
                del left[0]
            except psycopg.Error as error:
                if error.sqlstate == "TL007":
                    del left[0]
                    continue
                self._drop()
                time.sleep(RETRY_SECONDS)

    def _read_begun(self) -> list[str]:
        data = os.pread(self._begun, os.fstat(self._begun).st_size, 0)
        slots = (data[at : at + ID_BYTES] for at in range(0, len(data), ID_BYTES))
        return [slot.decode() for slot in slots if slot[0]]

    def _call(self, name: str, **params: object) -> list[tuple[Any, ...]]:
        # A proxy may take what is sent and never answer: the next connection has to do it in time.
        # Again each second: an error that comes in a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, self._call_seconds, 1.0)
        try:
            if self._connection is None:
                # No statement is prepared: there may be a pooler in between.
                self._connection = psycopg.connect(
                    self._conninfo, autocommit=True, prepare_threshold=None
                )
            return self._connection.execute(self._sql[name], params).fetchall()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped by a signal or a debugger; False where that is hidden."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def report(**what: object) -> None:
    """Tell the worker something, if it is still there and has read what it was told before."""
    # Nothing waits for a worker that does not read: cancellations are told again, and a claim tells
    # that a registration is lost.
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(what).encode() + b"\n")


def give_up(*_: object) -> None:
    """End a call that has taken too long."""
    raise psycopg.OperationalError("no answer in time")


def main() -> None:
    """Keep what the orders on standard input say."""
    signal.signal(signal.SIGALRM, give_up)
    # Ctrl-C and the end of a container reach every process; this one ends with its worker.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(1, False)
    line = b""
    while not line.endswith(b"\n"):
        # Unbuffered: what follows the first line is for select.
        part = os.read(0, 1)
        if not part:
            return
        line += part
    Keeping(cast("dict[str, Any]", json.loads(line))).keep()


if __name__ == "__main__":
    sys.exit(main())
