"""Tasks of workers that die come back, are charged, and cannot loop for ever."""

from __future__ import annotations

import psycopg
import pytest

from sql.support import (
    advance,
    blocked,
    call,
    claim,
    claim_one,
    complete,
    due,
    enqueue,
    enqueue_many,
    finish,
    gap,
    in_background,
    one,
    refused,
    register,
    rows,
    run,
    state,
    sweep,
    task,
    tick,
    tick_through,
)
from tasklib import embedded
from tasklib._migrate import migrate


def test_a_task_of_a_silent_worker_comes_back(conn):
    worker, other = register(conn), register(conn, lease="1 hour")
    task_id = enqueue(conn)
    claim_one(conn, worker)
    tick_through(conn, 80)
    due(conn)

    again = claim_one(conn, other)
    assert (again.id, again.attempt, again.retry_count) == (task_id, 2, 1)
    (failure,) = run(conn, "select * from tasklib.failures")
    assert (failure.cause, failure.worker_id) == ("lost", worker)
    assert str(worker) in failure.error
    assert sweep(conn) == 0


def test_a_worker_that_beats_keeps_its_tasks(conn):
    worker = register(conn)
    enqueue(conn)
    held = claim_one(conn, worker)
    for _ in range(6):
        tick_through(conn, 40)
        rows(conn, "heartbeat", worker_id=worker)

    complete(conn, worker, held)


def test_the_lease_is_as_long_as_was_asked(conn):
    short, long = register(conn, lease="5 seconds"), register(conn, lease="10 minutes")
    tick_through(conn, 20)

    alive = dict(run(conn, "select worker_id, alive from tasklib.worker_health"))
    assert alive == {short: False, long: True}


@pytest.mark.parametrize("max_crashes", [None, 1, 5])
def test_a_task_that_kills_its_workers_fails_for_good(conn, max_crashes):
    options = {} if max_crashes is None else {"max_crashes": max_crashes}
    task_id = enqueue(conn, max_retries=1000)
    for n in range(1, (max_crashes or 3) + 1):
        worker = register(conn, {"name": "t", **options})
        assert claim_one(conn, worker).attempt == n
        assert call(conn, "deregister_worker", worker_id=worker, crashed=True) == 1
        due(conn)

    seen = task(conn, task_id)
    assert (seen.state, seen.next_retry_at) == ("failed", None)
    assert {row.cause for row in run(conn, "select cause from tasklib.failures")} == {"crashed"}


def test_a_task_that_silences_its_workers_fails_for_good(conn):
    task_id = enqueue(conn, max_retries=1000)
    for n in range(1, 4):
        assert claim_one(conn, register(conn)).attempt == n
        run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
        tick(conn)
        due(conn)

    seen = task(conn, task_id)
    assert (seen.state, seen.next_retry_at) == ("failed", None)
    assert {row.cause for row in run(conn, "select cause from tasklib.failures")} == {"lost"}


def test_a_queue_can_say_how_many_crashes(conn):
    run(conn, "select tasklib.set_queue('default', max_crashes => 1)")
    worker = register(conn)
    task_id = enqueue(conn)
    claim_one(conn, worker)
    call(conn, "deregister_worker", worker_id=worker, crashed=True)

    assert task(conn, task_id).next_retry_at is None


def test_failures_of_other_causes_are_not_crashes(conn):
    worker = register(conn)
    task_id = enqueue(conn, max_retries=1000)
    for _ in range(5):
        finish(conn, worker, [claim_one(conn, worker)], [{"state": "failed", "retry_in": 0}])
        due(conn)

    assert state(conn, task_id) == "pending"


def test_crashes_use_up_the_retries_too(conn):
    worker = register(conn)
    task_id = enqueue(conn, max_retries=0)
    claim_one(conn, worker)
    call(conn, "deregister_worker", worker_id=worker, crashed=True)

    assert task(conn, task_id).next_retry_at is None


