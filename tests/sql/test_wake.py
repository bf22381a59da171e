"""Who is told of a new task: one worker that sleeps, not all, and nobody while all are busy."""

import time

import pytest
from psycopg import Connection

from sql.support import claim, enqueue, enqueue_many, one, register, run


def payloads(listener: Connection) -> list[str]:
    return [heard.payload for heard in listener.notifies(timeout=0.2)]


def sleep(conn: Connection, worker: object, queues: str = "{default}", *, long: bool = True):
    return one(
        conn,
        "select tasklib.idle(%s, queues => %s, max_wait => '18 seconds', for_long => %s)",
        *(worker, queues, long),
    )


def hush(conn: Connection, *, queues: bool = True) -> None:
    """Let 50 ms begin that do not end, however slow the machine is; all queues have notified."""
    run(
        conn,
        "select setval('tasklib.notified_at',"
        " (extract(epoch from clock_timestamp()) * 1000)::bigint + 60000 << 20 | %s)",
        2**20 - 1 if queues else 0,
    )


def test_two_of_many_sleepers_are_named(conn, make_conn):
    listener, workers = make_conn(), [register(conn, "t") for _ in range(5)]
    run(listener, "listen tasklib")
    for worker in workers:
        sleep(conn, worker)
    enqueue(conn)

    (payload,) = payloads(listener)
    named = payload.split()
    assert len(named) == len(set(named)) == 2
    assert set(named) <= {str(worker) for worker in workers}


def test_a_worker_that_sleeps_for_a_moment_is_not_named_but_told(conn, make_conn):
    listener = make_conn()
    run(listener, "listen tasklib")
    sleep(conn, register(conn, "t"), long=False)
    enqueue(conn)

    assert payloads(listener) == [""]


def test_sleepers_of_other_queues_are_not_named(conn, make_conn):
    listener, mail = make_conn(), register(conn, "t")
    run(listener, "listen tasklib")
    sleep(conn, register(conn, "t"))
    sleep(conn, mail, "{mail}")
    enqueue(conn, queue="mail")

    assert payloads(listener) == [str(mail)]


def test_a_sleeper_that_is_gone_is_not_named(conn, make_conn):
    listener, gone, there = make_conn(), register(conn, "t"), register(conn, "t")
    run(listener, "listen tasklib")
    sleep(conn, gone)
    sleep(conn, there)
    run(conn, "select tasklib.deregister_worker(%s)", gone)
    enqueue(conn)

    assert payloads(listener) == [str(there)]


def test_a_worker_that_took_a_task_is_awake(conn, make_conn):
    listener, busy, other = make_conn(), register(conn, "t"), register(conn, "t")
    run(listener, "listen tasklib")
    enqueue(conn)
    sleep(conn, busy)
    sleep(conn, other)
    assert len(claim(conn, busy)) == 1
    enqueue(conn)

    assert payloads(listener) == [str(other)]


def test_a_worker_that_took_all_it_has_room_for_passes_the_call_on(conn, make_conn):
    listener, busy, other = make_conn(), register(conn, "t"), register(conn, "t")
    enqueue_many(conn, *({"name": "t"} for _ in range(3)))
    run(listener, "listen tasklib")
    sleep(conn, other)
    assert len(claim(conn, busy, 2)) == 2
    assert payloads(listener) == [str(other)]

    sleep(conn, other)
    assert len(claim(conn, busy, 1)) == 1
    assert payloads(listener) == []


def test_a_worker_that_was_called_passes_the_call_on_at_once(conn, make_conn):
    listener, called = make_conn(), register(conn, "t")
    sleep(conn, called)
    enqueue_many(conn, *({"name": "t"} for _ in range(3)))
    run(listener, "listen tasklib")
    other = register(conn, "t")
    run(
        conn,
        "update tasklib.worker set asleep_until = now() + interval '1 minute', "
        "queues = '{default}' where id = %s",
        other,
    )
    assert len(claim(conn, called, 1)) == 1

    assert payloads(listener) == [str(other)]


