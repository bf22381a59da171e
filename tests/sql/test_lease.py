"""Only who holds the lease of an attempt can end it; everybody else is told why not."""

from __future__ import annotations

from uuid import uuid4

import pytest

from sql.support import (
    blocked,
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    fail,
    fingerprint,
    finish,
    in_background,
    one,
    refused,
    register,
    rows,
    run,
    state,
    states,
    task,
    tick_through,
    transaction,
)

ENDINGS = {
    "completed": {"state": "completed", "result": {"value": 1}},
    "failed": {"state": "failed", "error": "boom", "retry_in": 60},
    "failed for good": {"state": "failed", "error": "boom", "retry": False},
    "released": {"state": "released"},
    "snoozed": {"state": "snoozed", "seconds": 60},
    "cancelled": {"state": "cancelled", "error": "changed my mind"},
}
SHAPES = ["completed", "failed", "released", "snoozed", "cancelled"]


def end(conn, ending, worker, held):
    """Call the function of an ending, as SQL users do."""
    lease = {"id": held.id, "worker_id": worker, "attempt": held.attempt}
    match ending:
        case "completed":
            call(conn, "complete", **lease)
        case "failed":
            rows(conn, "fail", **lease, error="boom", retry_in="1 minute")
        case "snoozed":
            call(conn, "snooze", **lease, delay="1 minute")
        case _:
            rows(conn, "set_progress", **lease, fraction=0.5)


CALLS = ["completed", "failed", "snoozed", "progress"]


@pytest.fixture
def worker(conn):
    return register(conn, name="first")


@pytest.fixture
def held(conn, worker):
    enqueue(conn)
    return claim_one(conn, worker)


def test_the_holder_completes_with_a_result(conn, worker, held):
    complete(conn, worker, held, {"value": 42})

    done = task(conn, held.id)
    assert (done.state, done.result, done.attempt) == ("completed", {"value": 42}, 1)
    assert done.worker_id == worker
    assert done.created_at <= done.started_at <= done.completed_at


def test_a_failure_keeps_its_error_and_its_next_time(conn, worker, held):
    outcome = fail(conn, worker, held, error="boom", retry_in="1 minute")

    seen = task(conn, held.id)
    assert (outcome.state, seen.state, seen.error) == ("failed", "failed", "boom")
    assert outcome.next_retry_at == seen.next_retry_at
    assert run(conn, "select attempt, cause, error from tasklib.failures") == [(1, "error", "boom")]


def test_progress_is_shown_while_the_task_runs(conn, worker, held):
    lease = {"id": held.id, "worker_id": worker, "attempt": held.attempt}
    rows(conn, "set_progress", **lease, fraction=0.5, message="half")

    assert task(conn, held.id)[-2:] == (0.5, "half")


@pytest.mark.parametrize("ending", CALLS)
def test_another_worker_is_refused(conn, held, ending):
    other = register(conn)
    before = fingerprint(conn)

    with refused("TL004"):
        end(conn, ending, other, held)
    assert fingerprint(conn) == before


@pytest.mark.parametrize("ending", CALLS)
def test_an_attempt_that_was_taken_over_is_refused(conn, worker, held, ending):
    fail(conn, worker, held, retry_in="0 seconds")
    tick_through(conn, 1)
    again = claim_one(conn, worker)
    assert (again.id, again.attempt) == (held.id, 2)
    before = fingerprint(conn)

    # a failure that was stored is the one call that the old attempt may repeat
    with refused("TL005" if ending == "failed" else "TL004"):
        end(conn, ending, worker, held)
    assert fingerprint(conn) == before


@pytest.mark.parametrize("ending", CALLS)
def test_an_attempt_that_never_was_is_refused(conn, worker, held, ending):
    with refused("TL004"):
        end(conn, ending, worker, held._replace(attempt=7))


@pytest.mark.parametrize("ending", CALLS)
def test_a_purged_task_is_gone(conn, worker, held, ending):
    with refused("TL003"):
        end(conn, ending, worker, held._replace(id=uuid4()))