def test_retry_forgives_the_crashes(conn):
    task_id = enqueue(conn)
    for _ in range(3):
        worker = register(conn)
        claim_one(conn, worker)
        call(conn, "deregister_worker", worker_id=worker, crashed=True)
        due(conn)
    call(conn, "retry", id=task_id)
    worker = register(conn)
    claim_one(conn, worker)
    call(conn, "deregister_worker", worker_id=worker, crashed=True)

    assert task(conn, task_id).next_retry_at is not None


def test_only_what_a_dead_process_had_begun_is_charged(conn):
    worker, other = register(conn), register(conn)
    ids = [row.id for row in enqueue_many(conn, *[{"name": "t", "max_retries": 0}] * 3)]
    claim(conn, worker, 3)
    assert call(conn, "deregister_worker", worker_id=worker, crashed=True, begun=[ids[1]]) == 3

    assert [state(conn, task_id) for task_id in ids] == ["pending", "failed", "pending"]
    again = claim(conn, other, 5)
    assert {row.id for row in again} == {ids[0], ids[2]}
    assert {row.retry_count for row in again} == {0}
    assert run(conn, "select status from tasklib.worker_health where worker_id = %s", worker) == [
        ("crashed",)
    ]


def test_waiting_behind_tasks_that_kill_is_never_charged(conn):
    ahead = enqueue(conn, max_retries=0)
    for _ in range(12):
        worker, culprit = register(conn), enqueue(conn)
        assert {row.id for row in claim(conn, worker, 2)} == {ahead, culprit}
        call(conn, "deregister_worker", worker_id=worker, crashed=True, begun=[culprit])
        call(conn, "cancel", id=culprit)
    assert task(conn, ahead).retry_count == 0


@pytest.mark.parametrize("begun", [[], None])
def test_a_task_whose_workers_die_before_it_begins_ends(conn, begun):
    task_id = enqueue(conn, max_retries=0)
    for _ in range(11):
        worker = register(conn)
        claim_one(conn, worker)
        call(conn, "deregister_worker", worker_id=worker, crashed=begun is not None, begun=begun)
    assert state(conn, task_id) == "failed"
    assert task(conn, task_id).error == "released more than 10 times"


def test_deregistering_gives_everything_back_uncharged(conn):
    worker, other = register(conn), register(conn)
    ids = [row.id for row in enqueue_many(conn, *[{"name": "t"}] * 5)]
    claim(conn, worker, 5)
    assert call(conn, "deregister_worker", worker_id=worker) == 5

    again = claim(conn, other, 5)
    assert {h.id for h in again} == set(ids)
    assert {(h.attempt, h.retry_count) for h in again} == {(2, 0)}
    assert one(conn, "select count(*) from tasklib.failures") == 0


def test_a_worker_that_left_is_gone(conn):
    worker = register(conn)
    call(conn, "deregister_worker", worker_id=worker)

    for function in ("heartbeat", "claim", "deregister_worker"):
        with refused("TL007"):
            rows(conn, function, worker_id=worker)


def test_a_gap_in_which_nobody_ticked_gives_every_worker_a_lease_of_grace(conn):
    worker = register(conn)
    enqueue(conn)
    tick(conn)
    held = claim_one(conn, worker)
    gap(conn, "10 minutes")
    assert tick(conn).reclaimed == 0

    rows(conn, "heartbeat", worker_id=worker)
    complete(conn, worker, held)


def test_a_gap_as_long_as_half_a_lease_is_one_also_when_the_server_runs_for_long(conn):
    # younger, it would pass for one that was just started
    run(
        conn,
        "select pg_sleep(extract(epoch from"
        " pg_postmaster_start_time() + interval '35 seconds' - clock_timestamp()))",
    )
    worker = register(conn, lease="10 seconds")
    tick(conn)
    gap(conn, "31 seconds")

    assert tick(conn) is not None
    rows(conn, "heartbeat", worker_id=worker)


def test_grace_is_given_once_and_not_at_every_gap(conn):
    worker, slow = register(conn), register(conn, lease="24 hours")
    task_id = enqueue(conn)
    tick(conn)
    claim_one(conn, worker)
    seen = []
    for _ in range(8):
        gap(conn, "40 seconds")
        seen += claim(conn, slow)

    assert [h.id for h in seen] == [task_id]