def test_the_next_task_calls_another_one_when_a_worker_has_come(conn, make_conn):
    listener, called, other = make_conn(), register(conn, "t"), register(conn, "t")
    sleep(conn, called)
    sleep(conn, other)
    enqueue(conn)
    hush(conn)
    run(listener, "listen tasklib")
    assert len(claim(conn, called, 1)) == 1
    enqueue(conn)

    assert payloads(listener) == [str(other)]


def test_a_queue_is_not_hushed_by_another_one(conn, make_conn):
    listener, worker = make_conn(), register(conn, "t")
    run(listener, "listen tasklib")
    told: list[list[str]] = []
    for _ in range(3):  # once in 190 times, two queues are taken for the same
        sleep(conn, worker, "{mail}")
        hush(conn, queues=False)
        enqueue(conn, queue="busy")
        enqueue(conn, queue="mail")
        enqueue(conn, queue="mail")
        told.append(payloads(listener))

    assert ["", str(worker)] in told


def test_a_batch_calls_workers_of_each_of_its_queues(conn, make_conn):
    listener, mail, other = make_conn(), register(conn, "t"), register(conn, "t")
    run(listener, "listen tasklib")
    told: list[set[str]] = []
    for _ in range(3):
        sleep(conn, mail, "{mail}")
        sleep(conn, other, "{other}")
        enqueue_many(conn, {"name": "t", "queue": "mail"}, {"name": "t", "queue": "other"})
        told.append(set(payloads(listener)))

    assert {str(mail), str(other)} in told


def test_sleepers_that_do_not_know_the_task_are_not_named(conn, make_conn):
    listener, worker = make_conn(), register(conn, "t")
    run(listener, "listen tasklib")
    for _ in range(5):
        sleep(conn, register(conn, "other"))
    sleep(conn, worker)
    enqueue(conn)
    assert payloads(listener) == [str(worker)]

    sleep(conn, worker)
    enqueue_many(conn, {"name": "t"}, {"name": "t"})
    assert payloads(listener) == [str(worker)]


def test_what_becomes_due_in_another_way_than_by_enqueue_wakes_a_worker(conn, make_conn):
    listener, worker, sleeper = make_conn(), register(conn, "t"), register(conn, "t")
    run(listener, "listen tasklib")
    released, rescheduled = enqueue(conn), enqueue(conn, delay="1 hour")
    (task,) = claim(conn, worker)

    sleep(conn, sleeper)
    run(conn, "select tasklib.release(%s, %s, %s)", worker, [released], [task.attempt])
    assert payloads(listener) == [str(sleeper)]
    run(conn, "select tasklib.cancel(%s)", released)
    sleep(conn, sleeper)
    run(conn, "select tasklib.retry(%s)", released)
    assert payloads(listener) == [str(sleeper)]
    for delay in ("0", "5 seconds"):
        sleep(conn, sleeper)
        run(conn, "select tasklib.reschedule(%s, delay => %s)", rescheduled, delay)
        assert payloads(listener) == [str(sleeper)]
    sleep(conn, sleeper)
    run(conn, "select tasklib.reschedule(%s, delay => '1 hour')", rescheduled)
    assert payloads(listener) == []


def test_a_retry_that_its_own_worker_does_not_see_to_wakes_another(conn, make_conn):
    listener, worker, sleeper = make_conn(), register(conn, "t"), register(conn, "t")
    enqueue(conn)
    claim(conn, worker)
    sleep(conn, sleeper)
    run(listener, "listen tasklib")
    run(conn, "select tasklib.deregister_worker(%s, crashed => true)", worker)

    assert payloads(listener) == [str(sleeper)]


def test_a_call_is_not_passed_on_within_a_queue_that_does_not_notify(conn, make_conn):
    listener, busy = make_conn(), register(conn, "t")
    enqueue_many(conn, *({"name": "t"} for _ in range(3)))
    run(conn, "select tasklib.set_queue('default', notify => false)")
    run(listener, "listen tasklib")
    sleep(conn, register(conn, "t"))
    claim(conn, busy, 2)

    assert payloads(listener) == []


