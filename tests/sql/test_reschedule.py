"""reschedule changes when, how urgent and where, while a task waits."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sql.support import (
    call,
    claim,
    claim_one,
    complete,
    due,
    enqueue,
    fail,
    one,
    refused,
    register,
    run,
    task,
)


@pytest.fixture
def worker(conn):
    return register(conn, lease="24 hours")


def reschedule(conn, task_id, **options):
    return call(conn, "reschedule", id=task_id, **options)


def test_later(conn, worker):
    task_id = enqueue(conn)
    assert reschedule(conn, task_id, delay="1 hour") == "pending"

    assert claim(conn, worker) == []
    left = one(conn, "select scheduled_at - clock_timestamp() from tasklib.tasks")
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


def test_now(conn, worker):
    task_id = enqueue(conn, delay="1 hour")
    reschedule(conn, task_id, delay="0")

    assert claim_one(conn, worker).id == task_id


def test_a_time_in_the_past_means_now(conn, worker):
    task_id = enqueue(conn, delay="1 hour")
    reschedule(conn, task_id, scheduled_at="2001-01-01")

    assert claim_one(conn, worker).id == task_id


def test_more_urgent(conn, worker):
    first, second = enqueue(conn), enqueue(conn)
    reschedule(conn, second, priority=1)

    assert [h.id for h in claim(conn, worker, 2)] == [second, first]
    assert task(conn, second).priority == 1


def test_into_another_queue(conn, worker):
    task_id = enqueue(conn)
    reschedule(conn, task_id, queue="mail")

    assert claim(conn, worker) == []
    (held,) = claim(conn, worker, 5, ["mail"])
    assert (held.id, held.queue) == (task_id, "mail")


def test_what_is_left_out_stays(conn, worker):
    task_id = enqueue(conn, queue="mail", priority=5, delay="1 hour")
    before = task(conn, task_id)
    reschedule(conn, task_id, priority=6)

    after = task(conn, task_id)
    assert (after.queue, after.priority) == ("mail", 6)
    assert after.scheduled_at == before.scheduled_at
    due(conn)
    assert claim_one(conn, worker, ["mail"]).priority == 6


def test_a_task_that_waits_for_its_retry_keeps_its_budget(conn, worker):
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), error="boom")
    reschedule(conn, task_id, priority=3)
    assert (task(conn, task_id).state, task(conn, task_id).retry_count) == ("failed", 0)
    reschedule(conn, task_id, delay="0")

    held = claim_one(conn, worker)
    assert (held.attempt, held.retry_count) == (2, 1)


def test_a_task_behind_its_key_moves_on_with_its_queue(conn, worker):
    enqueue(conn, concurrency_key="k")
    second = enqueue(conn, concurrency_key="k")
    claim(conn, worker, 2)
    reschedule(conn, second, queue="mail")

    assert claim_one(conn, worker, ["mail"]).id == second


def test_a_parked_task_stays_parked(conn):
    task_id = enqueue(conn, "unknown")
    reschedule(conn, task_id, priority=9)
    assert claim(conn, register(conn, "t")) == []
    worker = register(conn, "unknown")

    assert claim_one(conn, worker).priority == 9


def test_what_was_rescheduled_is_not_moved_by_defaults_that_come_later(conn):
    task_id = enqueue(conn, "unknown")
    reschedule(conn, task_id, priority=1, queue="mine")
    register(conn, {"name": "unknown", "queue": "theirs", "priority": 9})

    assert (task(conn, task_id).queue, task(conn, task_id).priority) == ("mine", 1)


@pytest.mark.parametrize("ended", [False, True])
def test_a_running_or_finished_task_is_refused(conn, worker, ended):
    task_id = enqueue(conn)
    held = claim_one(conn, worker)
    if ended:
        complete(conn, worker, held)

    with refused("TL008"):
        reschedule(conn, task_id, delay="1 hour")
    assert run(conn, "select count(*) from tasklib.delayed") == [(0,)]


def test_nothing_given_changes_nothing_but_the_place_in_line(conn, worker):
    task_id = enqueue(conn, delay="1 hour")
    before = task(conn, task_id)
    assert reschedule(conn, task_id) == "pending"

    assert task(conn, task_id) == before
