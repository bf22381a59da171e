"""The long form: from every release to this version, and to a made-up next one, under load.

Usage: ``make upgrade``; ``ARGS='--short'`` is quick, ``--to future`` does one of the two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import psycopg

sys.path[0] = str(Path(__file__).parents[1])

from servers import serve  # noqa: E402
from upgrade.future import write_future  # noqa: E402
from upgrade.harness import LONG, SHORT, Upgrade  # noqa: E402
from upgrade.releases import REPOSITORY, releases  # noqa: E402


def main() -> int:
    """Run all, and say what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--to", choices=["this", "future"])
    arguments = parser.parse_args()
    times = SHORT if arguments.short else LONG
    failed = 0
    with serve() as server, tempfile.TemporaryDirectory() as temporary:
        for number, (release, target) in enumerate(
            (release, target) for release in releases() for target in ("this", "future")
        ):
            if arguments.to not in (None, target):
                continue
            folder = Path(temporary) / str(number)
            folder.mkdir()
            sql = write_future(REPOSITORY / "sql", folder / "sql") if target == "future" else None
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute(f"create database upgrade_{number}")
            print(f"=== {release.version} to {target} version", flush=True)
            report = Upgrade(
                server.conninfo(f"upgrade_{number}"), release, folder, times, sql
            ).run()
            for name, fact in report.facts.items():
                print(f"{name}: {fact}")
            for log in sorted(folder.glob("migrate-*.log")):
                print(log.read_text())
            for wrong in report.wrong[:40]:
                print(f"WRONG: {wrong}")
            failed += bool(report.wrong)
    return failed


if __name__ == "__main__":
    sys.exit(main())