@pytest.mark.parametrize("ending", CALLS)
def test_a_worker_that_was_reaped_is_told_so(conn, worker, held, ending):
    tick_through(conn, 80)

    with refused("TL007"):
        end(conn, ending, worker, held)
    assert one(conn, "select cause from tasklib.failures") == "lost"


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_a_batch_of_a_worker_that_was_reaped_is_refused(conn, worker, held, ending):
    tick_through(conn, 80)

    with refused("TL007"):
        finish(conn, worker, [held], [ENDINGS[ending]])
    assert one(conn, "select cause from tasklib.failures") == "lost"


@pytest.mark.parametrize("ending", CALLS)
def test_a_cancelled_task_refuses_its_old_attempt(conn, worker, held, ending):
    finish(conn, worker, [held], [{"state": "cancelled"}])

    with refused("TL006"):
        end(conn, ending, worker, held)


@pytest.mark.parametrize("ending", ["completed", "failed", "snoozed"])
def test_a_repeated_call_is_told_that_it_was_stored(conn, worker, held, ending):
    end(conn, ending, worker, held)
    before = fingerprint(conn)

    with refused("TL005"):
        end(conn, ending, worker, held)
    assert fingerprint(conn) == before


def test_the_first_result_stays(conn, worker, held):
    complete(conn, worker, held, 1)

    with refused("TL005"):
        complete(conn, worker, held, 2)
    assert task(conn, held.id).result == 1


@pytest.mark.parametrize("missing", ["id", "worker_id", "attempt"])
@pytest.mark.parametrize("function", ["complete", "fail", "snooze", "set_progress"])
def test_a_lease_needs_all_its_parts(conn, worker, held, function, missing):
    lease = {"id": held.id, "worker_id": worker, "attempt": held.attempt, missing: None}
    more = {"snooze": {"delay": "1 second"}, "set_progress": {"fraction": 0.5}}.get(function, {})

    with refused("TL001"):
        rows(conn, function, **lease, **more)


def test_a_heartbeat_renews_the_lease(conn, worker, held):
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() + interval '1 second'")

    assert rows(conn, "heartbeat", worker_id=worker) == []
    left = one(conn, "select lease_until - clock_timestamp() from tasklib.worker")
    assert 59 < left.total_seconds() <= 60
    assert task(conn, held.id).locked_until is not None


def test_a_heartbeat_names_the_tasks_that_shall_stop(conn, worker, held):
    call(conn, "cancel", id=held.id)

    assert rows(conn, "heartbeat", worker_id=worker) == [(held.id,)]
    assert rows(conn, "cancel_requests", worker_id=worker) == [(held.id,)]
    assert rows(conn, "cancel_requests", worker_id=register(conn)) == []


@pytest.mark.parametrize("function", ["heartbeat", "claim", "idle", "deregister_worker"])
def test_an_unknown_worker_is_told_so(conn, function):
    for worker in (uuid4(), None):
        with refused("TL007"):
            rows(conn, function, worker_id=worker)


def test_an_expired_lease_counts_until_somebody_reaps_it(conn, worker, held):
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() - interval '1 hour'")

    rows(conn, "heartbeat", worker_id=worker)
    complete(conn, worker, held)
    assert state(conn, held.id) == "completed"


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_finish_answers_ok_and_then_already(conn, worker, held, ending):
    assert finish(conn, worker, [held], [ENDINGS[ending]]) == ["ok"]
    before = fingerprint(conn)

    expected = "cancelled" if ending == "cancelled" else "already"
    assert finish(conn, worker, [held], [ENDINGS[ending]]) in ([expected], ["already"])
    assert fingerprint(conn) == before


@pytest.mark.parametrize("cause", ["error", "timeout", "crashed", "lost"])
def test_finish_knows_a_repeated_failure_of_every_cause(conn, worker, held, cause):
    outcome = [{"state": "failed", "cause": cause}]

    assert finish(conn, worker, [held], outcome) == ["ok"]
    assert finish(conn, worker, [held], outcome) == ["already"]


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_finish_does_not_take_one_ending_for_another(conn, worker, held, first, second):
    finish(conn, worker, [held], [ENDINGS[first]])
    before = fingerprint(conn)

    status = finish(conn, worker, [held], [ENDINGS[second]])
    if first == "cancelled":
        assert status in (["cancelled"], ["already"])
    else:
        assert status == (["already"] if first == second else ["stale"])
    assert fingerprint(conn) == before


