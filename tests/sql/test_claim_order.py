"""Priority first, then the order in which tasks became ready; queues in the order asked."""

from __future__ import annotations

import pytest

from sql.support import (
    advance,
    call,
    claim,
    claim_one,
    enqueue,
    enqueue_many,
    finish,
    gap,
    register,
    rows,
    run,
    tick,
    transaction,
)


@pytest.fixture
def worker(conn):
    return register(conn)


def names(held):
    return [h.name for h in held]


def test_first_in_first_out(conn, worker):
    for name in "cab":
        enqueue(conn, name)

    assert names(claim(conn, worker, 3)) == ["c", "a", "b"]


def test_first_in_first_out_between_sessions(conn, make_conn, worker):
    other = make_conn()
    ids = [enqueue(session) for session in (conn, other, conn, other)]

    assert [h.id for h in claim(conn, worker, 4)] == ids


def test_priority_goes_first_and_ties_in_order(conn, worker):
    for n, priority in enumerate([0, 5, -1000, 5, 1000, 0]):
        enqueue(conn, str(n), priority=priority)

    assert names(claim(conn, worker, 10)) == ["4", "1", "3", "0", "5", "2"]


def test_order_holds_from_claim_to_claim(conn, worker):
    for n, priority in enumerate([0, 5, 0, 5]):
        enqueue(conn, str(n), priority=priority)

    assert names(h for _ in range(4) for h in claim(conn, worker)) == ["1", "3", "0", "2"]


def test_across_queues_priority_counts_before_the_order_asked(conn, worker):
    for name, queue, priority in [
        ("a", "low", 9),
        ("b", "high", 0),
        ("c", "low", 0),
        ("d", "high", 9),
        ("e", "low", 10),
        ("f", "high", -1),
    ]:
        enqueue(conn, name, queue=queue, priority=priority)

    asked = ["high", "low"]
    assert names(claim(conn, worker, 10, asked)) == ["e", "d", "a", "b", "c", "f"]


def test_of_equal_priority_the_queue_named_first_goes_first(conn, worker):
    for n in range(4):
        enqueue(conn, f"{n}", queue=["a", "b"][n % 2])

    assert names(claim(conn, worker, 3, ["b", "a"])) == ["1", "3", "0"]


def test_only_the_queues_that_were_asked_for(conn, worker):
    enqueue(conn, "a")
    enqueue(conn, "b", queue="mail")

    assert names(claim(conn, worker, 5, ["mail", "other"])) == ["b"]
    assert names(claim(conn, worker, 5)) == ["a"]


def test_a_queue_named_twice_counts_once(conn, worker):
    enqueue(conn, "a", queue="x")
    enqueue(conn, "b", queue="y")

    assert names(claim(conn, worker, 5, ["x", "x", "y", "x"])) == ["a", "b"]


def test_many_queues_at_once(conn, worker):
    queues = [f"q{n}" for n in range(200)]
    for n in range(199, -1, -10):
        enqueue(conn, queue=queues[n], priority=n % 3)

    held = claim(conn, worker, 100, queues)
    assert len(held) == 20
    ranks = [(-h.priority, queues.index(h.queue)) for h in held]
    assert ranks == sorted(ranks)


def test_a_paused_queue_hands_out_nothing_until_it_is_resumed(conn, worker):
    enqueue(conn, "a")
    enqueue(conn, "b", queue="mail")
    rows(conn, "pause", queue="mail")
    assert names(claim(conn, worker, 5, ["mail", "default"])) == ["a"]
    assert claim(conn, worker, 5, ["mail"]) == []
    rows(conn, "resume", queue="mail")

    assert names(claim(conn, worker, 5, ["mail", "default"])) == ["b"]


def test_a_pause_does_not_stop_what_runs(conn, worker):
    enqueue(conn)
    held = claim_one(conn, worker)
    rows(conn, "pause", queue="default")
    enqueue(conn)

    assert finish(conn, worker, [held]) == ["ok"]
    assert claim(conn, worker) == []


