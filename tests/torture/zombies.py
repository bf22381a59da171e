"""A process that uses leases which are no longer held, in every call that takes one.

Workers that were stopped or cut off do that, too, but seldom in the moment that matters, and not in
every call. A lease that ended once has ended for ever: whatever accepts one is wrong.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

import psycopg
from ledger import Ledger
from tortured import FOLDER, OVER

URL = os.environ["TASKLIB_DATABASE_URL"]

# Of tasks that run under another lease now; of those that ended lately; of dead workers.
SUPERSEDED = """
select dead.task_id, dead.worker_id, dead.attempt
from tasklib.running
  join torture.event as dead on dead.task_id = running.task_id and dead.kind = 'ended'
order by random() limit 8"""
ENDED = """
select task_id, worker_id, attempt from (
  select * from torture.event where kind = 'ended' order by seq desc limit 500) as late
order by random() limit 4"""
DEAD_WORKERS = """
select id from tasklib.worker where lost_at is not null order by lost_at desc limit 20"""

OUTCOMES: list[dict[str, Any] | None] = [
    None,
    {"state": "completed", "result": {"value": "zombie"}},
    {"state": "failed", "error": "zombie", "retry_in": 0},
    {"state": "failed", "error": "zombie", "cause": "crashed"},
    {"state": "released"},
    {"state": "snoozed", "seconds": 0.1},
    {"state": "cancelled", "error": "zombie"},
]
LEASE = "%(id)s::uuid, %(worker)s::uuid, %(attempt)s::int"
LISTS = "%(worker)s::uuid, array[%(id)s]::uuid[], array[%(attempt)s]::int[]"
CALLS = {
    "complete": f"select tasklib.complete({LEASE}, " """'{"value": "zombie"}')""",
    "fail": f"select tasklib.fail({LEASE}, 'zombie')",
    "fail for good": f"select tasklib.fail({LEASE}, 'zombie', retry => false, cause => 'crashed')",
    "snooze": f"select tasklib.snooze({LEASE}, interval '0.1 seconds')",
    "set_progress": f"select tasklib.set_progress({LEASE}, 0.99, 'zombie')",
    "release": f"select string_agg(status, ',') from tasklib.release({LISTS}) as status",
    "finish": "select string_agg(status, ',') from tasklib.finish("
    f"{LISTS}, %(outcomes)s::jsonb) as status",
}
# As a transactional task does it.
IN_TRANSACTION = "complete in a transaction"
OF_WORKERS = {
    "heartbeat": "select tasklib.heartbeat(%(worker)s)",
    "claim": "select tasklib.claim(%(worker)s, '{default,mail}', 5)",
    "deregister_worker": "select tasklib.deregister_worker(%(worker)s, crashed => true)",
}


class Zombie:
    """One connection, and whose leases it tries."""

    def __init__(self) -> None:
        self.dice = random.Random(f"{os.environ['TORTURE_SEED']} zombie {os.getpid()}")
        self.ledger = Ledger(FOLDER / "ledger", "zombie")
        self.counts: dict[str, int] = {}

    def haunt(self) -> None:
        """Go on until the run is over."""
        while not OVER.exists():
            try:
                with psycopg.connect(URL, autocommit=True, connect_timeout=5) as connection:
                    while not OVER.exists():
                        self.round(connection)
                        time.sleep(0.1)
            except psycopg.OperationalError:
                time.sleep(0.3)

    def round(self, connection: psycopg.Connection[Any]) -> None:
        """Try some leases, each in another call."""
        leases = connection.execute(SUPERSEDED).fetchall() + connection.execute(ENDED).fetchall()
        for task_id, worker_id, attempt in leases:
            outcome = self.dice.choice(OUTCOMES)
            words = {
                "id": task_id,
                "worker": worker_id,
                "attempt": attempt,
                "outcomes": None if outcome is None else json.dumps([outcome]),
            }
            self.tries(connection, self.dice.choice([*CALLS, IN_TRANSACTION]), words)
        for (worker_id,) in connection.execute(DEAD_WORKERS).fetchall()[:2]:
            self.tries(connection, self.dice.choice(list(OF_WORKERS)), {"worker": worker_id})
        self.ledger.write("refused", counts=self.counts)
        self.counts = {}

    def tries(self, connection: psycopg.Connection[Any], call: str, words: dict[str, Any]) -> None:
        """Make one call, and count it as refused, or write that it was not."""
        try:
            if call == IN_TRANSACTION:
                with connection.transaction():
                    effect = "insert into torture.effect values (%(id)s, %(attempt)s, 'zombie')"
                    connection.execute(effect, words)
                    connection.execute(CALLS["complete"], words)
                answer = None
            else:
                statement = (CALLS | OF_WORKERS)[call]
                rows = connection.execute(statement.encode(), words).fetchall()
                answer = str(rows[0][0]) if rows else ""
        except psycopg.Error as error:
            if connection.broken or not error.sqlstate:
                raise psycopg.OperationalError from error
            answer = error.sqlstate
        if answer in ("already", "stale", "cancelled", "gone") or (answer or "").startswith("TL0"):
            self.counts[f"{call}: {answer}"] = self.counts.get(f"{call}: {answer}", 0) + 1
        elif (answer or "")[:2] not in ("57", "08"):
            told = {key: str(value) for key, value in words.items()}
            self.ledger.write("accepted", call=call, answer=answer, **told)


if __name__ == "__main__":
    Zombie().haunt()
