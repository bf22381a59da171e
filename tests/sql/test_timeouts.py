"""An attempt that its worker does not end at its timeout is ended by tick."""

from __future__ import annotations

import pytest

from sql.support import (
    advance,
    claim_one,
    due,
    enqueue,
    finish,
    one,
    refused,
    register,
    rows,
    run,
    state,
    sweep,
    task,
    tick,
)


@pytest.fixture
def worker(conn):
    return register(conn, lease="24 hours")


def test_ten_seconds_after_its_timeout_an_attempt_has_failed(conn, worker):
    task_id = enqueue(conn, timeout_seconds=5)
    claim_one(conn, worker)
    advance(conn, "14 seconds")
    assert tick(conn).timed_out == 0
    advance(conn, "2 seconds")
    assert tick(conn).timed_out == 1

    seen = task(conn, task_id)
    assert (seen.state, seen.retry_count) == ("failed", 0)
    assert seen.next_retry_at is not None
    assert one(conn, "select cause from tasklib.failures") == "timeout"


def test_the_worker_that_comes_late_is_told(conn, worker):
    enqueue(conn, timeout_seconds=5)
    held = claim_one(conn, worker)
    advance(conn, "20 seconds")
    tick(conn)

    assert finish(conn, worker, [held]) == ["stale"]
    with refused("TL004"):
        rows(conn, "complete", id=held.id, worker_id=worker, attempt=1)
    assert finish(conn, worker, [held], [{"state": "failed", "cause": "timeout"}]) == ["already"]


def test_heartbeats_do_not_move_the_timeout(conn, worker):
    enqueue(conn, timeout_seconds=5)
    claim_one(conn, worker)
    advance(conn, "20 seconds")
    rows(conn, "heartbeat", worker_id=worker)

    assert tick(conn).timed_out == 1


def test_the_timeout_of_a_name_counts(conn):
    worker = register(conn, {"name": "t", "timeout_seconds": 5}, lease="24 hours")
    task_id = enqueue(conn)
    assert claim_one(conn, worker).timeout_seconds == 5
    advance(conn, "20 seconds")
    tick(conn)

    assert state(conn, task_id) == "failed"


def test_a_task_without_a_timeout_may_run_for_ever(conn, worker):
    task_id = enqueue(conn)
    claim_one(conn, worker)
    advance(conn, "10 years")
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() + interval '1 day'")
    tick(conn)

    assert state(conn, task_id) == "running"


def test_each_attempt_has_the_whole_time(conn, worker):
    task_id = enqueue(conn, timeout_seconds=5)
    for attempt in range(1, 5):
        assert claim_one(conn, worker).attempt == attempt
        advance(conn, "20 seconds")
        assert tick(conn).timed_out == 1
        due(conn)

    seen = task(conn, task_id)
    assert (seen.state, seen.next_retry_at) == ("failed", None)
    assert sweep(conn) == 0


def test_timeouts_of_all_lengths_are_found(conn, worker):
    for seconds in (600, 5, 60, 0.5, 604800):
        enqueue(conn, timeout_seconds=seconds)
        claim_one(conn, worker)
    found = []
    for pause in ("20 seconds", "1 minute", "10 minutes", "8 days"):
        advance(conn, pause)
        run(conn, "update tasklib.worker set lease_until = clock_timestamp() + interval '1 day'")
        found.append(tick(conn).timed_out)

    assert found == [2, 1, 1, 1]
    assert sweep(conn) == 0
