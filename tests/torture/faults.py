"""What goes wrong, each kind in a thread of its own, until it is enough."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from fleet import CALM, STOPPED, Fleet, Found, Member, find
from stage import Stage

from proxy import Proxy

Span = tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """How a run is made up; spans are seconds between two faults of a kind.

    Attributes:
        seconds: How long there are faults.
        lease: The lease of workers, except for the calm ones.
        rate: Tasks a second that each producer means to enqueue.
        workers: Workers, by name: how each reaches the server, and its own arguments.
        producers: What each producer does, and how it reaches the server.
        kills: Between two kill -9.
        stops: Between a process that goes on and the next one that is stopped.
        restarts: Between two restarts of the server.
        cuts: Between two faults of a proxy.
        pooler: Between two restarts of the pooler.
        rolls: Between two workers that are told to stop.
    """

    seconds: float
    lease: float
    rate: float
    workers: dict[str, tuple[str, list[str]]]
    producers: dict[str, str]
    kills: Span
    stops: Span
    restarts: Span
    cuts: Span
    pooler: Span
    rolls: Span

    @property
    def calm_lease(self) -> float:
        """The lease of workers that nobody harms: a busy machine must not end it."""
        return self.lease * 1.6


# Twice as often those that matter most.
TARGETS = {
    "worker": 36,
    "keeper": 20,
    "both": 12,
    "child": 14,
    "producer": 12,
    "zombie": 4,
    "supervisor": 2,
}


class Faults:
    """Does harm, and says what it did.

    Attributes:
        counts: How often it did what.
        troubles: What should not have happened.
    """

    def __init__(self, stage: Stage, fleet: Fleet, plan: Plan, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.troubles: list[str] = []
        self._stage = stage
        self._fleet = fleet
        self._plan = plan
        self._seed = seed
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._stopped: dict[int, Found] = {}

    def start(self) -> None:
        """Begin."""
        plan = self._plan
        self._begin("kill", plan.kills, self._kill)
        self._begin("stop", plan.stops, self._stop)
        self._begin("restart", plan.restarts, self._restart)
        self._begin("roll", plan.rolls, self._roll)
        for name, proxy in self._stage.proxies.items():
            self._begin(name, plan.cuts, lambda dice, proxy=proxy: self._disturb(proxy, dice))
        if self._stage.pooler is not None:
            self._begin("pooler", plan.pooler, self._restart_pooler)

    def stop(self) -> None:
        """End all that is broken: what follows is fair weather."""
        self._is_over.set()
        for found in list(self._stopped.values()):
            found.signal(signal.SIGCONT)
        for thread in self._threads:
            if thread.name != "roll":
                thread.join()
        for proxy in self._stage.proxies.values():
            proxy.restore()

    def join(self) -> None:
        """Wait for the worker that may be leaving."""
        for thread in self._threads:
            thread.join()

    def add_calm_worker(self) -> Member:
        """Start a worker that is never harmed, but told to stop now and then."""
        words = ["-q", "calm", "--name", "calm", "-c", "4", "--shutdown-timeout", "120"]
        lease = self._plan.calm_lease
        member = worker(self._stage, "calm", "direct", words, lease, {CALM: "1"})
        return self._fleet.add(member)

    def _begin(self, name: str, span: Span, harm: Callable[[random.Random], None]) -> None:
        dice = random.Random(f"{self._seed} {name}")

        def work() -> None:
            while not self._is_over.wait(dice.uniform(*span)):
                try:
                    harm(dice)
                except Exception as error:
                    self.troubles.append(f"{name}: {type(error).__name__}: {error}")
                    return

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    # ---- processes -------------------------------------------------------------------------------

    def _victims(self) -> dict[str, list[Found]]:
        victims: dict[str, list[Found]] = {}
        for found in find(self._fleet.run):
            if not found.is_calm:
                victims.setdefault(found.kind, []).append(found)
        return victims

    def _kill(self, dice: random.Random) -> None:
        kind = dice.choices(list(TARGETS), list(TARGETS.values()))[0]
        victims = self._victims()
        chosen = victims.get("worker" if kind == "both" else kind)
        if not chosen:
            return
        victim = dice.choice(chosen)
        if kind == "both":
            # Only the lease tells that this worker is gone.
            for keeper in victims.get("keeper", []):
                if keeper.parent == victim.pid and keeper.signal(signal.SIGKILL):
                    self.counts["kill -9 of a keeper"] += 1
        if victim.signal(signal.SIGKILL):
            self.counts[f"kill -9 of a {victim.kind}"] += 1

    def _stop(self, dice: random.Random) -> None:
        victims = self._victims()
        chosen = victims.get(dice.choice(["worker", "worker", "worker", "keeper", "child"]))
        if not chosen:
            return
        victim = dice.choice(chosen)
        if not victim.signal(signal.SIGSTOP):
            return
        self.counts[f"SIGSTOP of a {victim.kind}"] += 1
        self._stopped[victim.pid] = victim
        self._is_over.wait(self._plan.lease * dice.uniform(1.2, 1.8))
        victim.signal(signal.SIGCONT)
        self._stopped.pop(victim.pid, None)

    def _roll(self, dice: random.Random) -> None:
        """Replace the calm worker, as a deploy does: the new one comes before the old one goes."""
        (old,) = [member for member in self._fleet.members if member.name == "calm"][-1:]
        self.add_calm_worker()
        self._is_over.wait(3.0)
        code = self._fleet.retire(old, 90.0)
        self.counts["SIGTERM of a worker"] += 1
        if code not in STOPPED:
            self.troubles.append(f"a worker that was told to stop ended with {code}")

    # ---- the server and the ways to it -----------------------------------------------------------

    def _restart(self, dice: random.Random) -> None:
        if dice.random() < 0.2:
            # The server ends all sessions when one of them dies like this.
            with contextlib.suppress(psycopg.Error), self._stage.connect() as admin:
                admin.execute("select pg_sleep(0)")
                pid = admin.info.backend_pid
                os.kill(pid, signal.SIGKILL)  # it is ours, and idle: the number is its own
                self.counts["kill -9 of a server process"] += 1
                admin.execute("select 1")
            return
        self._stage.restart()
        self.counts["immediate restart of the server"] += 1

    def _disturb(self, proxy: Proxy, dice: random.Random) -> None:
        match dice.choice(["all", "half", "half", "hole", "hole", "refuse"]):
            case "all":
                self.counts["connections cut"] += proxy.cut()
            case "half":
                self.counts["connections cut"] += proxy.cut(0.5)
            case "hole":
                proxy.blackhole()
                self.counts["black hole"] += 1
            case _:
                proxy.refuse()
                self.counts["connections cut"] += proxy.cut()
                self.counts["connections refused for a while"] += 1
        self._is_over.wait(dice.uniform(0.5, 4.0))
        proxy.restore()

    def _restart_pooler(self, dice: random.Random) -> None:
        assert self._stage.pooler is not None
        self._stage.pooler.stop()
        self._is_over.wait(dice.uniform(0, 1.5))
        self._stage.pooler.start()
        self.counts["restart of PgBouncer"] += 1


def worker(
    stage: Stage,
    name: str,
    way: str,
    words: list[str],
    lease: float,
    more: dict[str, str] | None = None,
) -> Member:
    """Describe a worker."""
    command = [sys.executable, "-m", "tasklib.cli", "worker", "tortured", "--log-format", "json"]
    environment = {
        "TASKLIB_DATABASE_URL": stage.url(way, "torture_worker"),
        "TASKLIB_LOCK_TIMEOUT_SECONDS": str(lease),
        "TASKLIB_KILL_GRACE_SECONDS": "1",
    }
    if way == "pooler":
        words = [*words, "--no-listen", "--poll-interval", "200ms"]
        environment["TASKLIB_PREPARED_STATEMENTS"] = "false"
    return Member(name, [*command, *words], environment | (more or {}))


def program(stage: Stage, file: str, words: list[str], way: str, role: str, name: str) -> Member:
    """Describe a producer or a zombie."""
    command: list[Any] = [sys.executable, str(Path(__file__).with_name(file)), *words]
    return Member(name, command, {"TASKLIB_DATABASE_URL": stage.url(way, role)})


def until(condition: Callable[[], bool], seconds: float, pause: float = 0.2) -> float | None:
    """Wait until something is so; return how long that took, None when it was too long."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(pause)
    return time.monotonic() - began
