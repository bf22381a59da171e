"""A million tasks through one worker: neither memory nor the hot tables grow with what was done.

Each tenth prints the rate, the memory of the worker with its helpers (PSS) and the size of the
tables that claims read. Ends with 1 when the memory has grown by more than a tenth after the second
tenth, or, without a held snapshot, a hot table has doubled.

Usage: ``make soak ARGS='--tasks N --held'``; with ``--held``, another transaction keeps a snapshot.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import nullcontext
from typing import Any

import install
from machine import pss_mib, tree
from peers import all_peers
from server import Connection, serve, value
from workers import Crew, database_crew
from workloads import snapshot

HOT = ("ready", "running")
BATCH = 10_000
MOST_WAITING = 50_000
Sample = dict[str, float]


def stream(team: Crew[Any], feeder: Connection, tasks: int) -> list[Sample]:
    """Keep the queue filled until all tasks have run; look at each tenth."""
    samples: list[Sample] = []
    started, added = time.monotonic(), 0
    while len(samples) < 10:
        done = team.beats()
        if added < min(tasks, done + MOST_WAITING):
            team.store.add(feeder, BATCH)
            added += BATCH
        else:
            time.sleep(0.01)
        # The worker says each hundredth task, so that the last ones of a tenth may be unsaid.
        if done >= (len(samples) + 1) * tasks // 10 - 200:
            samples.append(sample(team, feeder, done, time.monotonic() - started))
            print("  ".join(f"{name} {number:,.0f}" for name, number in samples[-1].items()))
            sys.stdout.flush()
        team.look(started + 3600)
    return samples


def sample(team: Crew[Any], session: Connection, done: int, seconds: float) -> Sample:
    """Look at what could grow."""
    size = "select pg_total_relation_size(%s::regclass) / 1024"
    memory = sum(pss_mib(tree(process.pid)) for process in team.processes)
    tables = {f"{name}_kB": float(str(value(session, size, f"tasklib.{name}"))) for name in HOT}
    return {"done": done, "tasks/s": done / seconds, "PSS MiB": memory, **tables}


def faults(samples: list[Sample], *, held: bool) -> list[str]:
    """Say what has grown."""
    early, late = samples[1], samples[-1]
    grown = [] if late["PSS MiB"] <= 1.1 * early["PSS MiB"] else ["the memory of the worker"]
    if not held:
        grown += [name for name in HOT if late[f"{name}_kB"] > 2 * early[f"{name}_kB"]]
    return grown


def main() -> int:
    """Run the stream on a private server."""
    parser = argparse.ArgumentParser(prog="make soak ARGS=…", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--held", action="store_true", help="keep a snapshot meanwhile")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    install.make_cache()
    peer = all_peers(100)["tasklib"]
    with serve(install.CACHE / f"server-{os.getpid()}", "1GB") as server:
        server.create(f"peer_{peer.name}")
        peer.set_up(server.url(f"peer_{peer.name}"))
        # A million tasks take less than the minute between two looks of autovacuum.
        server.set("autovacuum_naptime", "2s")
        with database_crew(server, peer, 1) as team:
            holder = snapshot(team.store.url) if options.held else nullcontext()
            with holder:
                feeder = team.store.session(autocommit=True)
                samples = stream(team, feeder, options.tasks)
    grown = faults(samples, held=options.held)
    print(f"grown: {', '.join(grown)}" if grown else "nothing has grown")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
