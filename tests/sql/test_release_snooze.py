"""What was not started is given back uncharged; what cannot go on now is put off."""

from __future__ import annotations

import pytest

from sql.support import (
    call,
    claim,
    claim_one,
    complete,
    due,
    enqueue,
    finish,
    one,
    refused,
    register,
    rows,
    task,
)


@pytest.fixture
def worker(conn):
    return register(conn)


def release(conn, worker, held):
    return rows(conn, "release", worker_id=worker, ids=[held.id], attempts=[held.attempt])[0][0]


def snooze(conn, worker, held, delay):
    lease = {"id": held.id, "worker_id": worker, "attempt": held.attempt}
    return call(conn, "snooze", **lease, delay=delay)


def test_a_released_task_is_ready_and_not_charged(conn, worker):
    task_id = enqueue(conn)
    assert release(conn, worker, claim_one(conn, worker)) == "ok"

    assert (task(conn, task_id).state, task(conn, task_id).retry_count) == ("pending", 0)
    again = claim_one(conn, worker)
    assert (again.attempt, again.retry_count) == (2, 0)


def test_a_release_is_not_a_failure(conn, worker):
    enqueue(conn)
    release(conn, worker, claim_one(conn, worker))

    assert one(conn, "select count(*) from tasklib.failures") == 0


def test_the_eleventh_release_counts_as_a_failed_attempt(conn, worker):
    task_id = enqueue(conn)
    for n in range(1, 11):
        held = claim_one(conn, worker)
        assert (held.attempt, held.retry_count) == (n, 0)
        assert release(conn, worker, held) == "ok"
    release(conn, worker, claim_one(conn, worker))

    seen = task(conn, task_id)
    assert (seen.state, seen.next_retry_at is not None) == ("failed", True)
    due(conn)
    again = claim_one(conn, worker)
    assert (again.attempt, again.retry_count) == (12, 1)


def test_releases_do_not_hide_failures(conn, worker):
    enqueue(conn, max_retries=1)
    release(conn, worker, claim_one(conn, worker))
    fail_now = [{"state": "failed", "retry_in": 0}]
    finish(conn, worker, [claim_one(conn, worker)], fail_now)
    due(conn)
    held = claim_one(conn, worker)
    assert (held.attempt, held.retry_count) == (3, 1)
    finish(conn, worker, [held], fail_now)

    assert (task(conn, held.id).state, task(conn, held.id).next_retry_at) == ("failed", None)


def test_a_snoozed_task_waits_and_is_not_charged(conn, worker):
    task_id = enqueue(conn)
    until = snooze(conn, worker, claim_one(conn, worker), "10 minutes")

    seen = task(conn, task_id)
    assert (seen.state, seen.scheduled_at, seen.retry_count) == ("pending", until, 0)
    assert claim(conn, worker) == []
    due(conn)
    again = claim_one(conn, worker)
    assert (again.attempt, again.retry_count) == (2, 0)


def test_a_task_may_snooze_as_often_as_it_likes(conn, worker):
    task_id = enqueue(conn)
    for n in range(30):
        held = claim_one(conn, worker)
        assert (held.attempt, held.retry_count) == (n + 1, 0)
        snooze(conn, worker, held, "0")
        due(conn)

    complete(conn, worker, claim_one(conn, worker))
    assert task(conn, task_id).attempt == 31


@pytest.mark.parametrize("delay", [None, "-1 second", "6 years"])
def test_a_snooze_needs_a_sensible_delay(conn, worker, delay):
    enqueue(conn)
    held = claim_one(conn, worker)

    with refused("TL001"):
        snooze(conn, worker, held, delay)
    complete(conn, worker, held)


def test_a_released_attempt_cannot_complete(conn, worker):
    enqueue(conn)
    held = claim_one(conn, worker)
    release(conn, worker, held)

    with refused("TL004"):
        complete(conn, worker, held)
