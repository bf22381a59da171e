"""Put hand-made faults into a copy of the checkout, one at a time, and say which test catches each.

Usage: ``make mutants ARGS='--only NAME NAME --jobs 2'``. Ends with 1 when one lives, with 2 when
the set itself is wrong: a text that is no more, or a test that fails without any mutant.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import py_compile
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg
from psycopg import sql

from mutants import quick
from mutants.data import ROOT, Mutant, all_mutants, faults_of_the_set
from servers import SETTINGS
from tasklib.embedded import Embedded

NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".tasklib", ".bench", "__pycache__", ".*_cache", "dist", "build"),
)
# Those that the tests need: to load all that are installed takes longer than many a test.
PLUGINS = (
    *("no:cacheprovider", "pytest_asyncio.plugin", "pytest_postgresql.plugin"),
    *("tasklib.testing", "xdist.plugin"),
)
# Some mutants make a test wait for ever, which counts as caught: nobody would merge that.
NAMED_SECONDS = 120.0
AREA_SECONDS = 900.0
QUICK_SECONDS = 1200.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        mutant: Which one.
        caught_by: A test; empty when it lives.
        seconds: How long that took.
        broken: What pytest said when it could not run.
    """

    mutant: Mutant
    caught_by: str
    seconds: float
    broken: str = ""


