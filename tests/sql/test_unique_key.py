"""Among the unfinished tasks of a queue a unique key exists once."""

from __future__ import annotations

import pytest

from sql.support import (
    blocked,
    call,
    claim_one,
    complete,
    due,
    enqueue,
    enqueue_many,
    fail,
    finish,
    in_background,
    one,
    refused,
    register,
    rows,
    run,
    state,
    task,
    transaction,
)


def keyed(*keys):
    return [{"name": "t", "unique_key": key} for key in keys]


def count(conn):
    return one(conn, "select count(*) from tasklib.tasks")


def test_a_second_enqueue_returns_the_first_ones_id_with_a_notice(conn):
    notices = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    first = enqueue(conn, unique_key="k")

    assert enqueue(conn, unique_key="k") == first
    assert count(conn) == 1
    assert str(first) in notices[0]
    assert "k" in notices[0]


def test_enqueue_many_says_what_it_made(conn):
    first = enqueue(conn, unique_key="b")
    made = enqueue_many(conn, *keyed("a", "b", "c"))

    assert [row.created for row in made] == [True, False, True]
    assert made[1].id == first


def test_a_key_twice_in_one_batch_is_one_task(conn):
    made = enqueue_many(conn, *keyed("a", "b", "a", "a"))

    assert [row.created for row in made] == [True, True, False, False]
    assert made[0].id == made[2].id == made[3].id
    assert count(conn) == 2


def test_queues_do_not_share_keys(conn):
    assert enqueue(conn, unique_key="k") != enqueue(conn, unique_key="k", queue="mail")


def test_a_duplicate_leaves_no_trace(conn):
    enqueue(conn, unique_key="k", delay="1 hour")
    enqueue(conn, unique_key="k", tags={"a": 1}, kwargs={"b": 2})

    assert run(conn, "select kwargs, tags from tasklib.tasks") == [({}, None)]
    assert one(conn, "select count(*) from tasklib.tag") == 0


@pytest.mark.parametrize("place", ["ready", "delayed", "parked", "running", "retrying", "waiting"])
def test_the_key_is_held_wherever_the_task_is(conn, place):
    worker = None if place == "parked" else register(conn)
    if place == "waiting":
        enqueue(conn, concurrency_key="c")
    options = {"delayed": {"delay": "1 hour"}, "waiting": {"concurrency_key": "c"}}.get(place, {})
    first = enqueue(conn, unique_key="k", **options)
    if place in ("running", "retrying"):
        held = claim_one(conn, worker)
        if place == "retrying":
            fail(conn, worker, held)
    elif place == "waiting":
        assert len(rows(conn, "claim", worker_id=worker, max_tasks=2)) == 1

    table = {"retrying": "delayed"}.get(place, place)
    assert one(conn, f"select count(*) from tasklib.{table} where task_id = %s", first) == 1
    assert enqueue(conn, unique_key="k") == first


@pytest.mark.parametrize(
    ("ending", "more"), [("completed", {}), ("failed", {"retry": False}), ("cancelled", {})]
)
def test_the_key_is_free_when_its_task_is_finished(conn, ending, more):
    worker = register(conn)
    first = enqueue(conn, unique_key="k")
    held = claim_one(conn, worker)
    finish(
        conn, worker, [held], [{"state": ending} | ({"retry": False} if ending == "failed" else {})]
    )

    assert state(conn, first) == ending
    assert enqueue(conn, unique_key="k") != first


def test_complete_and_cancel_free_the_key(conn):
    worker = register(conn)
    enqueue(conn, unique_key="a")
    second = enqueue(conn, unique_key="b")
    held = claim_one(conn, worker)
    complete(conn, worker, held)
    call(conn, "cancel", id=second)

    assert one(conn, "select count(*) from tasklib.unique_key") == 0


def test_until_started_frees_the_key_at_the_claim(conn):
    worker = register(conn)
    first = enqueue(conn, unique_key="k", unique_until="started")
    assert enqueue(conn, unique_key="k", unique_until="started") == first
    claim_one(conn, worker)

    assert enqueue(conn, unique_key="k", unique_until="started") != first


def test_a_key_until_finished_is_kept_by_a_claim_that_frees_others(conn):
    worker = register(conn)
    first = enqueue(conn, unique_key="a")
    enqueue(conn, unique_key="b", unique_until="started")
    assert len(rows(conn, "claim", worker_id=worker, max_tasks=2)) == 2

    assert enqueue(conn, unique_key="a") == first


def test_a_key_until_started_is_free_when_its_task_never_starts(conn):
    first = enqueue(conn, unique_key="k", unique_until="started")
    call(conn, "cancel", id=first)

    assert enqueue(conn, unique_key="k", unique_until="started") != first


