"""cancel ends what does not run, and asks what runs."""

from __future__ import annotations

import pytest

from sql.support import (
    blocked,
    call,
    claim,
    claim_one,
    complete,
    due,
    enqueue,
    fail,
    finish,
    in_background,
    one,
    register,
    rows,
    run,
    state,
    task,
    tick_through,
)


@pytest.fixture
def worker(conn):
    return register(conn, "t")


def cancel(conn, task_id):
    return call(conn, "cancel", id=task_id)


@pytest.mark.parametrize("place", ["ready", "delayed", "parked", "waiting", "retrying"])
def test_a_task_that_does_not_run_is_cancelled_at_once(conn, worker, place):
    if place == "waiting":
        enqueue(conn, concurrency_key="k")
    options = {"delayed": {"delay": "1 hour"}, "waiting": {"concurrency_key": "k"}}.get(place, {})
    task_id = enqueue(conn, "unknown" if place == "parked" else "t", **options)
    held = claim(conn, worker, 2) if place in ("waiting", "retrying") else []
    if place == "retrying":
        fail(conn, worker, held[0])
    assert cancel(conn, task_id) == "cancelled"

    seen = task(conn, task_id)
    assert (seen.state, seen.next_retry_at) == ("cancelled", None)
    assert seen.completed_at is not None
    due(conn)
    assert task_id not in [h.id for h in claim(conn, worker, 5)]


def test_a_running_task_is_asked_and_its_worker_hears_of_it(conn, worker):
    task_id = enqueue(conn)
    claim_one(conn, worker)
    assert cancel(conn, task_id) == "requested"

    assert rows(conn, "cancel_requests", worker_id=worker) == [(task_id,)]
    seen = task(conn, task_id)
    assert (seen.state, seen.cancel_requested_at is not None) == ("running", True)


def test_asking_twice_changes_nothing(conn, worker):
    task_id = enqueue(conn)
    claim_one(conn, worker)
    cancel(conn, task_id)
    first = task(conn, task_id).cancel_requested_at

    assert cancel(conn, task_id) == "requested"
    assert task(conn, task_id).cancel_requested_at == first


def test_a_complete_still_wins(conn, worker):
    task_id = enqueue(conn)
    held = claim_one(conn, worker)
    cancel(conn, task_id)
    complete(conn, worker, held)

    seen = task(conn, task_id)
    assert (seen.state, seen.cancel_requested_at) == ("completed", None)
    assert rows(conn, "cancel_requests", worker_id=worker) == []


@pytest.mark.parametrize(
    "outcome",
    [
        {"state": "failed", "error": "stopped"},
        {"state": "released"},
        {"state": "snoozed", "seconds": 9},
        {"state": "cancelled"},
    ],
)
def test_anything_else_ends_as_cancelled(conn, worker, outcome):
    task_id = enqueue(conn)
    held = claim_one(conn, worker)
    cancel(conn, task_id)
    assert finish(conn, worker, [held], [outcome]) == ["ok"]

    assert state(conn, task_id) == "cancelled"
    assert one(conn, "select count(*) from tasklib.cancel_request") == 0


def test_the_same_by_single_calls(conn, worker):
    first, second = enqueue(conn), enqueue(conn)
    a, b = claim(conn, worker, 2)
    cancel(conn, first)
    cancel(conn, second)

    assert fail(conn, worker, a, error="stopped") == ("cancelled", None)
    lease = {"id": b.id, "worker_id": worker, "attempt": 1}
    assert call(conn, "snooze", **lease, delay="1 hour") is None
    assert [state(conn, i) for i in (first, second)] == ["cancelled", "cancelled"]


def test_a_lost_worker_ends_what_was_asked_to_stop(conn, worker):
    task_id = enqueue(conn)
    claim_one(conn, worker)
    cancel(conn, task_id)
    tick_through(conn, 80)

    assert state(conn, task_id) == "cancelled"


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
def test_a_finished_task_stays_as_it_is(conn, worker, ending):
    task_id = enqueue(conn)
    finish(conn, worker, [claim_one(conn, worker)], [{"state": ending} | FOR_GOOD.get(ending, {})])

    assert cancel(conn, task_id) == "finished"
    assert state(conn, task_id) == ending


FOR_GOOD = {"failed": {"retry": False}}


def test_a_cancel_that_meets_an_open_claim_asks(conn, make_conn, worker):
    claiming, cancelling = make_conn(), make_conn()
    task_id = enqueue(conn)
    run(claiming, "begin")
    claim_one(claiming, worker)
    with in_background(lambda: cancel(cancelling, task_id)) as answer:
        blocked(conn, cancelling)
        run(claiming, "commit")
        assert answer.result(5) == "requested"


def test_a_cancel_that_meets_an_open_complete_finds_it_finished(conn, make_conn, worker):
    completing, cancelling = make_conn(), make_conn()
    task_id = enqueue(conn)
    held = claim_one(conn, worker)
    run(completing, "begin")
    complete(completing, worker, held)
    with in_background(lambda: cancel(cancelling, task_id)) as answer:
        blocked(conn, cancelling)
        run(completing, "commit")
        assert answer.result(5) == "finished"
    assert one(conn, "select count(*) from tasklib.cancel_request") == 0


def test_a_complete_that_meets_an_open_cancel_wins(conn, make_conn, worker):
    completing, cancelling = make_conn(), make_conn()
    task_id = enqueue(conn)
    held = claim_one(conn, worker)
    run(cancelling, "begin")
    assert cancel(cancelling, task_id) == "requested"
    with in_background(lambda: finish(completing, worker, [held])) as answer:
        blocked(conn, completing)
        run(cancelling, "commit")
        assert answer.result(5) == ["ok"]
    assert task(conn, task_id).cancel_requested_at is None
