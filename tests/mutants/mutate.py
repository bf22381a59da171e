"""Apply the mutants one at a time to a copy of the checkout, and say which test catches each.

Usage: ``make mutants ARGS='--only NAME NAME --jobs 2'``. Ends with 1 when one lives, with 2 when
the set itself is wrong: a text that is no more, or a test that fails without any mutant.
"""

from __future__ import annotations

import argparse
import compileall
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
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg
from psycopg import sql

from mutants.data import ROOT, Mutant, all_mutants, faults_of_the_set
from servers import SETTINGS
from tasklib.embedded import Embedded

NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".tasklib", ".bench", "__pycache__", ".*_cache", "dist", "build"),
)
# Those that the tests need: to load all that are installed takes longer than many a test.
PLUGINS = ("no:cacheprovider", "pytest_asyncio.plugin", "pytest_postgresql.plugin")
PLUGINS = (*PLUGINS, "tasklib.testing", "xdist.plugin")
# Some mutants make a test wait for ever, which counts as caught: nobody would merge that.
NAMED_SECONDS = 120
AREA_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant; ``caught_by`` is empty when it lives."""

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

    def judge(self, mutant: Mutant) -> Verdict:
        """Put a mutant in, run its tests and, when it lives, all of its area; take it out."""
        path, began = self.root / mutant.file, time.monotonic()
        right = path.read_text()
        path.write_text(mutant.applied(right))
        try:
            caught_by, broken = self.run(mutant.tests, NAMED_SECONDS)
            if not caught_by and not broken:
                caught_by, broken = self.run([mutant.area.removeprefix("tests/")], AREA_SECONDS)
                if caught_by:
                    caught_by += " (not among those named)"
        finally:
            path.write_text(right)
        return Verdict(mutant, caught_by, time.monotonic() - began, broken)

    def run(self, tests: Iterable[str], seconds: float, *more: str) -> tuple[str, str]:
        """Run tests up to the first that fails; return which, and what went wrong otherwise."""
        self._clean()
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "--no-header"),
            *(word for plugin in PLUGINS for word in ("-p", plugin)),
            *more,
            *(f"tests/{test}" for test in tests),
        ]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self._server.stop()
            self._start()
            return f"a test that never ends (stopped after {seconds:g} s)", ""
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.M)
        if process.returncode == 1 and failed:
            return failed[1], ""
        return "", "" if process.returncode == 0 else output[-2000:]

    def _environment(self) -> dict[str, str]:
        # Not what an outer pytest says to its own processes.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PG"))}
        return kept | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(self.root / "python"),
            "TASKLIB_TEST_DATABASE_URL": self._dsn,
            "TASKLIB_TEST_SCALE": os.environ.get("TASKLIB_TEST_SCALE", "0.1"),
        }

    def _clean(self) -> None:
        """Drop what a test that was stopped has left."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            for (name,) in conn.execute(
                "select datname from pg_database where datname like 'tests%'"
            ).fetchall():
                name = sql.Identifier(name)
                conn.execute(sql.SQL("alter database {} is_template false").format(name))
                conn.execute(sql.SQL("drop database {} with (force)").format(name))


def judge_all(mutants: list[Mutant], slots: list[Slot]) -> list[Verdict]:
    """Judge mutants, as many at a time as there are slots, and print each."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    verdicts: list[Verdict] = []
    errors: list[BaseException] = []

    def work(slot: Slot) -> None:
        try:
            while not errors:
                verdict = slot.judge(waiting.get_nowait())
                verdicts.append(verdict)
                tell(verdict)
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
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
        if not options.trust:
            tests = dict.fromkeys(test for mutant in chosen for test in mutant.tests)
            failed, broken = slots[0].run(tests, AREA_SECONDS, "-n", str(options.jobs))
            if failed or broken:
                print(f"fails without a mutant: {failed}\n{broken}", file=sys.stderr)
                return 2
            print(f"{len(tests)} tests pass without a mutant ({time.monotonic() - began:.0f} s)")
        verdicts = judge_all(chosen, slots)
    alive = [v.mutant.name for v in verdicts if not v.caught_by and not v.broken]
    broken = [v.mutant.name for v in verdicts if v.broken]
    seconds = time.monotonic() - began
    print(f"{len(verdicts)} mutants, {len(alive)} alive, {len(broken)} broken, {seconds:.0f} s")
    for name in alive:
        print(f"alive: {name}")
    for name in broken:
        print(f"broken: {name}")
    return 2 if broken else bool(alive)


if __name__ == "__main__":
    sys.exit(main())
