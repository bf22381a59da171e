"""A low-water mark never hides a task: whatever is open, whatever is rolled back or restored."""

from __future__ import annotations

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
    fail,
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
    tick,
    tick_through,
    transaction,
)


@pytest.fixture
def worker(conn):
    return register(conn, lease="24 hours")


def pass_through(conn, worker, count):
    """Let tasks become ready, run and end."""
    enqueue_many(conn, *[{"name": "t"}] * count)
    finish(conn, worker, claim(conn, worker, count))


def turn_over(conn, worker):
    """Let many tasks pass through, so that tick has a reason to move the mark of their lane."""
    for _ in range(2):
        pass_through(conn, worker, 1000)
    for _ in range(3):
        tick(conn)


def low(conn):
    return one(conn, "select coalesce(max(low_pos), 0) from tasklib.mark")


def time_marks(conn):
    return dict(run(conn, "select kind, low from tasklib.time_mark"))


def test_the_mark_of_a_busy_lane_moves(conn, worker):
    turn_over(conn, worker)

    assert low(conn) > 1000
    assert one(conn, "select count(*) from tasklib.mark") == 1
    enqueue(conn)
    assert len(claim(conn, worker)) == 1
    assert sweep(conn) == 0


def test_the_mark_moves_while_another_transaction_reads(conn, make_conn, worker):
    reader = make_conn()
    run(reader, "begin isolation level repeatable read")
    run(reader, "select from tasklib.tasks")
    turn_over(conn, worker)

    assert low(conn) > 1000
    assert sweep(conn) == 0


def test_the_mark_moves_while_another_transaction_writes_elsewhere(conn, make_conn, worker):
    writer = make_conn()
    run(writer, "begin")
    run(writer, "create temp table elsewhere (n int)")
    turn_over(conn, worker)

    assert low(conn) > 1000
    assert sweep(conn) == 0


def drain_without_ticks(conn, worker, count):
    """Let tasks pass while somebody else keeps house, and is not at it."""
    while count:
        finish(conn, worker, claim(conn, worker, min(500, count)))
        count -= min(500, count)


def test_the_mark_of_a_fast_queue_moves_between_ticks(conn, make_conn, worker):
    reader = make_conn()
    run(reader, "begin isolation level repeatable read")
    run(reader, "select from tasklib.tasks")
    enqueue_many(conn, *[{"name": "t"}] * 10000)
    enqueue_many(conn, *[{"name": "t"}] * 6000)
    first = one(conn, "select min(pos) from tasklib.ready")
    tick(conn)
    drain_without_ticks(conn, worker, 15000)

    assert low(conn) - first > 8000
    assert sweep(conn) == 0
    assert len(claim(conn, worker, 10000)) == 1000


def test_the_mark_that_follows_a_claim_does_not_pass_an_open_transaction(conn, make_conn, worker):
    enqueue_many(conn, *[{"name": "t"}] * 100)
    producer = make_conn()
    run(producer, "begin")
    late = enqueue(producer)
    enqueue_many(conn, *[{"name": "t"}] * 10000)
    enqueue_many(conn, *[{"name": "t"}] * 3000)
    tick(conn)
    drain_without_ticks(conn, worker, 13100)
    run(producer, "commit")

    assert claim_one(conn, worker).id == late
    assert sweep(conn) == 0


def test_a_claim_that_is_rolled_back_takes_its_mark_along(conn, worker):
    enqueue_many(conn, *[{"name": "t"}] * 10000)
    tick(conn)
    drain_without_ticks(conn, worker, 3500)
    with transaction(conn, commit=False):
        assert len(claim(conn, worker, 6000)) == 6000

    assert len(claim(conn, worker, 10000)) == 6500
    assert sweep(conn) == 0


@pytest.mark.parametrize("is_first", [True, False])
def test_the_mark_does_not_pass_a_transaction_that_enqueues(conn, make_conn, worker, is_first):
    producer = make_conn()
    if not is_first:
        turn_over(conn, worker)
    with transaction(producer):
        kept = enqueue(producer)
        before = one(conn, "select last_value from tasklib.position")
        turn_over(conn, worker)
        assert low(conn) <= before

    assert claim_one(conn, worker).id == kept
    assert sweep(conn) == 0


