"""History is kept for ever, unless somebody asks for less."""

from __future__ import annotations

import pytest

from sql.support import (
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    fail,
    finish,
    in_background,
    one,
    register,
    rows,
    run,
    sweep,
    tick,
)

TABLES = ("task", "done", "failure", "allowance", "progress", "tag")


@pytest.fixture
def worker(conn):
    return register(conn, lease="24 hours")


def age(conn, interval):
    """Make every finished task older, by its times and by the time in its id."""
    run(
        conn,
        f"create temp table aged as select task_id as old, {OLDER} as older from tasklib.done",
        by=interval,
    )
    for table in TABLES:
        column = "id" if table == "task" else "task_id"
        run(conn, f"update tasklib.{table} set {column} = older from aged where {column} = old")
    run(conn, "update tasklib.done set finished_at = finished_at - %s::interval", interval)
    run(conn, "update tasklib.task set created_at = created_at - %s::interval", interval)
    run(conn, "drop table aged")


OLDER = (
    "(lpad(to_hex(('x' || left(replace(task_id::text, '-', ''), 12))::bit(48)::bigint"
    " - (extract(epoch from %(by)s::interval) * 1000)::bigint), 12, '0')"
    " || right(replace(task_id::text, '-', ''), 20))::uuid"
)


def finished(conn, worker, count=1, queue="default", **options):
    enqueue_many(conn, *[{"name": "t", "queue": queue, **options}] * count)
    finish(conn, worker, claim(conn, worker, count, [queue]))


def counts(conn, *tables):
    return [one(conn, f"select count(*) from tasklib.{table}") for table in tables]


def test_history_is_kept_for_ever(conn, worker):
    finished(conn, worker)
    age(conn, "10 years")
    assert tick(conn).purged == 0

    assert counts(conn, "tasks") == [1]


def test_a_queue_with_a_retention_loses_what_is_older(conn, worker):
    run(conn, "select tasklib.set_queue('mail', retention => '30 days')")
    finished(conn, worker, 5, queue="mail")
    finished(conn, worker, 5)
    age(conn, "31 days")
    finished(conn, worker, 2, queue="mail")
    purged = [tick(conn).purged for _ in range(3)]

    assert sum(purged) == 5
    assert run(conn, "select queue, count(*) from tasklib.tasks group by 1 order by 1") == [
        ("default", 5),
        ("mail", 2),
    ]


def test_everything_that_belongs_to_a_task_goes_with_it(conn, worker):
    run(conn, "select tasklib.set_queue('default', retention => '1 day')")
    enqueue(conn, tags={"a": 1, "b": [2]}, max_retries=0)
    held = claim_one(conn, worker)
    lease = {"id": held.id, "worker_id": worker, "attempt": 1}
    rows(conn, "set_progress", **lease, fraction=0.5)
    fail(conn, worker, held, error="boom", cause="crashed")
    assert counts(conn, *TABLES) == [1, 1, 1, 1, 1, 2]
    age(conn, "2 days")
    tick(conn)

    assert counts(conn, *TABLES) == [0] * 6


def test_retention_is_bounded_per_tick_and_gets_everything(conn, worker):
    run(conn, "select tasklib.set_queue('default', retention => '1 day')")
    finished(conn, worker, 250)
    age(conn, "2 days")

    did = [tick(conn, 100) for _ in range(5)]
    assert sum(d.purged for d in did) == 250
    assert all(d.purged <= 100 for d in did)
    assert did[0].more


def test_old_tasks_that_are_not_finished_stay(conn, worker):
    run(conn, "select tasklib.set_queue('default', retention => '0')")
    enqueue(conn)
    claim_one(conn, worker)
    enqueue(conn, delay="1 hour")
    enqueue(conn)
    run(conn, "select pg_sleep(0.02)")
    for _ in range(3):
        assert tick(conn).purged == 0
    assert call(conn, "purge", older_than="0") == 0

    assert counts(conn, "tasks") == [3]


def test_what_finished_late_is_found_on_a_later_round(conn, worker):
    run(conn, "select tasklib.set_queue('default', retention => '1 day')")
    first = enqueue(conn)
    held = claim_one(conn, worker)
    finished(conn, worker, 3)
    age(conn, "2 days")
    tick(conn)
    complete(conn, worker, held)
    assert held.id == first
    age(conn, "2 days")
    for _ in range(3):
        tick(conn)

    assert counts(conn, "task") == [0]


def test_what_finished_late_is_kept_as_long_as_the_rest(conn, worker):
    run(conn, "select tasklib.set_queue('default', retention => '1 day')")
    finished(conn, worker)
    age(conn, "2 days")
    run(conn, "update tasklib.done set finished_at = clock_timestamp()")

    assert [tick(conn).purged for _ in range(3)] == [0, 0, 0]
    assert call(conn, "purge", older_than="1 day") == 0


def test_a_retention_can_be_taken_back(conn, worker):
    run(conn, "select tasklib.set_queue('default', retention => '1 day')")
    run(conn, "select tasklib.set_queue('default')")
    finished(conn, worker)
    age(conn, "2 days")
    tick(conn)

    assert counts(conn, "task") == [1]


def test_retention_does_not_take_a_task_that_is_being_retried(conn, make_conn, worker):
    retrying, ticking = make_conn(), make_conn()
    run(conn, "select tasklib.set_queue('default', retention => '1 day')")
    enqueue(conn, tags={"a": 1})
    finish(conn, worker, [claim_one(conn, worker)], [{"state": "failed", "retry": False}])
    age(conn, "2 days")
    task_id = one(conn, "select id from tasklib.tasks")
    run(retrying, "begin")
    call(retrying, "retry", id=task_id)
    with in_background(lambda: tick(ticking)) as ticked:
        ticked.result(5)
        run(retrying, "commit")

    assert ticked.result().purged == 0
    assert claim_one(conn, worker).id == task_id
    assert counts(conn, "tag", "failure") == [1, 1]
    assert sweep(conn) == 0


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", None])
def test_purge_by_state(conn, worker, state):
    for outcome in (None, {"state": "failed", "retry": False}, {"state": "cancelled"}):
        enqueue(conn)
        finish(conn, worker, [claim_one(conn, worker)], [outcome])
    age(conn, "1 hour")

    assert call(conn, "purge", older_than="30 minutes", state=state) == (1 if state else 3)
    left = {row.state for row in run(conn, "select state from tasklib.tasks")}
    assert left == ({"completed", "failed", "cancelled"} - {state} if state else set())


def test_purge_takes_the_oldest_first_and_no_more_than_it_may(conn, worker):
    finished(conn, worker, 10)
    age(conn, "1 hour")
    ids = [row.id for row in run(conn, "select id from tasklib.task order by id")]

    assert call(conn, "purge", older_than="1 minute", max_rows=4) == 4
    assert [row.id for row in run(conn, "select id from tasklib.task order by id")] == ids[4:]


def test_purge_leaves_what_is_younger(conn, worker):
    finished(conn, worker)

    assert call(conn, "purge", older_than="1 minute") == 0


def test_two_purges_at_once_do_not_wait_for_each_other(conn, make_conn, worker):
    other = make_conn()
    finished(conn, worker, 5)
    age(conn, "1 hour")
    run(other, "begin")
    assert call(other, "purge", older_than="0", max_rows=3) == 3
    assert call(conn, "purge", older_than="0") == 2
    run(other, "commit")
    assert counts(conn, "task", "done") == [0, 0]