def test_a_heartbeat_after_a_gap_earns_the_next_grace(conn):
    worker = register(conn)
    tick(conn)
    for _ in range(3):
        gap(conn, "10 minutes")
        assert tick(conn).reclaimed == 0
        rows(conn, "heartbeat", worker_id=worker)


def test_a_worker_is_not_taken_for_dead_by_its_own_claim(conn):
    worker = register(conn)
    tick(conn)
    gap(conn, "2 minutes")
    tick(conn)  # its one grace
    task_id = enqueue(conn, delay="1 minute")
    gap(conn, "3 minutes")

    held = claim_one(conn, worker)
    assert held.id == task_id
    complete(conn, worker, held)
    assert sweep(conn) == 0


def test_a_worker_is_not_taken_for_dead_by_going_to_sleep(conn):
    worker = register(conn)
    tick(conn)
    gap(conn, "2 minutes")
    tick(conn)
    gap(conn, "3 minutes")

    for for_long in (True, False):
        call(conn, "idle", worker_id=worker, for_long=for_long)
    call(conn, "deregister_worker", worker_id=worker)


def test_a_restart_of_the_server_gives_every_worker_a_lease_of_grace():
    server = embedded.temporary()
    with server as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as conn:
            worker = register(conn)
            enqueue(conn)
            held = claim_one(conn, worker)
            tick(conn)
            run(conn, "update tasklib.worker set lease_until = clock_timestamp()")
        server.shutdown()
        server.start()
        with psycopg.connect(url, autocommit=True) as conn:
            assert tick(conn).reclaimed == 0
            complete(conn, worker, held)


def test_a_claim_reaps_when_nobody_else_ticks(conn):
    worker, other = register(conn), register(conn, lease="1 hour")
    task_id = enqueue(conn, backoff={"base_seconds": 0})
    claim_one(conn, worker)
    seen = []
    for _ in range(8):
        advance(conn, "20 seconds")
        run(conn, "update tasklib.horizon set at = at - interval '2 seconds'")
        seen += claim(conn, other)

    assert [h.id for h in seen] == [task_id]


def test_a_dead_workers_many_tasks_come_back_in_bounded_ticks(conn):
    worker = register(conn)
    enqueue_many(conn, *[{"name": "t"}] * 250)
    claim(conn, worker, 250)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")

    done = [tick(conn, 100) for _ in range(4)]
    assert [d.reclaimed for d in done] == [100, 100, 50, 0]
    assert [d.more for d in done] == [True, True, False, False]


def test_a_finish_that_is_under_way_wins_over_the_reaper(conn, make_conn):
    other, worker = make_conn(), register(conn)
    enqueue(conn)
    held = claim_one(conn, worker)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
    run(other, "begin")
    complete(other, worker, held)
    assert tick(conn).reclaimed == 0
    run(other, "commit")
    tick(conn)

    assert state(conn, held.id) == "completed"
    assert sweep(conn) == 0


def test_a_finish_that_is_rolled_back_leaves_the_task_to_the_reaper(conn, make_conn):
    other, worker = make_conn(), register(conn)
    enqueue(conn)
    held = claim_one(conn, worker)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
    run(other, "begin")
    complete(other, worker, held)
    assert tick(conn).reclaimed == 0
    run(other, "rollback")

    assert tick(conn).reclaimed == 1
    assert state(conn, held.id) == "failed"
    assert sweep(conn) == 0


def test_a_heartbeat_that_meets_the_reaper_is_told_so(conn, make_conn):
    other, worker = make_conn(), register(conn)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
    run(conn, "begin")
    tick(conn)

    def late_heartbeat():
        with refused("TL007"):
            rows(other, "heartbeat", worker_id=worker)

    with in_background(late_heartbeat) as refusal:
        blocked(conn, other)
        run(conn, "commit")
        refusal.result(5)


def test_dead_workers_are_forgotten_after_a_day(conn):
    register(conn)
    tick_through(conn, 80)
    assert one(conn, "select count(*) from tasklib.worker_health") == 1
    advance(conn, "25 hours")
    tick(conn)

    assert one(conn, "select count(*) from tasklib.worker_health") == 0