def test_the_mark_does_not_pass_a_subtransaction_that_enqueues(conn, make_conn, worker):
    producer = make_conn()
    with transaction(producer):
        run(producer, "savepoint s")
        kept = enqueue(producer)
        turn_over(conn, worker)
        run(producer, "release savepoint s")
        turn_over(conn, worker)

    assert claim_one(conn, worker).id == kept
    assert sweep(conn) == 0


def test_the_mark_does_not_pass_a_prepared_transaction(conn, make_conn, worker):
    producer = make_conn()
    run(producer, "begin")
    kept = enqueue(producer)
    run(producer, "prepare transaction 'held'")
    try:
        turn_over(conn, worker)
    finally:
        run(producer, "commit prepared 'held'")

    assert claim_one(conn, worker).id == kept
    assert sweep(conn) == 0


def test_the_mark_does_not_pass_a_claim_that_is_rolled_back(conn, make_conn, worker):
    slow = make_conn()
    first = enqueue(conn)
    with transaction(slow, commit=False):
        assert claim_one(slow, worker).id == first
        turn_over(conn, worker)

    assert claim_one(conn, worker).id == first
    assert sweep(conn) == 0


@pytest.mark.parametrize("ending", ["release", "retry", "waiting", "reschedule", "unpark"])
def test_a_task_that_comes_back_is_never_below_the_mark(conn, make_conn, worker, ending):
    slow = make_conn()
    first = enqueue(conn, concurrency_key="k")
    held = claim_one(conn, worker)
    second = enqueue(conn, concurrency_key="k")
    claim(conn, worker)
    with transaction(slow):
        match ending:
            case "release":
                rows(slow, "release", worker_id=worker, ids=[held.id], attempts=[1])
            case "retry":
                finish(slow, worker, [held], [{"state": "failed", "retry": False}])
                call(slow, "retry", id=first)
            case "waiting":
                complete(slow, worker, held)
            case "reschedule":
                call(slow, "reschedule", id=second, priority=0)
            case _:
                enqueue(slow, "later")
        turn_over(conn, worker)

    finish(conn, worker, [held])
    while got := (tick(conn), claim(conn, worker, 5))[1]:
        finish(conn, worker, got)
    assert run(conn, "select name from tasklib.tasks where state <> 'completed'") == []
    assert sweep(conn) == 0


def test_a_delayed_task_of_an_open_transaction_is_not_hidden_by_a_first_tick(
    conn, make_conn, worker
):
    producer = make_conn()
    with transaction(producer):
        soon = enqueue(producer, delay="1 second")
        enqueue(conn, delay="1 hour")
        tick(conn)
    advance(conn, "2 seconds")
    tick(conn)

    assert claim_one(conn, worker).id == soon
    assert sweep(conn) == 0


def test_the_time_mark_moves_on_but_not_past_a_transaction_that_enqueues(conn, make_conn, worker):
    producer = make_conn()
    for _ in range(3):
        enqueue(conn, delay="1 second")
        tick_through(conn, 20)
    with transaction(producer):
        soon = enqueue(producer, delay="1 second")
        for _ in range(3):
            gap(conn, "7 seconds")
            tick(conn)
        made = one(producer, "select created_at from tasklib.task where id = %s", soon)
        assert time_marks(conn)["delayed"] < made
    advance(conn, "30 seconds")
    tick(conn)

    assert soon in [h.id for h in claim(conn, worker, 10)]
    assert sweep(conn) == 0


def test_a_later_task_does_not_draw_the_time_mark_past_an_open_transaction(conn, make_conn, worker):
    producer = make_conn()
    enqueue(conn, delay="1 hour")
    for _ in range(2):
        tick_through(conn, 20)
    with transaction(producer):
        soon = enqueue(producer, delay="1 second")
        tick(conn)
    advance(conn, "2 seconds")
    tick(conn)

    assert claim_one(conn, worker).id == soon
    assert sweep(conn) == 0


