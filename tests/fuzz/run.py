"""Fuzz for long: ``make fuzz ARGS='--calls 1000000 --seed 7'``."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections import Counter
from pathlib import Path

import psycopg

sys.path[:0] = [str(Path(__file__).parents[1])]

from fuzz.fuzz import Fault, stream  # noqa: E402
from servers import serve  # noqa: E402
from tasklib._migrate import migrate  # noqa: E402


def main() -> None:
    """Make calls, a thousand of each seed, and print what they were answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    given = parser.parse_args()
    made, seed, seen = 0, given.seed, Counter[str]()
    with serve() as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("create database tasklib_fuzz")
        url = server.conninfo("tasklib_fuzz")
        migrate(url)
        while made < given.calls:
            try:
                with stream(url, seed) as fuzz:
                    fuzz.run(1000)
            except Fault as fault:
                raise SystemExit(f"seed {seed}: {fault}") from None
            made, seed, seen = made + fuzz.calls, seed + 1, seen + fuzz.seen
            if made // 10_000 > (made - fuzz.calls) // 10_000:
                print(f"seed {seed - 1}: {made:,} calls", flush=True)
    print(", ".join(f"{code} {count:,}" for code, count in seen.most_common()))


if __name__ == "__main__":
    main()