@pytest.mark.parametrize("ending", SHAPES)
def test_finish_answers_in_the_order_of_its_input(conn, worker, ending):
    enqueue_many(conn, *({"name": "t", "kwargs": {"n": n}} for n in range(4)))
    mine, done, other_task, cancelled = claim(conn, worker, 4)
    finish(conn, worker, [done])
    call(conn, "cancel", id=cancelled.id)
    finish(conn, worker, [cancelled], [{"state": "released"}])
    stale = other_task._replace(attempt=9)
    gone = mine._replace(id=uuid4())
    batch = [gone, cancelled, stale, mine, done]

    expected = ["gone", "cancelled", "stale", "ok", "already" if ending == "completed" else "stale"]
    if ending == "cancelled":
        expected[1] = "already"
    got = finish(conn, worker, batch, [ENDINGS[ending]] * 5)
    assert [got[0], *got[2:]] == [expected[0], *expected[2:]]
    assert got[1] in ("cancelled", "already")


def test_finish_of_another_workers_tasks_is_stale(conn, held):
    other = register(conn)
    before = fingerprint(conn)

    for ending in SHAPES:
        assert finish(conn, other, [held], [ENDINGS[ending]]) == ["stale"]
    assert fingerprint(conn) == before


@pytest.mark.parametrize("ending", ["completed", "failed", "failed for good"])
def test_what_another_worker_stored_is_not_ones_own(conn, worker, held, ending):
    other = register(conn)
    finish(conn, worker, [held], [ENDINGS[ending]])

    assert finish(conn, other, [held], [ENDINGS[ending]]) == ["stale"]


def test_an_earlier_attempt_of_the_same_worker_is_stale(conn, worker, held):
    finish(conn, worker, [held], [ENDINGS["released"]])
    assert finish(conn, worker, [claim_one(conn, worker)]) == ["ok"]

    assert finish(conn, worker, [held]) == ["stale"]


def test_a_failure_that_is_due_again_is_no_release(conn, worker, held):
    fail(conn, worker, held, retry_in="0 seconds")
    tick_through(conn, 1)
    assert one(conn, "select count(*) from tasklib.ready") == 1

    assert finish(conn, worker, [held], [ENDINGS["released"]]) == ["stale"]


def test_finish_takes_many_outcomes_at_once(conn, worker):
    enqueue_many(conn, *[{"name": "t"}] * 6)
    held = claim(conn, worker, 6)

    outcomes = [None, *list(ENDINGS.values())[1:]]
    assert finish(conn, worker, held, outcomes) == ["ok"] * 6
    assert states(conn, *(h.id for h in held)) == [
        "completed",
        "failed",
        "failed",
        "pending",
        "pending",
        "cancelled",
    ]


def test_finish_stores_a_json_null_as_it_is(conn, worker, held):
    finish(conn, worker, [held], [{"state": "completed", "result": None}])

    assert one(conn, "select result = 'null'::jsonb from tasklib.tasks")


def test_finish_of_nothing_answers_nothing(conn, worker):
    assert finish(conn, worker, []) == []
    assert rows(conn, "release", worker_id=worker, ids=[], attempts=[]) == []


def test_finish_refuses_a_task_named_twice(conn, worker, held):
    with refused("TL001", str(held.id)):
        finish(conn, worker, [held, held])
    assert state(conn, held.id) == "running"


def test_release_answers_as_finish_does(conn, worker, held):
    gone = uuid4()
    ids, attempts = [gone, held.id], [1, held.attempt]

    assert rows(conn, "release", worker_id=worker, ids=ids, attempts=attempts) == [
        ("gone",),
        ("ok",),
    ]


