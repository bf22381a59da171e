"""Every committed task is completed exactly once, whatever happens around it.

Producers that roll back, workers that fail, snooze, give back, forget or die, keys, priorities,
delays, and a snapshot that is held all the time. `TASKLIB_TEST_CHAOS_SECONDS` makes it longer.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter

import psycopg
import pytest

from sql.support import (
    advance,
    call,
    claim,
    enqueue,
    enqueue_many,
    finish,
    one,
    register,
    rows,
    run,
    sweep,
    tick,
)

SECONDS = float(os.environ.get("TASKLIB_TEST_CHAOS_SECONDS", "12"))
NAMES = ["a", "b", "c", "d"]
QUEUES = ["default", "mail", "bulk"]


class Chaos:
    """What all threads share: when to stop, and what each of them knows to be true."""

    def __init__(self) -> None:
        self.until = time.monotonic() + SECONDS
        self.lock = threading.Lock()
        self.committed: set[object] = set()
        self.rolled_back: set[object] = set()
        self.completed: Counter[object] = Counter()
        self.overlaps: list[object] = []
        self.errors: list[BaseException] = []
        self.producing = 0

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def start(self, work, *arguments):
        def body():
            try:
                work(self, *arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        return thread


def options(dice):
    chosen = {"name": dice.choice(NAMES), "queue": dice.choice(QUEUES), "max_retries": 1000}
    if dice.random() < 0.3:
        chosen["priority"] = dice.randint(-3, 3)
    if dice.random() < 0.3:
        chosen["delay"] = dice.choice([0.01, 0.1, 1])
    if dice.random() < 0.3:
        chosen["concurrency_key"] = f"k{dice.randint(1, 8)}"
    if dice.random() < 0.2:
        chosen["unique_key"] = f"u{dice.randint(1, 50)}"
        chosen["unique_until"] = dice.choice(["finished", "started"])
    return chosen


def produce(chaos, conn, seed):
    dice = random.Random(seed)
    while not chaos.over:
        made = set()
        run(conn, "begin")
        for _ in range(dice.randint(1, 4)):
            batch = enqueue_many(conn, *(options(dice) for _ in range(dice.randint(1, 12))))
            made |= {row.id for row in batch if row.created}
            # two locks in two calls: keys of several batches may be asked for in any order
            if dice.random() < 0.7:
                break
        time.sleep(dice.choice([0, 0.001, 0.05]))
        keep = dice.random() < 0.9
        run(conn, "commit" if keep else "rollback")
        with chaos.lock:
            (chaos.committed if keep else chaos.rolled_back).update(made)


def produce_in_one_long_transaction(chaos, conn):
    while not chaos.over:
        run(conn, "begin")
        made = set()
        for _ in range(5):
            made.add(enqueue(conn, "a", queue="bulk", max_retries=1000))
            made.add(enqueue(conn, "b", delay="0.2 seconds", max_retries=1000))
            time.sleep(0.3)
        run(conn, "commit")
        with chaos.lock:
            chaos.committed |= made


OUTCOMES = [
    None,
    None,
    None,
    None,
    {"state": "failed", "error": "boom", "retry_in": 0.05},
    {"state": "failed", "cause": "timeout", "retry_in": 0},
    {"state": "snoozed", "seconds": 0.05},
]


def work(chaos, make_conn, seed, patient):
    """Claim and end tasks in batches, each in a transaction of its own; die now and then."""
    dice = random.Random(seed)
    conn = make_conn()
    worker = None
    while patient() or not chaos.over:
        if worker is None:
            worker = register(conn, *NAMES, lease="1 second")
        run(conn, "begin")
        held = claim(conn, worker, dice.choice([1, 3, 20]), dice.sample(QUEUES, 3))
        if dice.random() < 0.05:
            run(conn, "rollback")
            continue
        run(conn, "commit")
        if not held:
            time.sleep(0.01)
            if dice.random() < 0.2:
                tick(conn)
        fate = dice.random() if not chaos.over else 1
        if fate < 0.02:
            worker = None  # killed: tick finds out
            continue
        if fate < 0.03:
            call(conn, "deregister_worker", worker_id=worker, crashed=False)
            worker = None
            continue
        try:
            outcomes = [dice.choice(OUTCOMES) if not chaos.over else None for _ in held]
            statuses = finish(conn, worker, held, outcomes)
            with chaos.lock:
                chaos.completed.update(
                    task.id
                    for task, outcome, status in zip(held, outcomes, statuses, strict=True)
                    if outcome is None and status == "ok"
                )
            rows(conn, "heartbeat", worker_id=worker)
        except psycopg.Error as error:
            if error.sqlstate != "TL007":
                raise
            worker = None


def keep_house(chaos, conn, patient):
    while patient() or not chaos.over:
        tick(conn, 200)
        time.sleep(0.05)


def watch_keys(chaos, conn):
    """No two running tasks of a queue ever have the same concurrency key."""
    while not chaos.over:
        chaos.overlaps += run(
            conn,
            "select queue, concurrency_key, array_agg(id) from tasklib.running"
            " join tasklib.task on id = task_id where concurrency_key is not null"
            " group by 1, 2 having count(*) > 1",
        )
        time.sleep(0.02)


@pytest.mark.slow
def test_every_committed_task_is_completed_exactly_once(conn, make_conn):
    chaos = Chaos()
    reader = make_conn()
    # more lives than a fair share of dead workers takes
    often = {"max_crashes": 1000, "backoff": {"base_seconds": 0.01, "multiplier": 1}}
    for name in NAMES:
        register(conn, {"name": name, **often}, lease="1 second")
    run(reader, "begin isolation level repeatable read")
    run(reader, "select count(*) from tasklib.tasks")

    def patient():
        """Say whether there is still something to do when time is up."""
        if chaos.errors or time.monotonic() > chaos.until + 30:
            return False
        return unfinished() > 0 or any(producer.is_alive() for producer in producers)

    def unfinished():
        return len(chaos.committed) - len(chaos.completed)

    producers = [chaos.start(produce, make_conn(), seed) for seed in range(2)]
    producers.append(chaos.start(produce_in_one_long_transaction, make_conn()))
    others = [chaos.start(work, make_conn, seed, patient) for seed in range(4)]
    others.append(chaos.start(keep_house, make_conn(), patient))
    others.append(chaos.start(watch_keys, make_conn()))
    for thread in [*producers, *others]:
        thread.join()

    assert not chaos.errors, chaos.errors[0]
    assert not chaos.overlaps
    assert sweep(conn) == 0
    assert set(chaos.completed.values()) == {1}
    assert set(chaos.completed) == chaos.committed
    seen = run(conn, "select id, state from tasklib.tasks")
    assert {row.id for row in seen} == chaos.committed
    assert {row.state for row in seen} == {"completed"}
    assert len(chaos.committed) > 30 * SECONDS
    assert chaos.rolled_back
    for table in ("ready", "delayed", "waiting", "parked", "running", "unique_key", "gate"):
        assert one(conn, f"select count(*) from tasklib.{table}") == 0
    assert one(conn, "select count(*) from tasklib.failures where cause = 'lost'") > 0
    advance(conn, "1 minute")
    tick(conn)
    assert sweep(conn) == 0