def test_a_delayed_enqueue_that_waits_for_its_unique_key_is_not_hidden(conn, make_conn, worker):
    writer, holder, producer = make_conn(), make_conn(), make_conn()
    run(writer, "begin")
    run(writer, "create temp table elsewhere (n int)")
    tick(conn)
    # a stand-in for a twin: it holds the key and writes to none of the tables that have marks
    run(holder, "begin")
    run(holder, "insert into tasklib.unique_key values ('default', 'k', gen_random_uuid())")
    with in_background(lambda: enqueue(producer, unique_key="k", delay="1 ms")) as enqueued:
        blocked(conn, producer)
        for _ in range(3):
            # far behind, tick asks who writes to the queue; marks of times move in steps of 5 s
            run(conn, "select setval('tasklib.position', nextval('tasklib.position') + 2000)")
            run(conn, "update tasklib.time_mark set low = low - interval '1 minute'")
            tick(conn)
        run(holder, "rollback")
        enqueued.result(5)
    tick(conn)

    assert claim_one(conn, worker).id == enqueued.result()
    assert sweep(conn) == 0


def test_a_claim_under_a_held_snapshot_sees_what_came_later(conn, make_conn, worker):
    reader = make_conn()
    run(reader, "begin isolation level repeatable read")
    run(reader, "select from tasklib.tasks")
    turn_over(conn, worker)
    enqueue(conn)

    assert len(claim(conn, worker, 5)) == 1
    assert sweep(conn) == 0


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("function", ["tick", "sweep"])
def test_housekeeping_is_refused_with_an_older_snapshot(conn, isolation, function):
    run(conn, f"begin isolation level {isolation}")
    with refused("TL010"):
        rows(conn, function)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_claims_work_with_an_older_snapshot(conn, make_conn, worker, isolation):
    turn_over(conn, worker)
    kept = enqueue(conn)
    run(conn, f"begin isolation level {isolation}")

    assert [h.id for h in claim(conn, worker, 5)] == [kept]


def test_a_claim_with_an_older_snapshot_keeps_no_house(conn, make_conn, worker):
    reader, producer = make_conn(), make_conn()
    turn_over(conn, worker)
    with transaction(producer):
        kept = enqueue(producer)
        pass_through(conn, worker, 1000)
        tick(conn)
        run(conn, "update tasklib.horizon set at = at - interval '10 seconds'")
        run(reader, "begin isolation level repeatable read")
        run(reader, "select from tasklib.tasks")
    # it does not show the reader what was committed just now, and would let the mark pass it
    assert claim(reader, worker) == []
    run(reader, "commit")

    assert claim_one(conn, worker).id == kept
    assert sweep(conn) == 0


def test_marks_are_forgotten_when_the_sequence_went_back(conn, worker):
    turn_over(conn, worker)
    run(conn, "select setval('tasklib.position', 1)")
    kept = enqueue(conn)
    tick(conn)

    assert claim_one(conn, worker).id == kept
    assert sweep(conn) == 0


def test_positions_in_use_are_not_drawn_again_when_the_sequence_went_back(conn, worker):
    ids = [enqueue(conn) for _ in range(5)]
    tick(conn)
    run(conn, "select setval('tasklib.position', 1)")
    tick(conn)
    ids += [enqueue(conn) for _ in range(5)]

    assert [h.id for h in claim(conn, worker, 10)] == ids
    assert sweep(conn) == 0


def test_notes_of_another_cluster_do_not_keep_dead_workers_alive(conn):
    tick(conn)
    enqueue(conn)
    worker = register(conn)
    held = claim_one(conn, worker)
    run(
        conn,
        "insert into tasklib.horizon"
        " values ('99999999999', 0, clock_timestamp() - interval '1 day')",
    )
    tick_through(conn, 200)

    assert one(conn, "select cause from tasklib.failures where task_id = %s", held.id) == "lost"
    assert one(conn, "select seconds_since_tick from tasklib.tick_health") < 3600


