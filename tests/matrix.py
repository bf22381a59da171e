"""The tests on other servers than the machine's: each major version, and through PgBouncer.

``make servers`` runs all of them on all of these. ``--short`` is what CI does with those between
the oldest and the newest: install, migrate, every SQL function, roles, a worker, doctor.
PYTEST_ADDOPTS='-k word' narrows them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pgbouncer
import servers

VERSIONS = ("14", "15", "16", "17", "18")
POOLER = "pgbouncer"

SHORT = (
    "tests/cli/test_doctor.py",
    "tests/cli/test_schema.py",
    "tests/python/test_roles.py",
    "tests/python/test_worker_runs_tasks.py",
    "tests/spec/test_sql.py",
    "tests/sql/test_contract.py",
    "tests/sql/test_crash.py",
    "tests/sql/test_ids.py",
)
# What a pooler could break: sessions, prepared statements, notifications, transactions of clients.
SHORT_POOLED = (
    "tests/cli/test_doctor.py",
    "tests/cli/test_worker_command.py",
    "tests/python/test_connection_argument.py",
    "tests/python/test_worker_processes.py",
    "tests/python/test_worker_runs_tasks.py",
    "tests/spec/test_sql.py",
    "tests/sql/test_unique_key.py",
)


def words(leg: str, *, short: bool) -> list[str]:
    """Return what pytest is told for one leg."""
    if leg != POOLER:
        return list(SHORT) if short else ["tests"]
    if short:
        return list(SHORT_POOLED)
    return ["tests", *(f"--ignore={path}" for path in pgbouncer.NOT_POOLED)]


def run(leg: str, *, short: bool) -> bool:
    """Run the tests of one leg; tell whether they passed."""
    env = {"TASKLIB_TEST_SCALE": "0.1", **os.environ}
    if leg == POOLER:
        env["TASKLIB_TEST_PGBOUNCER"] = "1"
    else:
        env["TASKLIB_PG_BINDIR"] = str(servers.programs(int(leg)))
    jobs = os.environ.get("JOBS", "2")
    command = [sys.executable, "-m", "pytest", "-q", "-n", jobs, *words(leg, short=short)]
    root = Path(__file__).parents[1]
    return subprocess.run(command, check=False, cwd=root, env=env).returncode == 0


def main() -> int:
    """Run the legs that were asked for; all of them go on after one that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument(
        "legs", nargs="*", metavar="LEG", help=f"of {', '.join(VERSIONS)}, {POOLER}"
    )
    given = parser.parse_args()
    legs = given.legs or [*VERSIONS, POOLER]
    if unknown := set(legs) - {*VERSIONS, POOLER}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    told: list[str] = []
    for leg in legs:
        start = time.monotonic()
        print(f"\n=== {leg}", flush=True)
        passed = run(leg, short=given.short)
        told.append(f"{leg}: {'ok' if passed else 'FAILED'} ({time.monotonic() - start:.0f} s)")
    print("\n" + "\n".join(told))
    return int(any("FAILED" in line for line in told))


if __name__ == "__main__":
    sys.exit(main())
