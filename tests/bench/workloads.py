"""What is measured. Each function takes one peer once and returns figures by name."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import machine
import psycopg
from peers import Peer
from programs.beat import EVERY
from server import Server
from workers import PATIENCE_SECONDS, SETTLE_SECONDS, Crew, Failure, Stopwatch, crew, database_crew

from tasklib import _binaries

Figures = dict[str, float]

CLIENTS = 16
BATCH = 1000


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    tasks: int = 20_000
    stream: int = 100_000
    pings: int = 500
    singles: int = 2_000
    idle_seconds: float = 60
    clients_seconds: float = 3
    clients_turns: int = 2
    settle: float = SETTLE_SECONDS

    def of(self, peer: Peer, tasks: int) -> int:
        """Return how many tasks this peer gets: the slow ones get fewer."""
        return min(tasks, peer.most or tasks)


QUICK = Scale(2_000, 5_000, 30, 200, idle_seconds=2, clients_seconds=1, clients_turns=1, settle=0.1)


def drain(server: Server, peer: Peer, scale: Scale, processes: int) -> Figures:
    """Idle workers meet many tasks, which appear with one commit; until the last is finished."""
    tasks = scale.of(peer, scale.tasks)
    if not peer.load:
        return _drain_what_waits(server, peer, tasks, processes)
    with database_crew(server, peer, processes, scale.settle) as team:
        feeder = team.store.session()
        team.store.add(feeder, tasks)
        feeder.execute("analyze")
        team.store.settle()
        team.peak_mib = 0.0
        watch = Stopwatch(team)
        feeder.commit()
        return _drained(team, watch, tasks)


def _drain_what_waits(server: Server, peer: Peer, tasks: int, processes: int) -> Figures:
    """Start the workers after the tasks: without transactions these cannot appear all at once."""
    with crew(server, peer, 0) as team:
        peer.ask(team.store.url, "bulk", tasks, tasks)
        for _ in range(processes):
            team.start()
        until = time.monotonic() + PATIENCE_SECONDS
        while not team.lines():
            team.look(until)
            time.sleep(0.002)
        return _drained(team, Stopwatch(team), tasks)


def _drained(team: Crew[Any], watch: Stopwatch, tasks: int) -> Figures:
    team.wait_done(tasks, watch.started + PATIENCE_SECONDS)
    figures = watch.figures(tasks)
    team.weigh()
    return figures | {"pss_mib": team.peak_mib}


def latency(server: Server, peer: Peer, scale: Scale) -> Figures:
    """From the call that enqueues to the first line of the task, one each 20 ms."""
    with crew(server, peer, 1, scale.settle) as team:
        others = machine.Others(team.store.pids)
        peer.ask(team.store.url, "pings", scale.pings, 20)
        until = time.monotonic() + PATIENCE_SECONDS
        while len(team.lines()) < scale.pings:
            team.look(until)
            time.sleep(0.01)
        cuts = statistics.quantiles((delay for _, delay in team.lines()), n=100)
        return {
            "p50_ms": cuts[49],
            "p95_ms": cuts[94],
            "p99_ms": cuts[98],
            "other_cores": others.cores(),
        }


def enqueue_one(server: Server, peer: Peer, scale: Scale) -> Figures:
    """One producer, one task a call, each committed."""
    return _enqueue(server, peer, "one", scale.of(peer, scale.singles), 1)


def enqueue_bulk(server: Server, peer: Peer, scale: Scale) -> Figures:
    """One producer, 1,000 tasks a call, each call committed."""
    return _enqueue(server, peer, "bulk", scale.of(peer, scale.tasks), BATCH)


def _enqueue(server: Server, peer: Peer, verb: str, tasks: int, batch: int) -> Figures:
    with crew(server, peer, 0) as team:
        others = machine.Others(team.store.pids)
        before = team.store.cpu_seconds()
        said = peer.ask(team.store.url, verb, tasks, batch)
        cost = team.store.cpu_seconds() - before
        return {
            "rate": tasks / said["seconds"],
            "server_us": cost / tasks * 1e6,
            "other_cores": others.cores(),
        }


def held(server: Server, peer: Peer, scale: Scale) -> Figures:
    """A stream of tasks while another transaction holds a snapshot.

    The queue is kept filled, so that no worker goes idle; what the feeding costs is not counted.
    """
    tasks = scale.stream
    backlog, batch = tasks // 20, tasks // 100
    with database_crew(server, peer, 1, scale.settle) as team, snapshot(team.store.url):
        feeder = team.store.session(autocommit=True)
        team.store.settle()
        watch = Stopwatch(team)
        added, samples = 0, [(0, team.store.cpu_seconds())]
        until = watch.started + PATIENCE_SECONDS
        while (done := team.beats()) < tasks - 2 * EVERY and time.monotonic() < until:
            if added < min(tasks, done + backlog):
                team.store.add(feeder, batch)
                added += batch
            else:
                time.sleep(0.002)
            if done - samples[-1][0] >= tasks // 100:
                samples.append((done, team.store.cpu_seconds()))
            team.look(until + 1)
        figures = watch.figures(max(samples[-1][0], 1))
        return figures | _tenths(samples) | {"pss_mib": team.peak_mib}


def _tenths(samples: list[tuple[int, float]]) -> Figures:
    """Compare what a task cost the server in the first and in the last tenth."""
    total = samples[-1][0]
    if len(samples) < 8:
        raise Failure(f"only {total} tasks were done in time")
    early = next(sample for sample in samples if sample[0] >= total * 0.1)
    late = next(sample for sample in samples if sample[0] >= total * 0.9)

    def cost(first: tuple[int, float], last: tuple[int, float]) -> float:
        return (last[1] - first[1]) / (last[0] - first[0]) * 1e6

    first, last = cost(samples[0], early), cost(late, samples[-1])
    return {"first_us": first, "last_us": last, "growth": last / first, "tasks": total}


def held_ten(server: Server, peer: Peer, scale: Scale) -> Figures:
    """The same with ten tasks a fetch."""
    if peer.narrow is None:
        raise Failure(f"{peer.name}: no way to fetch ten")
    few = scale.stream if peer.name == "tasklib" else scale.of(peer, scale.stream)
    return held(server, peer.narrow, replace(scale, stream=few))


def snapshot(url: str) -> psycopg.Connection[Any]:
    """Look once and stay open, as a report or a dump does."""
    connection = psycopg.connect(url)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute("select count(*) from pg_class")
    return connection


def idle(server: Server, peer: Peer, scale: Scale) -> Figures:
    """One worker with nothing to do; autovacuum is off, as its transactions would be counted."""
    server.set("autovacuum", "off")
    try:
        with database_crew(server, peer, 1, scale.settle) as team:
            time.sleep(min(scale.idle_seconds, 12))  # the server counts late
            watch, before = Stopwatch(team), team.store.transactions()
            time.sleep(scale.idle_seconds)
            made = team.store.transactions() - before
            figures = watch.figures(1)
            return {
                "queries_s": made / scale.idle_seconds,
                "worker_ms_s": figures["worker_us"] / scale.idle_seconds / 1000,
                "other_cores": figures["other_cores"],
            }
    finally:
        server.set("autovacuum", "on")


def clients(server: Server, peer: Peer, scale: Scale, is_odd: bool) -> Figures:
    """Sixteen producers at once, one task a call, with notification and without.

    The worker is busy with tasks that only sleep, or it runs what comes, idles and wakes. Without
    notification it looks each 50 ms, or it would sleep on and leave the machine to the producers.
    """
    others = machine.Others([server.pid])
    figures: Figures = {}
    if peer.silence is None:
        with database_crew(server, peer, 1, scale.settle) as team:
            figures["idle_on"] = _pgbench(team, scale.clients_seconds)
    else:
        for mode in ("busy", "idle"):
            figures |= _side_by_side(server, peer, scale, mode, is_odd)
    return figures | {"other_cores": others.cores()}


def _side_by_side(server: Server, peer: Peer, scale: Scale, mode: str, is_odd: bool) -> Figures:
    """Take turns of seconds, as commits of many at once depend on the machine's every mood.

    All turns of a busy worker are within the 18 s for which it said that it would sleep.
    """
    polling = replace(peer, worker=peer.polling or peer.worker)
    with (
        database_crew(server, polling, 1, scale.settle) as off,
        database_crew(server, peer, 1, scale.settle) as on,
    ):
        off.store.session(autocommit=True).execute(peer.silence or "")  # pyright: ignore
        if mode == "busy":
            seconds = 2 * scale.clients_turns * (scale.clients_seconds + 1) + 10
            for team in (on, off):
                team.store.session(autocommit=True).execute(peer.occupy, [int(200 * seconds)])  # pyright: ignore
            time.sleep(scale.settle)
        rates: dict[str, list[float]] = {"on": [], "off": []}
        for turn in range(scale.clients_turns):
            # Which comes first changes from turn to turn, and from round to round.
            for team in (on, off) if (turn % 2 == 0) is is_odd else (off, on):
                rates["on" if team is on else "off"].append(_pgbench(team, scale.clients_seconds))
                if mode == "idle":
                    team.wait_done(0, time.monotonic() + PATIENCE_SECONDS)
    means = {notify: statistics.fmean(each) for notify, each in rates.items()}
    return {
        f"{mode}_on": means["on"],
        f"{mode}_off": means["off"],
        f"{mode}_ratio": means["on"] / means["off"],
    }


def _pgbench(team: Crew[Any], seconds: float) -> float:
    """Return the transactions a second of pgbench with the statement that enqueues one task."""
    program = shutil.which("pgbench", path=_binaries.find().folder) or shutil.which("pgbench")
    if program is None:
        raise Failure("pgbench is not among the server's programs")
    script = team.scratch / "enqueue.sql"
    script.write_text(team.peer.single + ";\n")
    numbers = ["--client", str(CLIENTS), "--jobs", "2", "--time", str(max(1, round(seconds)))]
    ran = subprocess.run(
        [program, "--no-vacuum", *numbers, "--protocol=prepared", "-f", script, team.store.url],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"tps = ([\d.]+)", ran.stdout)
    if found is None:
        raise Failure(f"pgbench: {ran.stderr[-1000:]}")
    return float(found[1])


Workload = Callable[[Server, Peer, Scale, int], Figures]

WORKLOADS: dict[str, Workload] = {
    "one": lambda server, peer, scale, _: enqueue_one(server, peer, scale),
    "bulk": lambda server, peer, scale, _: enqueue_bulk(server, peer, scale),
    "clients": lambda server, peer, scale, number: clients(server, peer, scale, number % 2 == 1),
    "drain1": lambda server, peer, scale, _: drain(server, peer, scale, 1),
    "drain2": lambda server, peer, scale, _: drain(server, peer, scale, 2),
    "latency": lambda server, peer, scale, _: latency(server, peer, scale),
    "held": lambda server, peer, scale, _: held(server, peer, scale),
    "held10": lambda server, peer, scale, _: held_ten(server, peer, scale),
    "idle": lambda server, peer, scale, _: idle(server, peer, scale),
}
# What counts and does not vary is measured in the first round alone.
ONCE = {"idle"}
