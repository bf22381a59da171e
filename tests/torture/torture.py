"""Workers, producers and the server are killed, stopped and cut off; then everything is counted.

``torture.py --minutes 10`` is the long form, ``--short`` that of the tests; ``--mutant NAME`` makes
a fault that it has to notice, ``--mutants`` one after the other. See docs/contributing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import psycopg  # noqa: E402
from checks import Book, Court, Violations  # noqa: E402
from faults import Faults, Plan, program, until, worker  # noqa: E402
from fleet import CALM, Fleet, find  # noqa: E402
from ledger import Reader  # noqa: E402
from sabotage import MUTANTS, REQUIRED  # noqa: E402
from stage import Stage  # noqa: E402

LONG = Plan(
    seconds=600,
    lease=5,
    rate=40,
    workers={
        "supervised": ("proxy", ["--processes", "2", "-c", "5"]),
        "alone": ("direct", ["-c", "5"]),
        "afar": ("other proxy", ["-c", "5"]),
        "pooled": ("pooler", ["-c", "5"]),
    },
    producers={"sql": "direct", "many": "pooler", "client": "proxy"},
    kills=(0.4, 1.6),
    stops=(1, 4),
    restarts=(10, 20),
    cuts=(4, 9),
    pooler=(12, 25),
    rolls=(12, 20),
)
SHORT = replace(
    LONG,
    seconds=24,
    lease=3,
    rate=8,
    workers={"afar": ("proxy", ["-c", "6"]), "pooled": ("pooler", ["-c", "6"])},
    producers={"sql": "proxy", "many": "pooler"},
    kills=(2, 5),
    stops=(2, 4),
    restarts=(7, 10),
    cuts=(4, 8),
    pooler=(8, 12),
    rolls=(6, 8),
)

# What ten minutes on two cores have to bring at least.
BARS = {"tasks": 20_000, "kills": 300, "restarts": 20}
# More wait than workers can take while they are harmed: producers pause until nothing waits, as a
# queue that never runs dry hides some faults.
BACKLOG = 1000
BACKLOG_AGAIN = 1
# Towards the end there shall be none: how fast a worker is, other measurements tell.
LAST_BACKLOG = 50
LAST_SECONDS = 20.0
LOOK_SECONDS = 8.0
QUIET_SECONDS = 3.0
# Codes that workers end with: a fresh one takes over; no server when they started; killed; what
# tasks do; and those of a supervisor whose first process was killed before it worked.
EXITS = {0, 3, -9, -11, 17, 137, 139}
UNFINISHED = """
select count(*) from (
  select from tasklib.ready union all select from tasklib.delayed union all
  select from tasklib.waiting union all select from tasklib.parked union all
  select from tasklib.running) as unfinished"""

LEFT = """
select place, task.name, extract(epoch from clock_timestamp() - coalesce((
  select max(at) from torture.event where event.task_id = task.id), task.created_at))::float8
from (
  select task_id, 'ready' as place from tasklib.ready union all
  select task_id, 'delayed' from tasklib.delayed union all
  select task_id, 'waiting' from tasklib.waiting union all
  select task_id, 'parked' from tasklib.parked union all
  select task_id, 'running' from tasklib.running) as unfinished
  join tasklib.task on task.id = task_id
