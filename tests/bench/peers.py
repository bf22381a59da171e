"""The queues that are measured, each with the settings that its own documentation calls fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import install
from install import NODE, PROGRAMS, PYTHON

from tasklib._migrate import migrate

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
        load: SQL that adds %s tasks; without it the store is Redis.
        left: SQL that tells whether there are unfinished ones.
        single: SQL that enqueues one task, for pgbench.
        silence: SQL that switches notifications off.
        polling: The command of a worker that listens to none, when it is not the same.
        occupy: SQL that adds %s tasks which sleep.
        worker: The command of a worker, when it is not ``program work``.
        env: Variables for all its processes.
        narrow: The same with ten tasks a fetch.
        most: How many tasks it gets, when it is too slow for all.
        only: The workloads it takes part in; empty is all.
        prepare: Makes the schema at a URL, when it is not ``program setup``.
        installs: What it needs from a registry.
    """

    name: str
    settings: str
    program: list[str]
    load: str = ""
    left: str = ""
    single: str = ""
    silence: str | None = None
    polling: list[str] | None = None
    occupy: str = ""
    worker: list[str] = field(default_factory=list[str])
    env: Env = field(default_factory=dict[str, str])
    narrow: Peer | None = None
    most: int | None = None
    only: frozenset[str] = frozenset()
    prepare: Callable[[str], object] | None = None
    installs: Callable[[], object] | None = None

    def command(self, verb: str, *numbers: int) -> list[str]:
        """Return the command line for a verb."""
        if verb == "work" and self.worker:
            return self.worker
        return [*self.program, verb, *map(str, numbers)]

    def environment(self, url: str, scratch: Path | None = None) -> Env:
        """Return the environment of its processes."""
        path = os.pathsep.join([str(PROGRAMS), str(install.ROOT / "python")])
        own = {"BENCH_URL": url, "TASKLIB_DATABASE_URL": url, "PYTHONPATH": path}
        if scratch is not None:
            own |= {"BENCH_BEATS": str(scratch / "beats"), "BENCH_LINES": str(scratch / "lines")}
        return {**os.environ, **own, **self.env}

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

    def set_up(self, url: str) -> None:
        """Make the schema."""
        if self.prepare:
            self.prepare(url)
        else:
            self.ask(url, "setup")


def _python(file: str, python: Path | str = sys.executable) -> list[str]:
    return [str(python), str(PROGRAMS / file)]


def _with_narrow(peer: Peer, **changes: object) -> Peer:
    """Give a peer its form that fetches ten tasks at a time."""
    narrow = replace(peer, env={**peer.env, "BENCH_BATCH": "10"}, **changes)  # pyright: ignore
    return replace(peer, narrow=narrow)


def tasklib(concurrency: int) -> Peer:
    """The worker as users start it."""
    loaded = """
select count(*) from tasklib.enqueue_many((
  select jsonb_agg(jsonb_build_object('name', '{}', 'kwargs', '{}'::jsonb))
  from generate_series(1, %s)
))
"""
    peer = Peer(
        "tasklib",
        f"`tasklib worker --concurrency {concurrency}`, else defaults; `SyncTaskQueue` enqueues",
        _python("tasklib_produce.py"),
        env={"BENCH_MODE": "sync"},
        load=loaded.format("bench.noop", '{"at": 0}'),
        left="select exists (select from tasklib.ready) or exists (select from tasklib.running)",
        single="""select tasklib.enqueue('bench.noop', '{"at": 0}')""",
        silence="select tasklib.set_queue('default', notify => false)",
        occupy=loaded.format("bench.pause", '{"seconds": 0.5}'),
        worker=_tasklib_worker("tasklib_tasks", concurrency),
        polling=[
            *_tasklib_worker("tasklib_tasks", concurrency),
            *("--no-listen", "--poll-interval", "0.05"),
        ],
        prepare=migrate,
    )
    return _with_narrow(peer, worker=_python("tasklib_sql.py"))


def tasklib_threads(concurrency: int) -> Peer:
    """The same tasks as ordinary functions, and the blocking client."""
    return replace(
        tasklib(concurrency),
        name="tasklib-threads",
        settings=f"`tasklib worker --concurrency {concurrency}`, sync tasks in threads",
        worker=_tasklib_worker("tasklib_threads", concurrency),
        narrow=None,
        only=frozenset({"drain1", "drain2", "latency", "one", "bulk"}),
    )