def test_numbers_that_no_interval_holds_are_clamped(conn, worker):
    enqueue_many(conn, *[{"name": "t", "max_retries": 9}] * 6)
    held = claim(conn, worker, 6)
    texts = (
        '[{"state": "failed", "retry_in": 1e400}, {"state": "failed", "retry_in": -1e400},'
        ' {"state": "failed", "retry_in": 1e-400}, {"state": "snoozed", "seconds": 1e400},'
        ' {"state": "snoozed", "seconds": -1}, {"state": "snoozed", "seconds": 1e-400}]'
    )

    statuses = rows(
        conn,
        "finish",
        worker_id=worker,
        ids=[h.id for h in held],
        attempts=[1] * 6,
        outcomes=texts,
    )
    assert statuses == [("ok",)] * 6


def test_two_batches_in_opposite_order_do_not_deadlock(conn, make_conn, worker):
    enqueue_many(conn, *[{"name": "t"}] * 3)
    first, middle, last = claim(conn, worker, 3)
    one_way, other_way = make_conn(), make_conn()

    with transaction(conn, commit=False):
        complete(conn, worker, middle)
        with (
            in_background(lambda: finish(one_way, worker, [first, middle, last])) as one_batch,
            in_background(lambda: finish(other_way, worker, [last, middle, first])) as other,
        ):
            blocked(conn, one_way)
            blocked(conn, other_way)
            run(conn, "rollback")
            assert sorted([one_batch.result(5), other.result(5)]) == [["already"] * 3, ["ok"] * 3]


def test_a_batch_of_failures_in_opposite_order_does_not_deadlock(conn, make_conn, worker):
    enqueue_many(conn, *[{"name": "t"}] * 3)
    first, middle, last = claim(conn, worker, 3)
    sessions = make_conn(), make_conn()
    batches = [first, middle, last], [last, middle, first]
    outcomes = [ENDINGS["failed"]] * 3

    run(conn, "begin")
    complete(conn, worker, middle)
    with (
        in_background(lambda: finish(sessions[0], worker, batches[0], outcomes)) as one_batch,
        in_background(lambda: finish(sessions[1], worker, batches[1], outcomes)) as other,
    ):
        blocked(conn, sessions[0])
        blocked(conn, sessions[1])
        run(conn, "rollback")
        assert sorted([one_batch.result(5), other.result(5)]) == [["already"] * 3, ["ok"] * 3]


def test_deregistering_during_a_finish_does_not_deadlock(conn, make_conn, worker):
    # three ids whose order is not the one in which they were claimed
    low, middle, high = (enqueue(conn, priority=p) for p in (1, 2, 3))
    held = {h.id: h for h in claim(conn, worker, 3)}
    finishing, leaving = make_conn(), make_conn()

    run(conn, "begin")
    complete(conn, worker, held[middle])
    with in_background(lambda: finish(finishing, worker, list(held.values()))) as finished:
        blocked(conn, finishing)
        with in_background(lambda: call(leaving, "deregister_worker", worker_id=worker)) as left:
            blocked(conn, leaving)
            run(conn, "rollback")
            assert finished.result(5) == ["ok"] * 3
            assert left.result(5) == 0
    assert states(conn, low, middle, high) == ["completed"] * 3


def made_by(conn, worker, server, version):
    """Turn a registration into one that another server, or another release, has made."""
    text = f"{str(worker)[:14]}{version}{str(worker)[15:28]}{server}"
    run(conn, "update tasklib.running set worker_id = %s where worker_id = %s", text, worker)
    return one(conn, "update tasklib.worker set id = %s where id = %s returning id", text, worker)


def test_a_registration_claims_on_the_server_that_made_it(conn, worker):
    first, second = enqueue(conn), enqueue(conn)
    held = claim_one(conn, worker)
    old = made_by(conn, worker, "00000000", 8)

    before = fingerprint(conn)
    with refused("TL007", "not since this server was started"):
        claim(conn, old)
    assert fingerprint(conn) == before
    # What was handed out to it is its own as before.
    rows(conn, "heartbeat", worker_id=old)
    complete(conn, old, held)
    assert states(conn, first, second) == ["completed", "pending"]
    assert claim_one(conn, register(conn)).id == second


def test_registrations_of_older_releases_do_not_say_which_server_made_them(conn, worker):
    enqueue(conn)
    assert claim(conn, made_by(conn, worker, "00000000", 4))