order by 1, 2"""


@dataclass
class Options:
    """How to run."""

    plan: Plan
    seed: int
    mutant: str | None
    drain_seconds: float
    keep: bool
    fsync: bool
    counts_bars: bool


class Run:
    """One run from the first process to the last."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.book = Book()
        self.violations = Violations()
        self.caught_after: float | None = None
        self.drained: float | None = None
        self.left: list[str] = []
        self.counts: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self._reader = Reader(folder / "ledger")
        for name in ("ledger", "logs"):
            (folder / name).mkdir()
        os.environ |= {
            "TORTURE_FOLDER": str(folder),
            "TORTURE_LEASE": str(options.plan.lease),
            "TORTURE_RATE": str(options.plan.rate),
            "TORTURE_SEED": str(options.seed),
            "TORTURE_MUTANT": options.mutant or "",
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }

    def go(self) -> None:
        """Do all of it."""
        plan, name = self.options.plan, secrets.token_hex(6)
        reaper = subprocess.Popen(
            [sys.executable, str(HERE / "reaper.py"), name], stdin=subprocess.PIPE
        )
        assert reaper.stdin
        fleet = Fleet(name, self.folder / "logs", random.Random(self.options.seed))
        try:
            given = self.options
            with Stage(self.folder, given.seed, given.mutant, fsync=given.fsync) as stage:
                faults = Faults(stage, fleet, plan, self.options.seed)
                self._set_up(stage, fleet, faults)
                self._suffer(stage, faults)
                self._recover(stage, fleet, faults)
                self._judge(stage, fleet, faults)
                fleet.kill_all()
        finally:
            reaper.stdin.close()
            reaper.wait()

    def _set_up(self, stage: Stage, fleet: Fleet, faults: Faults) -> None:
        plan = self.options.plan
        faults.add_calm_worker()
        for number, (name, (way, words)) in enumerate(plan.workers.items()):
            more = {"TORTURE_RARE": "1"} if number == 0 else {}
            words = ["-q", "default,mail", *words]
            fleet.add(worker(stage, name, way, words, plan.lease, more))
        for name, way in plan.producers.items():
            fleet.add(program(stage, "producers.py", [name], way, "torture_producer", name))
        slow = program(stage, "producers.py", ["slow,calm"], "direct", "torture_producer", "slow")
        slow.environment |= {"TORTURE_RATE": "0.2", CALM: "1"}
        fleet.add(slow)
        fleet.add(program(stage, "zombies.py", [], "direct", "torture_worker", "zombie"))
        fleet.start()

    # ---- bad times -------------------------------------------------------------------------------

    def _suffer(self, stage: Stage, faults: Faults) -> None:
        plan, began = self.options.plan, time.monotonic()
        faults.start()
        next_look = began + LOOK_SECONDS
        while (passed := time.monotonic() - began) < plan.seconds:
            # Producers stop before the faults: what is left then is theirs, not a backlog.
            if passed > plan.seconds - QUIET_SECONDS:
                (self.folder / "no-more").touch()
            time.sleep(0.5)
            is_last = passed > plan.seconds - LAST_SECONDS
            self._hold_back(stage, LAST_BACKLOG if is_last else BACKLOG)
            # At the end of a short run everything is looked at anyway.
            is_long = plan.seconds > 60 or self.options.mutant
            if time.monotonic() > next_look and is_long:
                self._look(stage, passed)
                next_look = time.monotonic() + LOOK_SECONDS
            if self.violations.names or faults.troubles:
                self.caught_after = passed
                break
        (self.folder / "no-more").touch()

    def _hold_back(self, stage: Stage, most: int) -> None:
        """Let producers pause while too much waits."""
        paused = self.folder / "paused"
        try:
            with stage.connect(1.0) as connection:
                row = connection.execute("select count(*) from tasklib.ready").fetchone()
        except psycopg.Error:
            return
        waiting = row[0] if row else 0
        if waiting > most:
            paused.touch()
        elif waiting < min(BACKLOG_AGAIN, most):
            paused.unlink(missing_ok=True)

    def _look(self, stage: Stage, passed: float) -> None:
        try:
            court = self._court(stage)
        except psycopg.Error:
            return  # restarted just now
        self.violations = court.judge()
        done = sum(task.state is not None for task in court.tasks.values())
        told = f"{passed:4.0f} s: {len(court.tasks):,} tasks, {done:,} finished"
        print(told, file=sys.stderr, flush=True)

    def _court(self, stage: Stage) -> Court:
        with stage.connect() as connection:
            rows = connection.execute("select id::text from tasklib.worker where name = 'calm'")
            calm = {row[0] for row in rows.fetchall()}
            court = Court(connection, self.book, calm)
            # After the snapshot: whatever it shows was written before.
            self.book.add(self._reader.news())
            return court

    # ---- better times ----------------------------------------------------------------------------

    def _recover(self, stage: Stage, fleet: Fleet, faults: Faults) -> None:
        faults.stop()
        (self.folder / "over").touch()
        if self.violations.names:
            fleet.leave()
            return
        with stage.connect() as connection:

            def is_drained() -> bool:
                row = connection.execute(UNFINISHED.encode()).fetchone()
                return row == (0,)

            self.drained = until(is_drained, self.options.drain_seconds)
            if self.drained is None:
                rows = connection.execute(LEFT.encode()).fetchall()
                self.left = [f"{place} {name} since {since:.1f} s" for place, name, since in rows]
                until(is_drained, 120)
        faults.join()
        fleet.leave()
        wrong = self.violations.check("everybody ends when told to")
        wrong += fleet.stop(30, lambda _: True)

    def _judge(self, stage: Stage, fleet: Fleet, faults: Faults) -> None:
        found = self.violations
        court = self._court(stage)
        if not found.names:
            verdict = court.judge_the_end()
            found.found = verdict.found | found.found
            drained = found.check(f"drained within {self.options.drain_seconds:.0f} s")
            if self.drained is None:
                drained += [f"still {one}" for one in self.left]
            left = found.check("no process is left behind")
            # The keeper of a worker that was killed hands back its tasks before it ends.
            if until(lambda: not find(fleet.run), self.options.plan.lease + 5) is None:
                left += [f"{process.kind} {process.pid}" for process in find(fleet.run)]
            with stage.connect() as connection:
                row = connection.execute("select tasklib.sweep()").fetchone()
                swept = found.check("sweep() finds nothing")
                swept += [] if row == (0,) else [f"it found {row}"]
        self._read_logs(stage, fleet, faults)
        self._count(court, faults)

    def _read_logs(self, stage: Stage, fleet: Fleet, faults: Faults) -> None:
        found = self.violations
        codes, odd = stage.log_codes()
        deadlocks = found.check("deadlocks: 0")
        deadlocks += ["in the server's log"] * codes["40P01"]
        deadlocks += ["in a client"] * self.book.codes["40P01"]
        found.check("the server's log has no error that is not documented").extend(odd)
        found.check("faults do what they shall").extend(faults.troubles)
        exits = found.check("workers end by themselves only when there is no server to start with")
        for (name, code), count in fleet.ends.items():
            if code not in EXITS:
                exits.append(f"{name} ended with {code}, {count} times: see {self.folder / 'logs'}")
        for path in (self.folder / "logs").glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                self._read_line(path.stem, line, exits)

    def _read_line(self, name: str, line: str, exits: list[str]) -> None:
        if "came too late" in line:
            self.counts["stale outcomes refused to workers"] += 1
        elif line.startswith("{") and '"exception"' in line:
            exits.append(f"{name}: {json.loads(line)['exception'][-600:]}")

    def _count(self, court: Court, faults: Faults) -> None:
        self.counts |= faults.counts
        self.states = Counter(
            {"1": "completed", "2": "failed", "3": "cancelled"}.get(task.state, "unfinished")
            for task in court.tasks.values()
        )
        causes: Counter[str] = Counter(e.detail for e in court.events if e.kind == "failed")
        self.counts["tasks"] = len(court.tasks)
        self.counts["attempts"] = sum(e.kind == "granted" for e in court.events)
        ends = Counter(cause for story in court.stories.values() for cause in story.causes.values())
        self.counts["attempts that were given back or put off"] = ends["released"]
        for cause in ("lost", "crashed", "timeout", "error"):
            self.counts[f"attempts that failed: {cause}"] = causes[cause]
        begun = {(run["task"], run["attempt"]) for run in self.book.runs.values()}
        for event in court.events:
            is_death = event.kind == "failed" and event.detail in ("lost", "crashed")
            if is_death and (event.task_id, event.attempt) not in begun:
                self.counts[f"attempts that failed: {event.detail}, and had not begun"] += 1
        self.counts["calls with ended leases refused"] = self.book.refused.total()
        for how, count in self.book.outcomes.items():
            self.counts[f"tasks whose enqueue was {how}"] = count
        self.counts["kills"] = sum(n for what, n in faults.counts.items() if "kill -9" in what)
        restarts = ("immediate restart of the server", "kill -9 of a server process")
        self.counts["restarts"] = sum(faults.counts[what] for what in restarts)
        if self.options.counts_bars and self.options.mutant is None and self.caught_after is None:
            share = self.options.plan.seconds / 600
            few = self.violations.check("it was hard enough")
            for what, bar in BARS.items():
                if self.counts[what] < bar * share:
                    few.append(f"{self.counts[what]:,} {what}, less than {bar * share:,.0f}")


