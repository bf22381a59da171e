"""Failed attempts run again after a backoff, until the budget is used up."""

from __future__ import annotations

from datetime import timedelta

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
    fail,
    finish,
    in_background,
    one,
    refused,
    register,
    run,
    state,
    task,
    tick,
)


@pytest.fixture
def worker(conn):
    return register(conn, lease="24 hours")


def waits(conn, worker, task_id, limit=20):
    """Fail a task until it has failed for good; return the seconds between its attempts."""
    seconds = []
    for _ in range(limit):
        fail(conn, worker, claim_one(conn, worker), error="boom")
        (wait,) = run(
            conn,
            "select next_retry_at - failed_at as wait from tasklib.failures"
            " where task_id = %s order by attempt desc limit 1",
            task_id,
        )
        if wait.wait is None:
            break
        seconds.append(wait.wait.total_seconds())
        due(conn)
    return seconds


def test_five_ten_twenty_seconds_and_then_failed_for_good(conn, worker):
    task_id = enqueue(conn)
    seen = []
    for _ in range(4):
        fail(conn, worker, claim_one(conn, worker), error="boom")
        now = task(conn, task_id)
        seen.append((now.state, now.retry_count, now.next_retry_at is not None))
        due(conn)

    assert seen == [("failed", n, n < 3) for n in range(4)]
    assert waits_of(conn, task_id) == [5, 10, 20]
    assert claim(conn, worker) == []


def waits_of(conn, task_id):
    return [
        row.s.total_seconds()
        for row in run(
            conn,
            "select next_retry_at - failed_at as s from tasklib.failures where task_id = %s"
            " and next_retry_at is not null order by attempt",
            task_id,
        )
    ]


def test_a_task_that_is_due_again_is_pending_and_its_error_stays_in_sight(conn, worker):
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), error="boom")
    assert state(conn, task_id) == "failed"
    advance(conn, "6 seconds")
    assert state(conn, task_id) == "pending"
    tick(conn)

    seen = task(conn, task_id)
    assert (seen.state, seen.error, seen.next_retry_at) == ("pending", "boom", None)
    again = claim_one(conn, worker)
    assert (again.attempt, again.retry_count) == (2, 1)


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        ({"base_seconds": 1}, [1, 2, 4, 8]),
        ({"multiplier": 1}, [5, 5, 5, 5]),
        ({"multiplier": 3, "cap_seconds": 20}, [5, 15, 20, 20]),
        ({"base_seconds": 0}, [0, 0, 0, 0]),
        ({"multiplier": 0}, [5, 0, 0, 0]),
        ({"cap_seconds": 0}, [0, 0, 0, 0]),
        ({"base_seconds": 31536000, "cap_seconds": 31536000}, [31536000] * 4),
        ({}, [5, 10, 20, 40]),
    ],
)
def test_the_backoff_of_a_task(conn, worker, backoff, expected):
    task_id = enqueue(conn, backoff=backoff, max_retries=4)

    assert waits(conn, worker, task_id) == expected


def test_the_backoff_and_the_budget_of_a_name(conn):
    worker = register(conn, {"name": "t", "max_retries": 2, "backoff": {"base_seconds": 60}})
    by_name = enqueue(conn)
    assert waits(conn, worker, by_name) == [60, 120]
    own = enqueue(conn, backoff={"base_seconds": 1}, max_retries=1)
    assert waits(conn, worker, own) == [1]


def test_no_retries_means_one_attempt(conn, worker):
    assert waits(conn, worker, enqueue(conn, max_retries=0)) == []


def test_the_wait_is_capped_at_an_hour_however_often_it_fails(conn, worker):
    seconds = waits(conn, worker, enqueue(conn, max_retries=120), limit=121)

    assert seconds[9:] == [2560] + [3600] * 110
    assert len(seconds) == 120


def test_no_number_of_attempts_is_too_high_for_a_wait(conn):
    worker = register(conn)
    enqueue(conn, max_retries=1000, backoff={"multiplier": 100})
    run(conn, "update tasklib.ready set attempt = 900")

    assert fail(conn, worker, claim_one(conn, worker)).next_retry_at is not None


def test_jitter_moves_the_wait_by_at_most_its_share(conn, worker):
    for _ in range(40):
        enqueue(conn, backoff={"base_seconds": 100, "jitter": 0.5})
    for held in claim(conn, worker, 40):
        fail(conn, worker, held)

    seconds = [
        row.s.total_seconds()
        for row in run(conn, "select next_retry_at - failed_at as s from tasklib.failures")
    ]
    assert all(50 <= s <= 150 for s in seconds)
    assert min(seconds) < 90
    assert max(seconds) > 110
    assert len(set(seconds)) > 30


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("90 seconds", timedelta(seconds=90)),
        ("0", timedelta(0)),
        ("-1 hour", timedelta(0)),
        ("5 years", None),
        ("100000 years", None),
        ("178000000 years", None),
        ("-178000000 years", timedelta(0)),
    ],
)
def test_retry_in_is_what_was_asked_for_within_five_years(conn, worker, given, expected):
    enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), retry_in=given)

    wait = one(conn, "select next_retry_at - failed_at from tasklib.failures")
    if expected is None:
        assert timedelta(days=365 * 5) <= wait <= timedelta(days=366 * 5 + 2)
    else:
        assert wait == expected