class Slot:
    """A copy of the checkout and a server, for one mutant after the other."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        shutil.copytree(ROOT, self.root, ignore=NOT_COPIED, symlinks=True)
        # Compared by content: a file that is put back within the same second has the same age.
        compileall.compile_dir(
            self.root / "python",
            quiet=2,
            invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
        )
        self._start()

    def _start(self) -> None:
        # Not under the folder of this program, which is closed to the account of the server.
        name = Path(tempfile.gettempdir()) / f"tasklib-mutants-{uuid4().hex[:12]}"
        self._server = Embedded(name, settings=SETTINGS, throw_away=True)
        self._dsn = self._server.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    def judge_quickly(self, mutants: Sequence[Mutant], *more: str) -> list[Verdict]:
        """Judge those of SQL functions; without those that live, or take too long.

        Raises:
            Unfit: A test fails without a mutant.
        """
        if not mutants:  # without a name of a test, pytest runs all
            return []
        path, by_name = self.root / "answers", {mutant.name: mutant for mutant in mutants}
        path.touch()
        self._python(["tests/mutants/quick.py", str(path), *more, *by_name], QUICK_SECONDS)
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        if failed := [test for name, test, _ in answers if name is None]:
            raise Unfit(", ".join(failed))
        return [Verdict(by_name[name], test, seconds) for name, test, seconds in answers]

    def judge(self, mutant: Mutant, *, named_only: bool) -> Verdict:
        """Put a mutant in, run its tests and, when it lives, all of its area; take it out."""
        path, began = self.root / mutant.file, time.monotonic()
        right = path.read_text()
        path.write_text(mutant.applied(right))
        try:
            caught_by, broken = self.run(mutant.tests, NAMED_SECONDS)
            if not (caught_by or broken or named_only):
                caught_by, broken = self.run([mutant.area], AREA_SECONDS)
                caught_by += " (not among those named)" if caught_by else ""
        finally:
            path.write_text(right)
        return Verdict(mutant, caught_by, time.monotonic() - began, broken)

    def run(self, tests: Iterable[str], seconds: float, *more: str) -> tuple[str, str]:
        """Run tests up to the first that fails; return which, and what went wrong otherwise."""
        words = [word for plugin in PLUGINS for word in ("-p", plugin)]
        paths = [f"tests/{test}" for test in tests]
        pytest = ["-m", "pytest", "-q", "-x", "--tb=no", "--no-header"]
        code, output = self._python([*pytest, *words, *more, *paths], seconds)
        if code is None:
            return f"a test that never ends (stopped after {seconds:g} s)", ""
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.M)
        if code == 1 and failed:
            return failed[1], ""
        return "", output[-2000:] if code else ""

    def _python(self, words: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Run a program in the copy; return its exit code, None when it took too long."""
        self._clean()
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.root,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            self._server.stop()
            self._start()
            return None, ""
        return process.returncode, output

    def _environment(self) -> dict[str, str]:
        # Not what an outer pytest says to its own processes.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PG"))}
        return kept | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([str(self.root / "python"), str(self.root / "tests")]),
            "TASKLIB_TEST_DATABASE_URL": self._dsn,
            "TASKLIB_TEST_SCALE": os.environ.get("TASKLIB_TEST_SCALE", "0.1"),
        }

    def _clean(self) -> None:
        """Drop what a test that was stopped has left."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            found = conn.execute("select datname from pg_database where datname like 'tests%'")
            for (name,) in found.fetchall():
                name = sql.Identifier(name)
                conn.execute(sql.SQL("alter database {} is_template false").format(name))
                conn.execute(sql.SQL("drop database {} with (force)").format(name))


class Unfit(Exception):
    """A test fails without a mutant, so that it catches none."""


def in_each(slots: Sequence[Slot], work: Callable[[Slot, int], None]) -> None:
    """Do something in all slots at the same time; the first error is raised."""
    errors: list[BaseException] = []

    def tried(slot: Slot, number: int) -> None:
        try:
            work(slot, number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=tried, args=(s, n)) for n, s in enumerate(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def judge_all(
    mutants: Sequence[Mutant], slots: Sequence[Slot], *, trust: bool, named_only: bool
) -> list[Verdict]:
    """Judge mutants, as many at a time as there are slots, and print each.

    Args:
        mutants: Which ones.
        slots: Where.
        trust: Do not run the tests without a mutant first.
        named_only: Do not look further when the tests that a mutant names let it live.

    Raises:
        Unfit: A test fails without a mutant.
    """
    verdicts: list[Verdict] = []
    fast = [mutant for mutant in mutants if mutant.file.startswith(quick.FOLDER)]

    def judge_quickly(slot: Slot, number: int) -> None:
        more = ["--trust"] if trust else []
        for verdict in slot.judge_quickly(fast[number :: len(slots)], *more):
            verdicts.append(verdict)
            tell(verdict)

    in_each(slots, judge_quickly)
    settled = {verdict.mutant.name for verdict in verdicts}
    rest = [mutant for mutant in mutants if mutant.name not in settled]
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in rest:
        waiting.put(mutant)

    def judge(slot: Slot, _number: int) -> None:
        while True:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return
            verdicts.append(slot.judge(mutant, named_only=named_only))
            tell(verdicts[-1])

    if rest and not trust:
        tests = dict.fromkeys(test for mutant in rest for test in mutant.tests)
        failed, broken = slots[0].run(tests, AREA_SECONDS, "-n", str(len(slots)))
        if failed or broken:
            raise Unfit(failed or broken)
    in_each(slots, judge)
    return verdicts


def tell(verdict: Verdict) -> None:
    """Print one line of the table."""
    what = verdict.caught_by or ("BROKEN" if verdict.broken else "LIVES")
    print(f"{verdict.mutant.name:60} {verdict.seconds:6.1f} s  {what}", flush=True)
    if verdict.broken:
        print(verdict.broken, flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, or beginnings of names")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument(
        "--trust", action="store_true", help="do not run the tests without a mutant first"
    )
    parser.add_argument(
        "--named", action="store_true", help="run the named tests only, also for one that lives"
    )
    return parser.parse_args()


def main() -> int:
    """Do it all; return the exit code."""
    options = arguments()
    mutants = all_mutants()
    if wrong := faults_of_the_set(mutants):
        print(*wrong, sep="\n", file=sys.stderr)
        return 2
    begins = tuple(options.only or [""])
    chosen = [mutant for name, mutant in mutants.items() if name.startswith(begins)]
    if not chosen:
        print(f"no mutant is called {' or '.join(begins)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tasklib-mutants-")))
        slots: list[Slot] = []
        for number in range(min(options.jobs, len(chosen))):
            slots.append(Slot(folder / str(number)))
            stack.callback(slots[-1].close)
        try:
            verdicts = judge_all(chosen, slots, trust=options.trust, named_only=options.named)
        except Unfit as error:
            print(f"fails without a mutant: {error}", file=sys.stderr)
            return 2
    alive = [v.mutant.name for v in verdicts if not v.caught_by and not v.broken]
    broken = [v.mutant.name for v in verdicts if v.broken]
    for name in alive:
        print(f"alive: {name}")
    for name in broken:
        print(f"broken: {name}")
    seconds = time.monotonic() - began
    print(f"{len(verdicts)} mutants, {len(alive)} alive, {len(broken)} broken, {seconds:.0f} s")
    return 2 if broken else bool(alive)


if __name__ == "__main__":
    sys.exit(main())
