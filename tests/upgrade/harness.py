"""An upgrade under load, and what has to be true when it is over."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from upgrade.releases import PROGRAM, REPOSITORY, Release, python
from upgrade.sessions import TABLES, Session, sessions
from upgrade.waits import Waits

CURRENT = REPOSITORY / "python"


@dataclass(frozen=True)
class Times:
    """How long each part takes, in seconds."""

    before: float
    dump: float
    open_enqueue: float
    after: float
    long_tasks: float


SHORT = Times(before=2, dump=2, open_enqueue=3, after=3, long_tasks=8)
LONG = Times(before=20, dump=30, open_enqueue=30, after=120, long_tasks=90)


@dataclass
class Report:
    """What happened; everything in ``wrong`` is a broken promise."""

    wrong: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def expect(self, condition: object, what: str) -> None:
        """Note what is not so."""
        if not condition:
            self.wrong.append(what)


class Upgrade:
    """One database, from the schema of a release to a newer one, with clients that go on.

    Args:
        conninfo: An empty database.
        release: Where it begins.
        folder: For files of this run.
        times: How long each part takes.
        sql: The files of the new version; those of this checkout by default.
    """

    def __init__(
        self, conninfo: str, release: Release, folder: Path, times: Times, sql: Path | None = None
    ) -> None:
        self._conninfo = conninfo
        self._release = release
        self._folder = folder
        self._times = times
        self._sql = sql
        self._report = Report()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._sessions: list[Session] = []
        self._acknowledged: list[str] = []

    def run(self) -> Report:
        """Do it, and look at what came of it."""
        self._install()
        with ExitStack() as stack:
            stack.callback(self._kill)
            waits = stack.enter_context(Waits(self._conninfo))
            for name in ("worker-old-1", "worker-old-2", "producer-old"):
                self._start(name, self._release.unpacked(self._folder))
            self._wait_until_started(3)
            self._long_tasks()
            self._start_sessions()
            time.sleep(self._times.before)
            with self._holding_dump(), self._holding_enqueue():
                self._migrate()
            self._start("worker-new", CURRENT)
            self._start("producer-new", CURRENT)
            self._wait_until_started(5)
            time.sleep(self._times.after)
            self._stop_producers()
            self._wait_until_drained()
            self._stop_workers()
        self._judge(waits)
        return self._report

    # ---- clients ---------------------------------------------------------------------------------

    def _install(self) -> None:
        with psycopg.connect(self._conninfo) as conn:
            conn.execute(self._release.script.read_text())
            conn.execute(TABLES)
            row = conn.execute(
                "select tasklib.enqueue('up.loop', '{\"number\": 0}') from generate_series(1, 50)"
            ).fetchall()
        self._acknowledged += [str(task_id) for (task_id,) in row]

    def _start(self, name: str, driver: Path) -> None:
        what = name.partition("-")[0]
        with (self._folder / f"{name}.log").open("w") as log:
            self._processes[name] = python(
                driver,
                str(PROGRAM),
                what,
                self._conninfo,
                str(self._folder),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_until_started(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self._lines("started")) < count and time.monotonic() < deadline:
            time.sleep(0.1)

    def _long_tasks(self) -> None:
        with psycopg.connect(self._conninfo) as conn:
            for name in ("up.long", "up.long_thread"):
                arguments = {"number": 0, "seconds": self._times.long_tasks}
                row = conn.execute(
                    "select tasklib.enqueue(%s, %s)", [name, json.dumps(arguments)]
                ).fetchone()
                assert row
                self._acknowledged.append(str(row[0]))

    def _start_sessions(self) -> None:
        self._sessions = sessions(self._conninfo)
        for session in self._sessions:
            session.start()

    # ---- the upgrade -----------------------------------------------------------------------------

    @contextmanager
    def _holding_dump(self) -> Generator[None]:
        """Hold what pg_dump holds, for a while."""
        with psycopg.connect(self._conninfo) as conn:
            row = conn.execute(
                "select string_agg(format('%I.%I', nspname, relname), ', ') from pg_class "
                "join pg_namespace as space on space.oid = relnamespace "
                "where nspname in ('tasklib', 'public') and relkind = 'r'"
            ).fetchone()
            assert row
            conn.execute(f"lock table {row[0]} in access share mode")
            timer = threading.Timer(self._times.dump, conn.commit)
            timer.start()
            yield
            timer.join()

    @contextmanager
    def _holding_enqueue(self) -> Generator[None]:
        """Keep a transaction open that has enqueued."""
        with psycopg.connect(self._conninfo) as conn:
            row = conn.execute("select tasklib.enqueue('up.loop', '{\"number\": 0}')").fetchone()
            assert row
            timer = threading.Timer(self._times.open_enqueue, conn.commit)
            timer.start()
            yield
            timer.join()
            self._acknowledged.append(str(row[0]))

    def _migrate(self) -> None:
        """Twice at once, as two machines that are deployed would."""
        began = time.monotonic()
        code = (
            "import sys; from pathlib import Path; from tasklib import _migrate; "
            "sql = Path(sys.argv[2]) if sys.argv[2:] else None; "
            "print(_migrate.migrate(sys.argv[1], sql=sql, on_wait=lambda why: print(why)))"
        )
        arguments = [self._conninfo, *([str(self._sql)] if self._sql else [])]
        runs = [
            python(
                CURRENT, "-c", code, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for _ in range(2)
        ]
        for number, run in enumerate(runs, 1):
            output, _ = run.communicate(timeout=600)
            (self._folder / f"migrate-{number}.log").write_text(output)
            self._report.expect(run.returncode == 0, f"migrate failed: {output}")
        self._report.facts["migrate_seconds"] = round(time.monotonic() - began, 1)

    # ---- the end ---------------------------------------------------------------------------------

    def _stop_producers(self) -> None:
        for session in self._sessions:
            session.stop()
        for name in ("producer-old", "producer-new"):
            self._stop(name)

    def _stop_workers(self) -> None:
        for name in ("worker-old-1", "worker-old-2", "worker-new"):
            self._stop(name)

    def _stop(self, name: str) -> None:
        process = self._processes[name]
        self._report.expect(process.poll() is None, f"{name} ended before it was told to")
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            code = "nothing"
        self._report.expect(code == 0, f"{name} ended with {code}")

    def _kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def _wait_until_drained(self) -> None:
        """Wait for as long as something gets done: how fast the machine is, is not the matter."""
        text = "select count(*) from tasklib.tasks where state <> 'completed'"
        left, deadline = -1, 0.0
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            while (row := conn.execute(text).fetchone()) and row[0]:
                if row[0] != left:
                    left, deadline = row[0], time.monotonic() + 60 + self._times.long_tasks
                if time.monotonic() > deadline:
                    self._report.wrong.append(f"{left} tasks are left, and nothing gets done")
                    return
                time.sleep(0.2)

    def _judge(self, waits: Waits) -> None:
        report = self._report
        rolled_back = {line["id"] for line in self._lines("rolled_back")}
        acknowledged = [
            *self._acknowledged,
            *(line["id"] for line in self._lines("acknowledged")),
            *(task_id for session in self._sessions for task_id in session.acknowledged),
        ]
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            rows = conn.execute("select id::text, name, state from tasklib.tasks").fetchall()
            effects = Counter(row[0] for row in conn.execute("select id::text from effect"))
            swept = conn.execute("select tasklib.sweep()").fetchone()
        ended = {task_id: (name, state) for task_id, name, state in rows}
        ran = Counter(line["id"] for line in self._lines("ran"))

        errors = [error for session in self._sessions for error in session.errors]
        errors += [line["error"] for line in self._lines("errors")]
        for error, times in Counter(error.partition("\n")[0] for error in errors).items():
            report.wrong.append(f"{times} times at a client: {error}")
        report.expect(len(acknowledged) == len(set(acknowledged)), "an id was given to two tasks")
        lost = set(acknowledged) - ended.keys()
        report.expect(not lost, f"{len(lost)} tasks lost")
        unknown = ended.keys() - set(acknowledged)
        report.expect(errors or not unknown, f"{len(unknown)} tasks that nobody enqueued")
        report.expect(not rolled_back & ended.keys(), "a task of a rolled-back transaction exists")
        for task_id, (name, state) in ended.items():
            if state != "completed":
                report.wrong.append(f"{name} {task_id} is {state}")
            elif name.endswith("credit"):
                report.expect(
                    effects[task_id] == 1, f"{name} {task_id}: {effects[task_id]} effects"
                )
            else:
                # What was claimed ahead and given back unstarted is an attempt that did not run.
                runs = 2 if name == "up.flaky" else 1
                report.expect(ran[task_id] == runs, f"{name} {task_id} ran {ran[task_id]} times")
        report.expect(swept == (0,), f"sweep found {swept}")
        report.expect(
            waits.longest <= 2.5, f"a statement waited {waits.longest:.1f} s: {waits.longest_text}"
        )
        versions = Counter(line["version"] for line in self._lines("started"))
        report.expect(versions[self._release.version] == 3, f"drivers were {versions}")
        report.facts |= {
            "tasks": len(ended),
            "longest_wait": round(waits.longest, 2),
            "waits": sum(len(seen) for seen in waits.statements.values()),
            "exclusive_seconds": round(waits.longest_held, 2),
            "looks": waits.looks,
            "longest_call": max((line["longest"] for line in self._lines("waited")), default=None),
            "log": self._troubles(),
        }

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in self._folder.glob(f"{kind}-*")
            for line in path.read_text().splitlines()
        ]

    def _troubles(self) -> dict[str, int]:
        """Count what workers and producers logged above INFO, by process and text."""
        troubles: Counter[str] = Counter()
        for path in sorted(self._folder.glob("*.log")):
            for line in path.read_text().splitlines():
                if " INFO " not in line and "first attempt fails" not in line:
                    text = line.partition(" WARNING ")[2] or line
                    if "of up.flaky failed" not in text:
                        troubles[f"{path.stem}: {text[:160]}"] += 1
        return dict(troubles)
