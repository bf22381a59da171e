"""The queues that are measured, each with the settings that its own documentation calls fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import install
from install import NODE, PROGRAMS, PYTHON

CONCURRENCY = 100
"""How many async tasks TaskLib's worker runs at a time."""

Env = dict[str, str]


@dataclass(frozen=True)
class Peer:
    """How one queue is set up, filled, worked on and looked at.

    Attributes:
        name: What ``--peers`` and the tables call it.
        settings: What differs from its defaults, for people.
        program: A command that takes the verbs setup, work, one, bulk and pings.
        load: SQL that adds %s tasks.
        left: SQL that tells whether there are unfinished ones.
        worker: The command of a worker, when it is not ``program work``.
        env: Variables for all its processes.
        install: What it needs from a registry.
        skip: Workloads that are not for it.
    """

    name: str
    settings: str
    program: list[str]
    load: str = ""
    left: str = ""
    worker: list[str] = field(default_factory=list[str])
    env: Env = field(default_factory=dict[str, str])
    install: Callable[[], object] | None = None
    skip: frozenset[str] = frozenset()

    def command(self, verb: str, *numbers: int) -> list[str]:
        """Return the command line for a verb."""
        if verb == "work" and self.worker:
            return self.worker
        return [*self.program, verb, *map(str, numbers)]

    def environment(self, url: str, scratch: Path | None = None) -> Env:
        """Return the environment of its processes."""
        files = {}
        if scratch is not None:
            files = {"BENCH_BEATS": str(scratch / "beats"), "BENCH_LINES": str(scratch / "lines")}
        own = {"BENCH_URL": url, "TASKLIB_DATABASE_URL": url, "PYTHONPATH": _pythonpath()}
        return {**os.environ, **own, **files, **self.env}

    def ask(self, url: str, verb: str, *numbers: int) -> dict[str, float]:
        """Run a verb of its program to the end; return the figures that it says."""
        ran = subprocess.run(
            self.command(verb, *numbers),
            env=self.environment(url),
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            raise RuntimeError(f"{self.name} {verb}: {ran.stderr[-2000:]}")
        last = ran.stdout.strip().splitlines()[-1:]
        return json.loads(last[0]) if last else {}


def _pythonpath() -> str:
    return os.pathsep.join([str(PROGRAMS), str(install.ROOT / "python")])


def _python(file: str, python: Path | str = sys.executable) -> list[str]:
    return [str(python), str(PROGRAMS / file)]


TASKLIB_LOAD = """
select count(*) from tasklib.enqueue_many((
  select jsonb_agg(jsonb_build_object('name', 'bench.noop', 'kwargs', '{"at": 0}'::jsonb))
  from generate_series(1, %s)
))
"""
TASKLIB_LEFT = "select exists (select from tasklib.ready) or exists (select from tasklib.running)"


def _tasklib(name: str, module: str, concurrency: int, **more: object) -> Peer:
    return Peer(
        name,
        f"tasklib worker --concurrency {concurrency}",
        _python("tasklib_produce.py"),
        TASKLIB_LOAD,
        TASKLIB_LEFT,
        worker=[
            *(sys.executable, "-m", "tasklib.cli", "worker", module),
            *("--concurrency", str(concurrency)),
        ],
        **more,  # pyright: ignore[reportArgumentType]
    )


def all_peers(concurrency: int = CONCURRENCY) -> dict[str, Peer]:
    """Return every peer by its name."""
    peers = [
        _tasklib("tasklib", "tasklib_tasks", concurrency),
        _tasklib("tasklib-threads", "tasklib_threads", 10, env={"BENCH_MODE": "sync"}),
        Peer(
            "graphile",
            "concurrentJobs 24, localQueue 500 (refetchDelay 10 ms), complete and fail batched",
            [str(NODE), str(install.CACHE / "node" / "graphile.mjs")],
            load="""
select count(*) from graphile_worker.add_jobs((
  select array_agg(json_populate_record(null::graphile_worker.job_spec,
    '{"identifier": "noop", "payload": {"at": 0}}'))
  from generate_series(1, %s)
))
""",
            left="select exists (select from graphile_worker._private_jobs)",
            install=install.node_packages,
        ),
        Peer(
            "pgqueuer",
            "asyncpg, uvloop, batch_size 1000, autovacuum settings of its guide",
            _python("pgqueuer_queue.py", PYTHON),
            load="""
with added as (
  insert into pgqueuer (priority, entrypoint, payload, execute_after, status)
  select 0, 'noop', convert_to('{"at": 0}', 'utf8'), now(), 'queued' from generate_series(1, %s)
  returning id, entrypoint, priority
)
insert into pgqueuer_log (job_id, status, entrypoint, priority)
select id, 'queued', entrypoint, priority from added
""",
            left="select exists (select from pgqueuer)",
            install=install.python_packages,
        ),
        Peer(
            "mintable",
            "delete where id = any(array(select … limit 1000 for update skip locked))",
            _python("mintable.py"),
            load=(
                "with added as (insert into task (at) select 0 from generate_series(1, %s)) "
                "select pg_notify('task', '')"
            ),
            left="select exists (select from task)",
        ),
    ]
    return {peer.name: peer for peer in peers}