def test_ticking_twice_at_once_is_not_waited_for(conn, make_conn):
    other = make_conn()
    with transaction(other):
        assert tick(other) is not None
        run(conn, "set lock_timeout = '100ms'")
        assert tick(conn) is None


def test_sweep_finds_a_task_below_a_mark_that_is_too_high(conn, worker):
    turn_over(conn, worker)
    hidden = enqueue(conn)
    run(conn, "update tasklib.mark set low_pos = (select last_value + 1 from tasklib.position)")
    assert claim(conn, worker) == []

    assert sweep(conn) == 1
    run(conn, "delete from tasklib.mark")
    assert claim_one(conn, worker).id == hidden
    assert sweep(conn) == 0


@pytest.mark.parametrize("kind", ["delayed", "deadline"])
def test_sweep_finds_what_a_time_mark_hides(conn, worker, kind):
    if kind == "delayed":
        enqueue(conn, delay="1 minute")
    else:
        enqueue(conn, timeout_seconds=60, max_retries=0)
        claim(conn, worker)
    run(
        conn,
        "insert into tasklib.time_mark values (%s, clock_timestamp() + interval '1 hour')",
        kind,
    )
    tick_through(conn, 20)

    assert sweep(conn) == 1
    advance(conn, "2 minutes")
    tick(conn)
    assert one(conn, "select state from tasklib.tasks") != "running"
    assert sweep(conn) == 0


def test_sweep_finds_a_run_without_a_worker(conn, worker):
    enqueue(conn)
    held = claim_one(conn, worker)
    run(conn, "delete from tasklib.worker")

    assert sweep(conn) == 1
    assert state(conn, held.id) == "failed"


def test_sweep_finds_a_gate_that_nobody_holds(conn, worker):
    enqueue_many(conn, *[{"name": "t", "concurrency_key": "k"}] * 2)
    held = claim_one(conn, worker)
    claim(conn, worker)
    complete(conn, worker, held)
    run(conn, "update tasklib.ready set holds_key = false")

    assert sweep(conn) == 1
    assert len(claim(conn, worker)) == 1


def test_marks_of_idle_lanes_go_away(conn, worker):
    turn_over(conn, worker)
    run(conn, "vacuum tasklib.ready")
    run(conn, "select pg_stat_clear_snapshot()")
    advance(conn, "5 minutes")
    tick(conn)

    assert one(conn, "select count(*) from tasklib.mark") in (0, 1)
    enqueue(conn)
    assert len(claim(conn, worker)) == 1


def test_failures_and_snoozes_under_a_held_mark_come_back(conn, worker):
    for n in range(30):
        enqueue(conn, kwargs={"n": n}, max_retries=9)
    for held in claim(conn, worker, 30):
        fail(conn, worker, held, retry_in="1 second")
    tick_through(conn, 40)

    assert len(claim(conn, worker, 100)) == 30
    due(conn)
    assert sweep(conn) == 0


@pytest.mark.parametrize("function", ["tick", "claim"])
def test_a_note_of_an_older_transaction_does_not_let_the_mark_pass(
    conn, make_conn, worker, function
):
    ticker, producer = make_conn(), make_conn()
    turn_over(conn, worker)
    run(ticker, "begin")
    run(ticker, "select pg_current_xact_id()")
    with transaction(producer):
        pass_through(conn, worker, 500)
        soon = enqueue(producer, delay="1 ms")
        kept = enqueue(producer)
        run(conn, "update tasklib.horizon set at = at - interval '10 seconds'")
        run(conn, "delete from tasklib.time_mark")
        if function == "tick":
            tick(ticker)
        else:
            claim(ticker, worker)
        run(ticker, "commit")
        turn_over(conn, worker)
    tick(conn)

    assert {h.id for h in claim(conn, worker, 5)} == {kept, soon}
    assert sweep(conn) == 0
