"""Tasks whose name no live worker knows are out of the way, and come back when one does."""

from __future__ import annotations

from sql.support import (
    call,
    claim,
    claim_one,
    due,
    enqueue,
    enqueue_many,
    one,
    register,
    run,
    state,
    sweep,
    task,
    tick,
    tick_through,
)


def parked(conn):
    return one(conn, "select count(*) from tasklib.parked")


def test_a_name_that_nobody_ever_registered_waits(conn):
    worker = register(conn, "known")
    task_id = enqueue(conn, "unknown")

    assert claim(conn, worker, 5) == []
    assert state(conn, task_id) == "pending"
    assert run(conn, "select task_id, reason from tasklib.stuck_tasks") == [
        (task_id, "no live worker knows the name")
    ]


def test_it_comes_back_when_a_worker_registers_the_name(conn):
    task_id = enqueue(conn, "unknown")
    worker = register(conn, "unknown")

    assert claim_one(conn, worker).id == task_id
    assert run(conn, "select * from tasklib.stuck_tasks") == []


def test_it_comes_back_for_a_worker_of_any_name(conn):
    task_id = enqueue(conn, "unknown")

    assert claim_one(conn, register(conn)).id == task_id


def test_they_come_back_in_order(conn):
    ids = [row.id for row in enqueue_many(conn, *[{"name": "unknown"}] * 20)]

    assert [h.id for h in claim(conn, register(conn, "unknown"), 20)] == ids


def test_many_come_back_in_bounded_steps(conn):
    enqueue_many(conn, *[{"name": "unknown"}] * 2500)
    register(conn, "unknown")
    assert parked(conn) == 1500
    assert tick(conn).unparked == 1000
    assert tick(conn).unparked == 500
    assert parked(conn) == 0


def test_tick_parks_what_the_last_worker_of_a_name_left_behind(conn):
    register(conn, "known")
    leaving = register(conn, "gone")
    ids = [enqueue(conn, name) for name in ("gone", "known", "gone")]
    call(conn, "deregister_worker", worker_id=leaving)
    assert tick(conn).parked == 2

    assert parked(conn) == 2
    assert [h.id for h in claim(conn, register(conn, "gone"), 5)] == [ids[0], ids[2]]


def test_nothing_is_parked_while_no_worker_lives(conn):
    worker = register(conn, "t")
    enqueue(conn)
    call(conn, "deregister_worker", worker_id=worker)
    tick(conn)

    assert parked(conn) == 0


def test_nothing_is_parked_while_somebody_takes_any_name(conn):
    any_name = register(conn)
    register(conn, "t")
    enqueue(conn, "unknown")
    assert tick(conn).parked == 0
    assert parked(conn) == 0
    call(conn, "deregister_worker", worker_id=any_name)
    tick(conn)
    assert parked(conn) == 1


def test_a_worker_of_any_name_is_forgotten_when_it_leaves(conn):
    call(conn, "deregister_worker", worker_id=register(conn))
    enqueue(conn, "unknown")

    assert parked(conn) == 1


def test_a_task_enqueued_before_its_name_was_known_goes_where_the_name_says(conn):
    task_id = enqueue(conn, "unknown")
    worker = register(conn, {"name": "unknown", "queue": "mail", "priority": 7})

    held = claim_one(conn, worker, ["mail"])
    assert (held.id, held.queue, held.priority) == (task_id, "mail", 7)
    assert (task(conn, task_id).queue, task(conn, task_id).priority) == ("mail", 7)


def test_what_its_producer_said_is_kept(conn):
    both = enqueue(conn, "unknown", queue="mine", priority=1)
    one_of_them = enqueue(conn, "unknown", priority=0)
    register(conn, {"name": "unknown", "queue": "theirs", "priority": 9})

    assert (task(conn, both).queue, task(conn, both).priority) == ("mine", 1)
    assert (task(conn, one_of_them).queue, task(conn, one_of_them).priority) == ("theirs", 0)


def test_a_delayed_task_is_routed_when_it_is_due(conn):
    task_id = enqueue(conn, "unknown", delay="1 hour")
    worker = register(conn, {"name": "unknown", "queue": "mail"})
    due(conn)
    tick(conn)

    assert claim_one(conn, worker, ["mail"]).id == task_id


def test_a_routed_task_takes_its_unique_key_along(conn):
    task_id = enqueue(conn, "unknown", unique_key="k")
    register(conn, {"name": "unknown", "queue": "mail"})

    assert enqueue(conn, "other", queue="mail", unique_key="k") == task_id


def test_a_routed_task_stays_where_its_key_is_taken(conn):
    holder = enqueue(conn, "other", queue="mail", unique_key="k")
    task_id = enqueue(conn, "unknown", unique_key="k")
    worker = register(conn, {"name": "unknown", "queue": "mail"})

    assert claim_one(conn, worker).id == task_id
    assert enqueue(conn, queue="mail", unique_key="k") == holder
    assert enqueue(conn, unique_key="k") == task_id


def test_a_silent_worker_knows_nothing(conn):
    register(conn, "gone")
    register(conn, "known", lease="24 hours")
    enqueue(conn, "gone")
    tick_through(conn, 80)

    assert parked(conn) == 1
    assert sweep(conn) == 0


def test_parked_tasks_do_not_stand_in_front_of_others(conn):
    leaving = register(conn, "gone")
    worker = register(conn, "known")
    enqueue_many(conn, *[{"name": "gone", "priority": 9}] * 500)
    known = enqueue(conn, "known")
    call(conn, "deregister_worker", worker_id=leaving)
    tick(conn)

    assert parked(conn) == 500
    assert claim_one(conn, worker).id == known


def test_parked_tasks_of_several_names_come_back_in_the_order_of_their_enqueueing(conn):
    ids = [enqueue(conn, name) for name in ("b", "a", "c", "a", "b", "c")]
    worker = register(conn, "a", "b", "c")

    assert [task.id for task in claim(conn, worker, 10)] == ids
