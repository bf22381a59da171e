"""However many claim at once, each task is handed out once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from psycopg import Connection
from psycopg.types.json import Jsonb

from sql.support import (
    blocked,
    call,
    claim,
    claim_one,
    enqueue,
    enqueue_many,
    finish,
    in_background,
    one,
    refused,
    register,
    run,
    state,
    sweep,
    tick,
    transaction,
)


def test_eight_threads_share_two_thousand_tasks(conn, make_conn):
    register(conn)
    for _ in range(2):
        enqueue_many(conn, *({"name": "t", "priority": n % 3} for n in range(1000)))

    def consume(session):
        worker, seen = register(session), []
        while held := claim(session, worker, 7):
            seen += [h.id for h in held]
            assert set(finish(session, worker, held)) == {"ok"}
        return seen

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(consume, [make_conn() for _ in range(8)]))
    counts = Counter(task_id for part in parts for task_id in part)
    assert len(counts) == 2000
    assert set(counts.values()) == {1}
    assert run(conn, "select distinct state, attempt from tasklib.tasks") == [("completed", 1)]
    assert sweep(conn) == 0


def test_one_task_and_eight_threads(conn, make_conn):
    sessions = [make_conn() for _ in range(8)]
    workers = [register(session) for session in sessions]
    for _ in range(10):
        enqueue(conn)
        with ThreadPoolExecutor(8) as pool:
            held = list(pool.map(claim, sessions, workers))
        assert sum(len(part) for part in held) == 1


def test_a_worker_with_an_open_claim_is_not_declared_lost(conn, make_conn):
    other, worker = make_conn(), register(conn)
    enqueue(conn)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
    with transaction(other):
        held = claim_one(other, worker)
        tick(conn)
        assert one(conn, "select lost_at from tasklib.worker") is None
    assert finish(conn, worker, [held]) == ["ok"]


def test_a_claim_waits_for_the_reaper_and_is_refused(conn, make_conn):
    other, worker = make_conn(), register(conn)
    task_id = enqueue(conn)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
    run(conn, "begin")
    tick(conn)

    def late_claim():
        with refused("TL007"):
            claim(other, worker)

    with in_background(late_claim) as refusal:
        blocked(conn, other)
        run(conn, "commit")
        refusal.result(5)
    assert state(conn, task_id) == "pending"


def test_deregistering_waits_for_an_open_claim_and_gives_its_tasks_back(conn, make_conn):
    other, worker = make_conn(), register(conn)
    task_id = enqueue(conn)
    run(conn, "begin")
    claim_one(conn, worker)
    with in_background(lambda: call(other, "deregister_worker", worker_id=worker)) as left:
        blocked(conn, other)
        run(conn, "commit")
        assert left.result(5) == 1
    assert state(conn, task_id) == "pending"
    assert claim_one(conn, register(conn)).attempt == 2


def test_a_crash_during_a_claim_leaves_the_task_where_it_was(conn, make_conn):
    other, worker = make_conn(), register(conn)
    task_id = enqueue(conn)
    run(other, "begin")
    claim_one(other, worker)
    other.close()

    held = []
    while not held:  # the server notices after a moment
        held = claim(conn, worker)
    assert (held[0].id, held[0].attempt) == (task_id, 1)


def test_workers_that_store_the_same_new_name_at_the_same_moment_both_register(make_conn):
    conns = [make_conn() for _ in range(4)]
    together = Barrier(len(conns))

    def register_all(conn: Connection) -> None:
        for n in range(100):
            together.wait(30)
            run(conn, "select tasklib.register_worker(task_types => %s)", Jsonb([f"app.t{n}"]))

    with ThreadPoolExecutor(len(conns)) as pool:
        list(pool.map(register_all, conns))