def _tasklib_worker(module: str, concurrency: int) -> list[str]:
    command = [sys.executable, "-m", "tasklib.cli", "worker", module]
    return [*command, "--concurrency", str(concurrency)]


def graphile() -> Peer:
    """graphile-worker."""
    peer = Peer(
        "graphile",
        "as its performance page: concurrentJobs 24, maxPoolSize 25, localQueue 500, "
        "completeJobBatchDelay and failJobBatchDelay 0",
        [str(NODE), str(install.CACHE / "node" / "graphile.mjs")],
        load="""
select count(*) from graphile_worker.add_jobs((
  select array_agg(json_populate_record(null::graphile_worker.job_spec,
    '{"identifier": "noop", "payload": {"at": 0}}'))
  from generate_series(1, %s)
))
""",
        left="select exists (select from graphile_worker._private_jobs)",
        single="""select graphile_worker.add_job('noop', '{"at": 0}')""",
        most=20_000,
        installs=install.node_packages,
    )
    return _with_narrow(peer)


def pgqueuer() -> Peer:
    """pgqueuer with asyncpg."""
    load = """
with added as (
  insert into pgqueuer (priority, entrypoint, payload, execute_after, status)
  select 0, 'noop', convert_to('{"at": 0}', 'utf8'), now(), 'queued' from generate_series(1, %s)
  returning id, entrypoint, priority
)
insert into pgqueuer_log (job_id, status, entrypoint, priority)
select id, 'queued', entrypoint, priority from added
"""
    peer = Peer(
        "pgqueuer",
        "asyncpg, uvloop, batch_size 1000 (default 10), the autovacuum settings of its guide",
        _python("pgqueuer_queue.py", PYTHON),
        load=load,
        left="select exists (select from pgqueuer)",
        single=load.replace("%s", "1").strip(),
        most=20_000,
        installs=install.python_packages,
    )
    return _with_narrow(peer)


def procrastinate() -> Peer:
    """procrastinate with psycopg."""
    load = """
select cardinality(procrastinate_defer_jobs_v1((
  select array_agg(row('default', 'noop', 0, null, null, '{"at": 0}', null)
    ::procrastinate_job_to_defer_v1)
  from generate_series(1, %s)
)))
"""
    return Peer(
        "procrastinate",
        "PsycopgConnector, concurrency 30, delete_jobs always",
        _python("procrastinate_queue.py", PYTHON),
        load=load,
        left="select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
        single=load.replace("%s", "1").strip(),
        most=2_000,
        only=frozenset({"drain1", "drain2", "latency", "one", "bulk", "clients", "idle"}),
        installs=install.python_packages,
    )


def celery() -> Peer:
    """Celery with Redis, which is not durable with its defaults."""
    return Peer(
        "celery",
        "Redis with its defaults (not durable), 10 threads, prefetch 100, results ignored, "
        "no gossip, mingle or heartbeat",
        _python("celery_queue.py", PYTHON),
        most=3_000,
        only=frozenset({"drain1", "drain2", "latency", "one", "bulk"}),
        prepare=lambda _: install.redis_server(),
        installs=install.python_packages,
    )


def mintable() -> Peer:
    """The least that a table allows."""
    load = (
        "with added as (insert into task (at) select 0 from generate_series(1, %s)) "
        "select pg_notify('task', '')"
    )
    peer = Peer(
        "mintable",
        "delete … where id = any (array(select … limit 1000 for update skip locked)), psycopg",
        _python("mintable.py"),
        load=load,
        left="select exists (select from task)",
        single=load.replace("%s", "1"),
        most=50_000,
    )
    return _with_narrow(peer)


def all_peers(concurrency: int = CONCURRENCY) -> dict[str, Peer]:
    """Return every peer by its name."""
    peers = [
        tasklib(concurrency),
        tasklib_threads(10),
        graphile(),
        pgqueuer(),
        procrastinate(),
        celery(),
        mintable(),
    ]
    return {peer.name: peer for peer in peers}
