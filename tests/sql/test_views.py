"""The views say who holds what since when, how deep the queues are, and why something waits."""

from __future__ import annotations

from sql.support import (
    advance,
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    fail,
    finish,
    one,
    register,
    rows,
    run,
    task,
    tick_through,
)


def stats(conn, queue="default"):
    (row,) = run(conn, "select * from tasklib.queue_stats where queue = %s", queue)
    return row


def test_depth_of_a_queue_by_state(conn):
    worker = register(conn, "t", lease="24 hours")
    enqueue_many(conn, *[{"name": "t"}] * 3)
    a, b, _c = claim(conn, worker, 3)
    fail(conn, worker, a)
    fail(conn, worker, b, retry=False)
    enqueue(conn, concurrency_key="k")
    enqueue(conn, concurrency_key="k")
    claim(conn, worker, 2)
    enqueue_many(conn, *[{"name": "t"}] * 4, *[{"name": "t", "delay": 60}] * 2)
    enqueue_many(conn, *[{"name": "unknown"}] * 5)

    row = stats(conn)
    assert (row.ready, row.waiting, row.scheduled, row.parked) == (4, 1, 2, 5)
    assert (row.running, row.retrying, row.failed, row.paused) == (2, 1, 1, False)


def test_every_queue_has_its_row(conn):
    register(conn)
    enqueue(conn, queue="a")
    enqueue(conn, queue="b", priority=9)
    enqueue(conn, queue="b", priority=-9)
    rows(conn, "pause", queue="empty")

    found = run(conn, "select queue, ready, paused from tasklib.queue_stats order by queue")
    assert found == [("a", 1, False), ("b", 2, False), ("empty", 0, True)]


def test_the_age_of_the_oldest_ready_task(conn):
    worker = register(conn)
    enqueue(conn)
    advance(conn, "100 seconds")
    enqueue(conn)
    assert 100 <= stats(conn).oldest_ready_seconds < 110
    claim(conn, worker, 2)
    assert stats(conn).oldest_ready_seconds is None


def test_a_delayed_task_is_as_old_as_its_time(conn):
    register(conn)
    enqueue(conn, delay="50 seconds")
    tick_through(conn, 80)

    assert 30 <= stats(conn).oldest_ready_seconds < 35


def test_durations_and_outcomes_by_name(conn):
    worker = register(conn)
    for seconds in (1, 2, 3):
        enqueue(conn)
        held = claim_one(conn, worker)
        run(conn, f"update tasklib.running set started_at = started_at - interval '{seconds} s'")
        complete(conn, worker, held)
    enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), retry=False)
    call(conn, "cancel", id=enqueue(conn))

    (row,) = run(conn, "select * from tasklib.task_stats")
    assert (row.name, row.completed, row.failed, row.cancelled, row.retried) == ("t", 3, 1, 1, 0)
    assert 2.9 < row.max_seconds < 3.5
    assert 1.4 < row.p50_seconds < 1.7
    assert row.last_finished_at is not None


def test_workers_alive_silent_crashed_and_ended(conn):
    worker = register(conn, "t", "u", name="mailer", info={"host": "h1"}, lease="24 hours")
    silent, crashed, ended = register(conn), register(conn), register(conn)
    enqueue(conn)
    claim_one(conn, worker)
    call(conn, "deregister_worker", worker_id=ended)
    call(conn, "deregister_worker", worker_id=crashed, crashed=True)
    run(
        conn,
        "update tasklib.worker set lease_until = clock_timestamp() - interval '1 s' where id = %s",
        silent,
    )

    found = {row.worker_id: row for row in run(conn, "select * from tasklib.worker_health")}
    assert {w: (found[w].status, found[w].alive) for w in found} == {
        worker: ("alive", True),
        silent: ("silent", False),
        crashed: ("crashed", False),
        ended: ("ended", False),
    }
    seen = found[worker]
    assert (seen.name, seen.running, seen.task_types, seen.info) == ("mailer", 1, 2, {"host": "h1"})
    assert seen.oldest_started_at is not None
    assert found[silent].task_types is None


def test_who_holds_a_task_and_until_when(conn):
    worker = register(conn)
    task_id = enqueue(conn)
    claim_one(conn, worker)

    seen = task(conn, task_id)
    assert seen.worker_id == worker
    assert seen.locked_until == one(conn, "select lease_until from tasklib.worker")


def test_every_reason_to_be_stuck_is_named(conn):
    worker = register(conn, "t")
    enqueue(conn, "unknown")
    run(conn, "select tasklib.pause('paused')")
    enqueue(conn, queue="paused")
    enqueue(conn, delay="1 second")
    enqueue(conn, timeout_seconds=1, concurrency_key="k")
    enqueue(conn, concurrency_key="k")
    claim(conn, worker, 3)
    advance(conn, "70 seconds")

    found = run(conn, "select reason, hint, since from tasklib.stuck_tasks")
    reasons = " | ".join(sorted(row.reason for row in found))
    for part in (
        "no live worker knows the name",
        "its queue is paused",
        "it is due, and nobody ticks",
        "it is past its timeout",
        "its worker is silent",
        "it waits for its concurrency key, held by task",
    ):
        assert part in reasons
    assert all(row.hint and row.since for row in found)


def test_nothing_is_stuck_where_all_is_well(conn):
    worker = register(conn)
    enqueue_many(conn, *[{"name": "t"}] * 5)
    finish(conn, worker, claim(conn, worker, 2))
    enqueue(conn, delay="1 hour")

    assert run(conn, "select * from tasklib.stuck_tasks") == []


def test_failures_of_a_task_with_their_tracebacks(conn):
    worker = register(conn)
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), error="Traceback: 1", cause="timeout")

    (row,) = run(conn, "select * from tasklib.failures")
    assert (row.task_id, row.attempt, row.worker_id) == (task_id, 1, worker)
    assert (row.cause, row.error) == ("timeout", "Traceback: 1")
    assert row.next_retry_at > row.failed_at


def test_a_new_installation_has_empty_views(conn):
    for view in ("tasks", "failures", "queue_stats", "task_stats", "worker_health", "stuck_tasks"):
        assert run(conn, f"select * from tasklib.{view}") == []
    assert one(conn, "select tasklib.version()") >= "0001"