def test_retry_in_does_not_add_to_the_budget(conn, worker):
    enqueue(conn, max_retries=1)
    outcomes = []
    for _ in range(2):
        outcome = fail(conn, worker, claim_one(conn, worker), retry_in="0")
        outcomes.append(outcome.next_retry_at is not None)
        due(conn)

    assert outcomes == [True, False]


def test_no_retry_fails_for_good_at_once(conn, worker):
    task_id = enqueue(conn)
    outcome = fail(conn, worker, claim_one(conn, worker), error="hopeless", retry=False)

    assert (outcome.state, outcome.next_retry_at) == ("failed", None)
    seen = task(conn, task_id)
    assert (seen.state, seen.error, seen.completed_at is not None) == ("failed", "hopeless", True)


def test_a_long_error_keeps_its_beginning_and_its_end(conn, worker):
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), error="begin" + "ü" * 200_000 + "end")

    error = task(conn, task_id).error
    assert len(error.encode()) <= 65536
    assert error.startswith("begin")
    assert error.endswith("end")


def test_an_error_may_be_anything_or_nothing(conn, worker):
    for error in (None, "", "%s %I $$ '", "\x01\u2028😀"):
        task_id = enqueue(conn)
        fail(conn, worker, claim_one(conn, worker), error=error, retry=False)
        assert task(conn, task_id).error == error


def test_every_failed_attempt_is_kept(conn, worker):
    task_id = enqueue(conn)
    for n in range(3):
        fail(conn, worker, claim_one(conn, worker), error=f"boom {n}", cause="timeout")
        due(conn)
    complete(conn, worker, claim_one(conn, worker))

    assert run(conn, "select attempt, error, cause from tasklib.failures order by attempt") == [
        (n + 1, f"boom {n}", "timeout") for n in range(3)
    ]
    seen = task(conn, task_id)
    assert (seen.state, seen.attempt, seen.retry_count, seen.error) == ("completed", 4, 3, None)


def test_retry_makes_a_failed_task_pending_with_a_fresh_budget(conn, worker):
    task_id = enqueue(conn, max_retries=1)
    assert waits(conn, worker, task_id) == [5]
    assert call(conn, "retry", id=task_id) == "pending"

    seen = task(conn, task_id)
    assert (seen.state, seen.retry_count, seen.completed_at) == ("pending", 0, None)
    again = claim_one(conn, worker)
    assert (again.attempt, again.retry_count) == (3, 0)
    fail(conn, worker, again, error="once more")
    assert task(conn, task_id).next_retry_at is not None
    assert one(conn, "select count(*) from tasklib.failures") == 3
    assert waits_of(conn, task_id) == [5, 5]


def test_retry_of_a_cancelled_task(conn, worker):
    task_id = enqueue(conn)
    call(conn, "cancel", id=task_id)
    call(conn, "retry", id=task_id)

    assert claim_one(conn, worker).id == task_id
    assert task(conn, task_id).cancel_requested_at is None


def test_retry_lets_a_task_that_waits_for_its_retry_go_now(conn, worker):
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), retry_in="1 hour")
    assert call(conn, "retry", id=task_id) == "pending"

    again = claim_one(conn, worker)
    assert (again.attempt, again.retry_count) == (2, 1)


def test_retry_leaves_a_pending_task_alone(conn, worker):
    ready, later = enqueue(conn), enqueue(conn, delay="1 hour")

    assert [call(conn, "retry", id=i) for i in (ready, later)] == ["pending", "pending"]
    assert [h.id for h in claim(conn, worker, 5)] == [ready]


@pytest.mark.parametrize("ended", ["running", "completed"])
def test_retry_of_a_running_or_completed_task_is_refused(conn, worker, ended):
    task_id = enqueue(conn)
    held = claim_one(conn, worker)
    if ended == "completed":
        complete(conn, worker, held)

    with refused("TL008", ended):
        call(conn, "retry", id=task_id)


def test_a_retried_task_refuses_its_old_attempt(conn, worker):
    enqueue(conn)
    held = claim_one(conn, worker)
    fail(conn, worker, held, retry=False)
    call(conn, "retry", id=held.id)
    again = claim_one(conn, worker)

    assert finish(conn, worker, [held]) == ["stale"]
    with refused("TL004"):
        complete(conn, worker, held)
    complete(conn, worker, again)


def test_retry_while_a_tick_promotes_the_task(conn, make_conn, worker):
    ticking, retrying = make_conn(), make_conn()
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), retry_in="0")
    run(ticking, "begin")
    tick(ticking)
    with in_background(lambda: call(retrying, "retry", id=task_id)) as answer:
        blocked(conn, retrying)
        run(ticking, "commit")
        assert answer.result(10) == "pending"

    assert [h.id for h in claim(conn, worker, 5)] == [task_id]


def test_retry_of_a_task_that_is_just_purged(conn, make_conn):
    purging, retrying = make_conn(), make_conn()
    task_id = enqueue(conn)
    call(conn, "cancel", id=task_id)
    run(conn, "select pg_sleep(0.01)")
    run(purging, "begin")
    assert call(purging, "purge", older_than="0") == 1

    def late_retry():
        with refused("TL003"):
            call(retrying, "retry", id=task_id)

    with in_background(late_retry) as answer:
        blocked(conn, retrying)
        run(purging, "commit")
        answer.result(10)
