"""What is measured. Each function takes one peer once and returns figures by name."""

from __future__ import annotations

import statistics
import time

import psycopg
from peers import Peer
from server import Server
from workers import PATIENCE_SECONDS, Crew, crew

Figures = dict[str, float]

BATCH = 1000


def load(team: Crew, connection: psycopg.Connection[tuple[object, ...]], tasks: int) -> None:
    """Add no-op tasks in batches, in the transaction of the connection."""
    for first in range(0, tasks, BATCH):
        connection.execute(team.peer.load, [min(BATCH, tasks - first)])


def drain(server: Server, peer: Peer, tasks: int, processes: int) -> Figures:
    """Idle workers meet many tasks, which appear with one commit; until the last is finished."""
    with crew(server, peer, processes) as team, psycopg.connect(team.url) as feeder:
        load(team, feeder, tasks)
        feeder.execute("analyze")
        team.watcher.execute("checkpoint")
        team.peak_mib = 0.0
        worker, database = team.worker_cpu(), team.server_cpu(feeder)
        feeder.commit()
        started = time.monotonic()
        team.wait_done(tasks, started + PATIENCE_SECONDS)
        seconds = time.monotonic() - started
        worker, database = team.worker_cpu() - worker, team.server_cpu(feeder) - database
        team.look(started + 2 * PATIENCE_SECONDS)
        return {
            "rate": tasks / seconds,
            "server_us": database / tasks * 1e6,
            "worker_us": worker / tasks * 1e6,
            "cpu_us": (worker + database) / tasks * 1e6,
            "pss_mib": team.peak_mib,
        }


def latency(server: Server, peer: Peer, tasks: int) -> Figures:
    """From the call that enqueues to the first line of the task, one each 20 ms."""
    with crew(server, peer, 1) as team:
        said = peer.ask(team.url, "pings", tasks, 20)
        until = time.monotonic() + PATIENCE_SECONDS
        while len(team.lines()) < tasks:
            team.look(until)
            time.sleep(0.01)
        delays = [delay for _, delay in team.lines()]
        cuts = statistics.quantiles(delays, n=100, method="inclusive")
        return {
            "p50_ms": cuts[49],
            "p95_ms": cuts[94],
            "p99_ms": cuts[98],
            "seconds": said["seconds"],
        }