def report(run: Run, seconds: float) -> str:
    """Return what happened and what held, for people."""
    lines = [f"## What happened in {seconds:.0f} s (seed {run.options.seed})", ""]
    told = {what: count for what, count in sorted(run.counts.items()) if count}
    told |= {f"tasks {state} in the end": count for state, count in run.states.items()}
    lines += [f"{count:>9,}  {what}" for what, count in told.items()]
    for what, count in sorted(run.book.refused.items()):
        lines.append(f"{count:>9,}  refused: {what}")
    if run.drained is not None:
        lines.append(f"{run.drained:>9.1f}  seconds from the last fault until all was finished")
    lines += ["", "## What was checked", ""]
    for check, found in run.violations.found.items():
        lines.append(f"{'ok    ' if not found else 'FAILED'}  {check}")
        lines += [f"          {one}" for one in found[:5]]
        if len(found) > 5:
            lines.append(f"          … and {len(found) - 5} more")
    return "\n".join(lines)


def torture(options: Options) -> Run:
    """Run once, and print what happened."""
    folder = Path(tempfile.mkdtemp(prefix="tasklib-torture-"))
    folder.chmod(0o755)
    run, began = Run(options, folder), time.monotonic()
    is_sound = False
    try:
        run.go()
        is_sound = not run.violations.names
    finally:
        if (is_sound or options.mutant) and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"ledger and logs: {folder}", file=sys.stderr)
    print(report(run, time.monotonic() - began), flush=True)
    return run


