"""Load on a pair of servers, and what must be so after a failover."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from failover.cluster import Node, Pair, wait_until
from failover.drilled import LEDGER
from proxy import Proxy
from tasklib._migrate import migrate

LEASE_SECONDS = 10
# What the documentation promises: workers go on within this time after the promotion.
RESUME_SECONDS = 15.0
DRAIN_SECONDS = 90.0
UNPROMOTED_SECONDS = 2.0
PAUSE = 0.01


@dataclass(frozen=True)
class Run:
    """A line of the ledger: an attempt began."""

    task: str
    attempt: int
    run: str
    at: float
    pid: int


class Ledger:
    """What workers wrote down outside of the database."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def runs(self) -> list[Run]:
        return [Run(**json.loads(line)) for line in self.path.read_text().splitlines()]

    def after(self, moment: float) -> list[Run]:
        """Return the runs that began later than a moment of `time.time`."""
        return [run for run in self.runs() if run.at > moment]

    def of(self, task_id: object) -> list[Run]:
        return [run for run in self.runs() if run.task == str(task_id)]


class Worker:
    """A real ``tasklib worker``."""

    def __init__(self, url: str, ledger: Ledger, log: Path, *words: str) -> None:
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasklib.cli", "worker", "drilled", *words],
                cwd=Path(__file__).parent,
                env={
                    **os.environ,
                    LEDGER: str(ledger.path),
                    "TASKLIB_DATABASE_URL": url,
                    "TASKLIB_LOCK_TIMEOUT_SECONDS": str(LEASE_SECONDS),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log.count(text) >= times, f"a worker says {text!r}")

    def stop(self) -> None:
        """Let it leave in order; one that does not is killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


@dataclass
class Sent:
    """What producers know of their tasks. A task whose commit was not answered is in none of these.

    Attributes:
        acknowledged: Tasks whose commit was answered, with when.
        rolled_back: Tasks that must not exist.
    """

    acknowledged: dict[str, float] = field(default_factory=dict[str, float])
    rolled_back: set[str] = field(default_factory=set[str])


class Producer(threading.Thread):
    """Enqueues through the proxy, and tries again for as long as it takes."""

    def __init__(self, url: str, sent: Sent, seed: int) -> None:
        super().__init__(name=f"producer-{seed}", daemon=True)
        self._url = url
        self._sent = sent
        self._random = random.Random(seed)
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_over = False
        self.faults: list[BaseException] = []

    def run(self) -> None:
        while not self.is_over:
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as conn:
                    while not self.is_over:
                        self.goes_on.wait()
                        self._enqueue(conn)
                        time.sleep(PAUSE)
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
                time.sleep(0.1)
            except BaseException as error:
                self.faults.append(error)
                raise

    def _enqueue(self, conn: psycopg.Connection[Any]) -> None:
        name = self._random.choice(["drill.quick", "drill.quick", "drill.effect"])
        kwargs = {"seconds": 0} if name == "drill.effect" else {}
        keeps = self._random.random() > 0.1
        ids: list[str] = []
        with conn.transaction(force_rollback=not keeps):
            for _ in range(self._random.choice([1, 1, 1, 5])):
                row = conn.execute(
                    "select tasklib.enqueue(%s, %s)::text", (name, Jsonb(kwargs))
                ).fetchone()
                assert row
                ids.append(row[0])
        if keeps:
            repeated = [one for one in ids if one in self._sent.acknowledged]
            assert not repeated, f"an id for the second time: {repeated}"
            self._sent.acknowledged.update((one, time.time()) for one in ids)
        else:
            self._sent.rolled_back.update(ids)


class Drill:
    """A pair under load, failover after failover; a context manager.

    One worker comes through the proxy. The other one knows both servers, and takes the one that
    accepts writes.
    """

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._pair = Pair()
        self._ledger = Ledger(folder / "ledger.txt")
        self._sent = Sent()
        self._lost: set[str] = set()

    def __enter__(self) -> Drill:
        self._pair.__enter__()
        primary = self._pair.primary
        migrate(primary.conninfo())
        primary.ask("create table effect (task_id uuid not null, run uuid not null)")
        self._proxy = Proxy(primary.socket)
        url = f"postgresql://tasklib@127.0.0.1:{self._proxy.port}/tasklib"
        self._workers = [
            Worker(url, self._ledger, self._folder / "proxied.log", "-c", "8"),
            Worker(both(self._pair), self._ledger, self._folder / "multihost.log", "-c", "8"),
        ]
        self._producers = [Producer(url, self._sent, seed) for seed in (1, 2)]
        for worker in self._workers:
            worker.says("takes tasks of")
        for producer in self._producers:
            producer.start()
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self._producers:
            producer.is_over = True
            producer.goes_on.set()
            producer.join()
        for worker in self._workers:
            worker.stop()
        self._proxy.close()
        self._pair.__exit__(None, None, None)

    def fail_over(self, *, synchronous: bool, rewind: bool) -> None:
        """Kill the primary under load, promote the standby, and check all that was promised."""
        primary, standby = self._pair.primary, self._pair.standby
        primary.replicate(standby, synchronous=synchronous)
        self._run_for_a_while()
        spanning = self._spanning(primary)

        cut_from = cut_until = float("inf")
        if not synchronous:
            cut_from = time.time()
            primary.catch_up(standby)
            completed = self._completed(primary)
            primary.catch_up(standby)
            standby.part()
            cut_until = time.time()
            time.sleep(1.0)
        else:
            # What is visible is on the standby, too: commits are shown after it has confirmed them.
            completed = self._completed(primary)

        killed_at = time.time()
        primary.kill()
        self._repoint(standby)
        time.sleep(UNPROMOTED_SECONDS)
        self._pair.promote()
        self._resumes(time.time())
        time.sleep(1.0)

        self._drain(standby)
        self._check_tasks(standby, cut_from, cut_until, killed_at)
        self._check_effects(standby)
        again = {run.task for run in self._ledger.after(killed_at)} & completed
        assert not again, f"completed before the failover, and run again: {sorted(again)[:5]}"
        self._check_order(standby)
        assert standby.ask("select tasklib.sweep()") == 0
        if synchronous:
            assert not spanning - self._known(standby)
        self._check_sessions()
        self._pair.take_back(rewind=rewind)
        self._resume_load()

    # ---- steps -----------------------------------------------------------------------------------

    def _run_for_a_while(self) -> None:
        before, target = len(self._ledger.runs()), 100
        wait_until(lambda: len(self._ledger.runs()) >= before + target, "there is load")

    def _spanning(self, primary: Node) -> set[str]:
        """Enqueue what runs across the failover, in every way that tasks can run."""
        made: set[str] = set()
        for name in ("drill.slow", "drill.apart", "drill.effect"):
            task_id = primary.ask(
                "select tasklib.enqueue(%s, %s, priority => 100)::text",
                name,
                Jsonb({"seconds": 4}),
            )
            made.add(task_id)
        wait_until(
            lambda: made <= {run.task for run in self._ledger.runs()}, "the slow tasks have begun"
        )
        self._sent.acknowledged.update((one, time.time()) for one in made)
        return made

    def _repoint(self, node: Node) -> None:
        """Lead all traffic to another node: the old one is fenced off from then on."""
        self._proxy.repoint(node.socket)
        self._proxy.cut()

    def _resumes(self, promoted_at: float) -> None:
        """Every worker starts tasks again by itself, soon."""
        pids = {worker.process.pid for worker in self._workers}
        missing = pids

        def all_have() -> bool:
            nonlocal missing
            missing = pids - {run.pid for run in self._ledger.after(promoted_at)}
            return not missing

        try:
            wait_until(all_have, "workers go on", RESUME_SECONDS)
        except AssertionError:
            logs = [w.log[-3000:] for w in self._workers if w.process.pid in missing]
            raise AssertionError("a worker did not go on:\n" + "\n".join(logs)) from None

    def _drain(self, primary: Node) -> None:
        for producer in self._producers:
            producer.goes_on.clear()
        wait_until(
            lambda: primary.ask(
                "select count(*) = 0 from tasklib.tasks where completed_at is null "
                "and (state <> 'failed' or next_retry_at is not null)"
            ),
            "all tasks have ended",
            DRAIN_SECONDS,
        )

    def _resume_load(self) -> None:
        for producer in self._producers:
            assert not producer.faults, producer.faults
            producer.goes_on.set()

    # ---- checks ----------------------------------------------------------------------------------

    def _known(self, node: Node) -> set[str]:
        return _ids(node, "select id::text from tasklib.tasks")

    def _completed(self, node: Node) -> set[str]:
        return _ids(node, "select id::text from tasklib.tasks where state = 'completed'")

    def _check_tasks(
        self, primary: Node, cut_from: float, cut_until: float, killed_at: float
    ) -> None:
        known = self._known(primary)
        unfinished = known - self._completed(primary)
        assert not unfinished, f"ended, but not well: {sorted(unfinished)[:5]}"
        sent = self._sent.acknowledged
        missing = {one for one in sent if one not in known} - self._lost
        too_old = {one for one in missing if sent[one] < cut_from}
        assert not too_old, f"committed before the cut, and lost: {sorted(too_old)[:5]}"
        # The test's own cut is what it says.
        kept = {one for one in known & sent.keys() if cut_until < sent[one] < killed_at}
        assert not kept, f"committed after the cut, and there: {sorted(kept)[:5]}"
        self._lost |= missing
        assert not known & self._sent.rolled_back, "rolled back, and there"

    def _check_effects(self, primary: Node) -> None:
        wrong = _ids(
            primary,
            """
            select task.id::text from tasklib.tasks as task
              full join effect on effect.task_id = task.id
            where task.name = 'drill.effect' or task.id is null
            group by task.id
            having count(effect.task_id) <> 1 or task.id is null
            """,
        )
        assert not wrong, f"effects that are not there once: {sorted(map(str, wrong))[:5]}"
        # The result that was accepted is that of the run whose effect is there.
        other = _ids(
            primary,
            """
            select task.id::text from tasklib.tasks as task
              join effect on effect.task_id = task.id
            where effect.run::text <> task.result ->> 'value'
            """,
        )
        assert not other, f"effect and result are of different runs: {sorted(other)[:5]}"

    def _check_order(self, primary: Node) -> None:
        """New tasks are handed out in the order in which they were enqueued."""
        with psycopg.connect(primary.conninfo(), autocommit=True) as conn:

            def column(text: str, *params: object) -> list[Any]:
                return [row[0] for row in conn.execute(text, params).fetchall()]

            (worker,) = column("select tasklib.register_worker('by hand')")
            made = [
                column("select tasklib.enqueue('by.hand', queue => 'order')")[0] for _ in range(40)
            ]
            taken: list[Any] = []
            while len(taken) < len(made):
                some = column("select id from tasklib.claim(%s, '{order}', 7)", worker)
                assert some, "tasks that cannot be claimed"
                taken += some
                for task_id in some:
                    column("select tasklib.complete(%s, %s, 1)", task_id, worker)
            column("select tasklib.deregister_worker(%s)", worker)
        assert taken == made

    def _check_sessions(self) -> None:
        """Workers and keepers are where writes are accepted."""
        for worker in self._workers:
            assert worker.process.poll() is None, worker.log[-3000:]
        (count,) = _ids(
            self._pair.primary,
            "select count(*)::text from pg_stat_activity where application_name "
            "in ('tasklib worker', 'tasklib keeper')",
        )
        assert int(count) >= 2 * len(self._workers)


def both(pair: Pair) -> str:
    """Return a connection string that knows both nodes, and takes the one that accepts writes."""
    hosts = ",".join(str(node.folder) for node in pair.nodes)
    ports = ",".join(str(node.port) for node in pair.nodes)
    return f"host={hosts} port={ports} user=tasklib dbname=tasklib target_session_attrs=read-write"


def _ids(node: Node, question: str) -> set[str]:
    with psycopg.connect(node.conninfo(), autocommit=True) as conn:
        return {row[0] for row in conn.execute(question.encode()).fetchall()}