def test_a_delayed_task_goes_behind_those_that_were_ready_before_it(conn, worker):
    later = enqueue(conn, delay="10 seconds")
    first = enqueue(conn)
    advance(conn, "11 seconds")
    tick(conn)
    last = enqueue(conn)

    assert [h.id for h in claim(conn, worker, 3)] == [first, later, last]


def test_delayed_tasks_come_in_the_order_of_their_times(conn, worker):
    for seconds in (3, 1, 2):
        enqueue(conn, str(seconds), delay=f"{seconds} seconds")
    advance(conn, "10 seconds")
    tick(conn)

    assert names(claim(conn, worker, 3)) == ["1", "2", "3"]


def test_a_claim_that_found_too_little_keeps_house_for_the_next_one(conn, worker):
    tick(conn)
    enqueue(conn, "high", priority=9, delay="1 second")
    enqueue(conn, "low")
    gap(conn, "3 seconds")

    assert names(claim(conn, worker, 10)) == ["low"]
    assert names(claim(conn, worker, 10)) == ["high"]


def test_a_worker_that_always_finds_something_keeps_house_now_and_then(conn, worker):
    tick(conn)
    enqueue(conn, "late", delay="1 second")
    gap(conn, "3 seconds")
    seen = []
    while "late" not in seen and len(seen) < 300:  # one claim in eight keeps house
        enqueue(conn, "soon")
        seen += names(claim(conn, worker, 10))

    assert "late" in seen


def test_a_claim_leaves_the_house_to_who_keeps_it(conn, make_conn, worker):
    other = make_conn()
    enqueue(conn, delay="1 second")
    advance(conn, "3 seconds")
    with transaction(other):
        run(other, "select from tasklib.housekeeping for update")
        assert claim(conn, worker) == []

    assert len(claim(conn, worker)) == 1


def test_a_released_task_goes_behind_those_that_are_ready(conn, worker):
    first, second = enqueue(conn), enqueue(conn)
    held = claim_one(conn, worker)
    rows(conn, "release", worker_id=worker, ids=[held.id], attempts=[1])

    assert [h.id for h in claim(conn, worker, 2)] == [second, first]


def test_a_claim_takes_no_more_than_it_asked_for(conn, worker):
    enqueue_many(conn, *[{"name": "t", "priority": n % 3} for n in range(30)])

    assert [len(claim(conn, worker, n)) for n in (1, 7, 100)] == [1, 7, 22]


def test_a_claim_of_many_queues_takes_no_more_than_it_asked_for(conn, worker):
    enqueue_many(conn, *[{"name": "t", "queue": queue} for queue in "aaabbb"])

    assert len(claim(conn, worker, 4, ["a", "b"])) == 4


def test_a_body_that_has_moved_is_found(conn, worker):
    gone, *ids = (enqueue(conn, name) for name in "abc")
    finish(conn, worker, [claim_one(conn, worker)])
    run(conn, "delete from tasklib.task where id = %s", gone)
    run(conn, "vacuum full tasklib.task")

    assert [(h.id, h.name) for h in claim(conn, worker, 5)] == list(zip(ids, "bc", strict=True))


def test_rows_that_another_session_holds_are_skipped(conn, make_conn, worker):
    other = make_conn()
    ids = [enqueue(conn) for _ in range(4)]
    run(other, "begin")
    assert [h.id for h in claim(other, worker, 2)] == ids[:2]

    assert [h.id for h in claim(conn, worker, 2)] == ids[2:]
    run(other, "rollback")
    assert [h.id for h in claim(conn, worker, 2)] == ids[:2]


def test_a_worker_gets_only_names_that_it_registered(conn):
    only_b = register(conn, "b")
    register(conn, "a")
    for name in "abab":
        enqueue(conn, name)

    assert names(claim(conn, only_b, 10)) == ["b", "b"]
    assert call(conn, "cancel", id=enqueue(conn, "a")) == "cancelled"