def test_a_retry_does_not_take_the_key_of_the_next_one(conn):
    worker = register(conn)
    first = enqueue(conn, unique_key="k", unique_until="started")
    held = claim_one(conn, worker)
    second = enqueue(conn, unique_key="k", unique_until="started")
    fail(conn, worker, held, retry_in="0 seconds")
    due(conn)
    again = [claim_one(conn, worker).id for _ in range(2)]

    assert sorted(again) == sorted([first, second])
    assert one(conn, "select count(*) from tasklib.unique_key") == 0


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
def test_an_ending_does_not_free_a_key_that_somebody_else_holds_now(conn, ending):
    worker = register(conn)
    enqueue(conn, unique_key="k", unique_until="started")
    held = claim_one(conn, worker)
    second = enqueue(conn, unique_key="k", unique_until="started")
    outcome = {"state": ending} | ({"retry": False} if ending == "failed" else {})
    assert finish(conn, worker, [held], [outcome]) == ["ok"]

    assert enqueue(conn, unique_key="k") == second


def test_two_sessions_that_race_make_one_task(conn, make_conn):
    sessions = [make_conn() for _ in range(4)]
    with transaction(conn):
        first = enqueue(conn, unique_key="k")
        with (
            in_background(lambda: enqueue(sessions[0], unique_key="k")) as a,
            in_background(lambda: enqueue(sessions[1], unique_key="k")) as b,
        ):
            blocked(sessions[2], sessions[0])
            blocked(sessions[2], sessions[1])
            run(conn, "commit")
            assert a.result(5) == b.result(5) == first
    assert count(conn) == 1


def test_a_twin_whose_transaction_rolls_back_makes_way(conn, make_conn):
    other = make_conn()
    run(conn, "begin")
    first = enqueue(conn, unique_key="k")
    with in_background(lambda: enqueue(other, unique_key="k")) as second:
        blocked(conn, other)
        run(conn, "rollback")
        assert second.result(5) != first
    assert [row.id for row in run(conn, "select id from tasklib.tasks")] == [second.result()]


def test_a_holder_that_is_just_finishing_is_waited_for(conn, make_conn):
    other, worker = make_conn(), register(conn)
    first = enqueue(conn, unique_key="k")
    held = claim_one(conn, worker)
    run(conn, "begin")
    complete(conn, worker, held)
    with in_background(lambda: enqueue(other, unique_key="k")) as second:
        blocked(conn, other)
        run(conn, "commit")
        assert second.result(5) != first


def test_two_batches_with_the_same_keys_in_opposite_order_do_not_deadlock(conn, make_conn):
    one_way, other_way, keys = make_conn(), make_conn(), list("abcdef")
    run(conn, "begin")
    enqueue(conn, unique_key="c")
    with (
        in_background(lambda: enqueue_many(one_way, *keyed(*keys))) as a,
        in_background(lambda: enqueue_many(other_way, *keyed(*reversed(keys)))) as b,
    ):
        blocked(conn, one_way)
        blocked(conn, other_way)
        run(conn, "rollback")
        assert {row.id for row in a.result(5)} == {row.id for row in b.result(5)}
    assert count(conn) == 6


def test_a_batch_that_fails_lets_its_keys_go(conn):
    with refused("TL001"):
        enqueue_many(conn, *keyed("a"), {"name": ""})

    assert one(conn, "select count(*) from tasklib.unique_key") == 0


def test_retry_takes_the_key_again(conn):
    first = enqueue(conn, unique_key="k")
    call(conn, "cancel", id=first)
    call(conn, "retry", id=first)

    assert enqueue(conn, unique_key="k") == first


def test_retry_is_refused_while_another_task_holds_the_key(conn):
    first = enqueue(conn, unique_key="k")
    call(conn, "cancel", id=first)
    second = enqueue(conn, unique_key="k")

    with refused("TL009", str(second)):
        call(conn, "retry", id=first)
    assert state(conn, first) == "cancelled"


def test_the_key_moves_with_its_task_to_another_queue(conn):
    first = enqueue(conn, unique_key="k")
    call(conn, "reschedule", id=first, queue="mail")

    assert enqueue(conn, unique_key="k", queue="mail") == first
    assert enqueue(conn, unique_key="k") != first


def test_reschedule_is_refused_where_the_key_is_taken(conn):
    first = enqueue(conn, unique_key="k")
    second = enqueue(conn, unique_key="k", queue="mail")

    with refused("TL009", str(second)):
        call(conn, "reschedule", id=first, queue="mail")
    assert task(conn, first).queue == "default"