def test_a_long_sleep_renews_the_lease_and_a_short_one_writes_nothing(conn):
    worker = register(conn, "t", lease="10 seconds")
    before = one(conn, "select worker::text from tasklib.worker where id = %s", worker)
    sleep(conn, worker, long=False)
    assert one(conn, "select worker::text from tasklib.worker where id = %s", worker) == before

    run(conn, "update tasklib.worker set lease_until = clock_timestamp() + interval '1 second'")
    sleep(conn, worker)
    left = "extract(epoch from lease_until - clock_timestamp())"
    assert 9 < one(conn, f"select {left} from tasklib.worker where id = %s", worker) <= 10


@pytest.mark.parametrize("options", [{}, {"tags": {}}])
def test_busy_commits_do_not_notify(conn, make_conn, options):
    listener, worker = make_conn(), register(conn, "t")
    run(listener, "listen tasklib")
    sleep(conn, worker, long=False)
    began = time.monotonic()
    for _ in range(20):
        enqueue(conn, **options)
    most = 1 + (time.monotonic() - began) / 0.05

    assert 1 <= len(payloads(listener)) <= most


@pytest.mark.parametrize(
    ("most", "offers", "others", "is_called"),
    [(1, True, 0, False), (2, True, 0, True), (1, False, 0, True), (1, True, 1, True)],
)
def test_nobody_is_called_when_the_only_worker_took_all_that_it_asked_for(
    conn, make_conn, most, offers, others, is_called
):
    listener, worker = make_conn(), register(conn, "t")
    for _ in range(others):
        register(conn, "t")
    enqueue(conn)
    sleep(conn, worker)
    if offers:
        run(conn, "select tasklib.offer(%s, '{default}', %s)", worker, "c" * 32)
    assert len(claim(conn, worker, max_tasks=most)) == 1
    run(listener, "listen tasklib")
    enqueue(conn, priority=1)

    assert bool(payloads(listener)) == is_called
    sleep(conn, worker, long=False)
    run(conn, "select tasklib.offer(%s, '{default}', null)", worker)
    enqueue(conn)
    assert payloads(listener)


def test_nobody_is_called_while_all_are_busy(conn, make_conn):
    listener, worker = make_conn(), register(conn, "t")
    run(listener, "listen tasklib")
    enqueue(conn)
    (task,) = claim(conn, worker)
    run(conn, "select tasklib.release(%s, %s, %s)", worker, [task.id], [task.attempt])

    assert payloads(listener) == []


def test_a_short_sleep_does_not_end_the_call_for_who_sleeps_longer(conn, make_conn):
    listener, long, short = make_conn(), register(conn, "t"), register(conn, "t")
    run(listener, "listen tasklib")
    sleep(conn, long)
    one(conn, "select tasklib.idle(%s, max_wait => '10 ms')", short)
    time.sleep(0.1)
    enqueue(conn)

    assert payloads(listener) == [str(long)]


def test_who_falls_asleep_is_called_although_others_were_just_now(conn, make_conn):
    listener, worker = make_conn(), register(conn, "t")
    run(listener, "listen tasklib")
    sleep(conn, worker)
    hush(conn)
    sleep(conn, worker)
    enqueue(conn)

    assert payloads(listener) == [str(worker)]


def test_a_queue_that_is_resumed_calls_everybody(conn, make_conn):
    listener, worker = make_conn(), register(conn, "t")
    run(conn, "select tasklib.pause('default')")
    sleep(conn, worker)
    run(listener, "listen tasklib")
    run(conn, "select tasklib.resume('default')")

    assert payloads(listener) == [""]


def test_a_sleeper_wakes_when_the_lease_of_a_silent_worker_runs_out(conn):
    sleeper = register(conn, "t", lease="60 seconds")
    assert sleep(conn, sleeper) == 18
    silent = register(conn, "t", lease="5 seconds")

    assert 3 < sleep(conn, sleeper) <= 5
    enqueue(conn)
    (task,) = claim(conn, silent)
    run(conn, "update tasklib.worker set lease_until = clock_timestamp() where id = %s", silent)
    run(conn, "delete from tasklib.horizon")
    assert 3 < sleep(conn, sleeper) <= 5
    assert one(conn, "select state from tasklib.get(%s)", task.id) == "failed"
