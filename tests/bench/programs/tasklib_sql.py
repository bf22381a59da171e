"""A worker in a few lines of SQL: claim so many, run them, finish them, one after the other."""

from __future__ import annotations

import os
import time

import beat
import psycopg

URL = os.environ["BENCH_URL"]
SIZE = int(os.environ["BENCH_BATCH"])


def main() -> None:
    """Run tasks for ever."""
    with psycopg.connect(URL, autocommit=True) as connection:
        register = "select tasklib.register_worker('bench', interval '1 hour', '[\"bench.noop\"]')"
        row = connection.execute(register).fetchone()
        assert row is not None
        worker = row[0]
        ticked = 0.0
        while True:
            if time.monotonic() - ticked > 1:
                connection.execute("select * from tasklib.tick()")
                ticked = time.monotonic()
            rows = connection.execute(
                "select id, attempt, kwargs from tasklib.claim(%s, max_tasks => %s)", [worker, SIZE]
            ).fetchall()
            for _, _, kwargs in rows:
                beat.ran(kwargs["at"])
            if not rows:
                time.sleep(0.01)
                continue
            ended = [worker, [row[0] for row in rows], [row[1] for row in rows]]
            connection.execute("select * from tasklib.finish(%s, %s, %s)", ended)


if __name__ == "__main__":
    main()