def try_mutants(names: list[str], options: Options) -> int:
    """Make one fault after the other; return how many were not noticed."""
    lines: list[str] = []
    missed = 0
    for name in names:
        run = torture(replace(options, mutant=name))
        checks = run.violations.names
        missed += not checks
        when = "at the end" if run.caught_after is None else f"after {run.caught_after:.0f} s"
        verdict = f"caught {when} by: {'; '.join(checks)}" if checks else "NOT NOTICED"
        lines.append(f"{name} ({MUTANTS[name].what}): {verdict}")
        print(f"\n{lines[-1]}\n", flush=True)
    print("\n".join(["## Mutants", "", *lines]))
    return missed


def read_options(words: list[str]) -> tuple[Options, list[str], Any]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long there are faults (default: 10)")
    parser.add_argument("--short", action="store_true", help="half a minute, few processes")
    parser.add_argument(
        "--seed", type=int, help="of the dice: what is done when, not who is faster"
    )
    parser.add_argument("--mutant", choices=MUTANTS, metavar="NAME", help=", ".join(MUTANTS))
    parser.add_argument(
        "--mutants", nargs="*", choices=MUTANTS, metavar="NAME", help="one after the other"
    )
    parser.add_argument("--fsync", action="store_true", help="let the server wait for the disk")
    parser.add_argument("--keep", action="store_true", help="keep ledger and logs")
    given = parser.parse_args(words)
    plan = SHORT if given.short else LONG
    is_for_mutants = given.mutants is not None or given.mutant
    minutes = given.minutes or (4.5 if is_for_mutants else None)
    if minutes:
        plan = replace(plan, seconds=minutes * 60)
    # On a busy machine the tests must not fail for its slowness.
    drain = 60.0 if given.short else 2 * plan.lease
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    options = Options(
        plan, seed, given.mutant, drain, given.keep, given.fsync, counts_bars=not given.short
    )
    return options, given.mutants or list(REQUIRED), given


def main() -> int:
    """Do what the command line says; return the exit code."""
    options, names, given = read_options(sys.argv[1:])
    if given.mutants is not None:
        return min(1, try_mutants(names, options))
    run = torture(options)
    if not run.violations.names:
        return 0
    words = sys.argv[1:] if given.seed is not None else [*sys.argv[1:], f"--seed {options.seed}"]
    again = " ".join(words)
    print(f"\nFAILED: {'; '.join(run.violations.names)}\nagain: make torture ARGS='{again}'")
    return 1


if __name__ == "__main__":
    sys.exit(main())
