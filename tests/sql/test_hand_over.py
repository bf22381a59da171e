"""A lone task goes to a worker that sleeps with the commit that enqueues it; if anything speaks
against that it stays ready, and workers are woken as ever.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from sql.support import (
    acting_as,
    advance,
    blocked,
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    fail,
    in_background,
    one,
    refused,
    register,
    rows,
    run,
    state,
    states,
    task,
    transaction,
)

CHANNEL = "tasklib_" + "c0ffee00" * 4
# Makes an offer by hand, from every queue.
FOR_ALL = "select setval('tasklib.offer', tasklib._worker_number(%s) << 20 | 1048575)"
# What JSON within JSON could spoil.
AWKWARD = {"quote": '"', "slash": "\\", "both": '\\"\\\\', "café": "naïve 漢字 🐘", "list": [1.50]}


@pytest.fixture(autouse=True)
def no_note_is_left(conn):
    yield
    assert one(conn, "select count(*) from tasklib.handover") == 0


@pytest.fixture
def worker(conn):
    return register(conn, "t")


@pytest.fixture
def listener(make_conn):
    """A session that hears what is handed over and who is woken."""
    listening = make_conn()
    run(listening, "listen tasklib")
    run(listening, f"listen {CHANNEL}")
    return listening


def offer(
    conn: Connection, worker: UUID, *queues: str, channel: str = CHANNEL, asleep: bool = True
) -> None:
    """Lie down and offer to take a task, as a worker does that found nothing."""
    asked = list(queues) or ["default"]
    if asleep:
        call(conn, "idle", worker_id=worker, queues=asked, max_wait="18 seconds", for_long=True)
    call(conn, "offer", worker_id=worker, queues=asked, channel=channel)


def offered(conn: Connection) -> int:
    """Return the number of the worker that offers, 0 for nobody."""
    return one(conn, "select last_value >> 20 from tasklib.offer")


def renumbered(conn: Connection, worker: UUID) -> UUID:
    """Give a worker the number 0x0123456789."""
    new = UUID("0123456789" + worker.hex[10:])
    run(conn, "update tasklib.worker set id = %s where id = %s", new, worker)
    return new


def number(conn: Connection, worker: UUID) -> int:
    return one(conn, "select tasklib._worker_number(%s)", worker)


def hear(listener: Connection) -> tuple[list[str], list[str]]:
    """Return what was handed over, and who was woken."""
    heard = list(listener.notifies(timeout=0.2))
    return (
        [one.payload for one in heard if one.channel == CHANNEL],
        [one.payload for one in heard if one.channel == "tasklib"],
    )


def stays(conn: Connection, listener: Connection, worker: UUID, task_id: UUID) -> None:
    """Nothing was handed over; the task is ready and the worker is woken for it."""
    assert hear(listener) == ([], [str(worker)])
    assert state(conn, task_id) == "pending"
    assert one(conn, "select count(*) from tasklib.ready where task_id = %s", task_id) == 1
    assert one(conn, "select count(*) from tasklib.running") == 0


def goes(conn: Connection, listener: Connection, worker: UUID, task_id: UUID) -> None:
    """The task was handed over, and nobody was woken."""
    ((payload,), woken) = hear(listener)
    assert json.loads(payload)[:3] == [str(worker), str(task_id), 1]
    assert woken == []
    assert (state(conn, task_id), task(conn, task_id).worker_id) == ("running", worker)
    assert one(conn, "select count(*) from tasklib.ready where task_id = %s", task_id) == 0
    assert offered(conn) == 0


# --- what is handed over, and how


def test_a_lone_task_is_handed_over_with_all_that_a_claim_returns(conn, listener):
    worker = register(conn, {"name": "t", "max_retries": 7, "timeout_seconds": 30.5})
    offer(conn, worker)
    made = enqueue(conn, kwargs=AWKWARD, headers={"trace": 'a"\\é'})

    ((payload,), woken) = hear(listener)
    ((kwargs, headers),) = run(
        conn, "select kwargs::text, headers::text from tasklib.task where id = %s", made
    )
    assert json.loads(payload) == [
        *(str(worker), str(made), 1, "t", "default", kwargs, 0, 7, 30.5, None, headers)
    ]
    assert (json.loads(kwargs), json.loads(headers)) == (AWKWARD, {"trace": 'a"\\é'})
    assert woken == []


def test_what_is_sent_is_what_a_claim_returns(conn, listener):
    worker = register(conn, {"name": "t", "timeout_seconds": 5})
    offer(conn, worker)
    made = enqueue(conn, kwargs=AWKWARD, max_retries=1)
    ((payload,), _) = hear(listener)
    run(conn, "select tasklib.release(%s, %s, %s)", worker, [made], [1])
    claimed = claim_one(conn, worker)

    _, task_id, attempt, name, queue, kwargs, *rest = json.loads(payload)
    assert [task_id, attempt + 1, name, queue] == [
        *(str(claimed.id), claimed.attempt, claimed.name, claimed.queue)
    ]
    assert json.loads(kwargs) == claimed.kwargs
    assert rest == [
        *(claimed.retry_count, claimed.max_retries, claimed.timeout_seconds),
        *(claimed.tags, claimed.headers),
    ]


def test_what_the_task_says_goes_before_what_its_name_says(conn, listener):
    offer(conn, register(conn, {"name": "t", "max_retries": 7, "timeout_seconds": 30}))
    enqueue(conn, max_retries=0, timeout_seconds=0.5)

    ((payload,), _) = hear(listener)
    assert json.loads(payload)[7:9] == [0, 0.5]


def test_what_nobody_says_is_3_retries_and_no_timeout(conn, listener, worker):
    offer(conn, worker)
    made = enqueue(conn)

    ((payload,), _) = hear(listener)
    assert json.loads(payload)[5:] == ["{}", 0, 3, None, None, None]
    assert one(conn, "select deadline from tasklib.running where task_id = %s", made) is None


@pytest.mark.parametrize("by", ["task", "name"])
def test_the_deadline_runs_from_the_hand_over(conn, by):
    worker = register(conn, {"name": "t", **({"timeout_seconds": 90} if by == "name" else {})})
    offer(conn, worker)
    made = enqueue(conn, **({"timeout_seconds": 90.0} if by == "task" else {}))

    (run_of_it,) = run(
        conn,
        "select *, deadline - started_at as time from tasklib.running where task_id = %s",
        made,
    )
    assert run_of_it.time.total_seconds() == 90
    assert task(conn, made).created_at <= run_of_it.started_at
    assert 89 < one(conn, "select extract(epoch from %s - now())", run_of_it.deadline) <= 90


def test_the_run_is_that_of_a_claim(conn, worker):
    columns = "worker_id, lane, type, attempt, unique_until, key, deadline"
    offer(conn, worker, "mail")
    enqueue(conn, queue="mail", priority=7)
    (handed_over,) = run(conn, f"delete from tasklib.running returning {columns}")
    enqueue(conn, queue="mail", priority=7)
    claim_one(conn, worker, ["mail"])

    assert run(conn, f"select {columns} from tasklib.running") == [handed_over]


def test_what_was_handed_over_ends_as_any_attempt(conn, worker):
    offer(conn, worker)
    first = task(conn, enqueue(conn))
    complete(conn, worker, first, {"value": 1})
    offer(conn, worker)
    second = task(conn, enqueue(conn))
    assert fail(conn, worker, second, retry_in="0").state == "failed"

    assert states(conn, first.id, second.id) == ["completed", "pending"]
    assert (claim_one(conn, worker).attempt, task(conn, second.id).retry_count) == (2, 1)


def test_a_worker_that_takes_any_name_is_handed_over_any(conn, listener):
    worker = register(conn)
    offer(conn, worker)

    goes(conn, listener, worker, enqueue(conn, "whatever"))


def test_a_worker_is_handed_over_tasks_of_each_queue_that_it_offers_for(conn, listener, worker):
    offer(conn, worker, "default", "mail")

    goes(conn, listener, worker, enqueue(conn, queue="mail"))


def test_a_worker_that_sleeps_for_a_moment_is_handed_over_tasks(conn, listener, worker):
    call(conn, "idle", worker_id=worker, max_wait="18 seconds")
    offer(conn, worker, asleep=False)

    goes(conn, listener, worker, enqueue(conn))


def test_a_role_that_only_enqueues_hands_over(conn, listener, person, worker):
    offer(conn, worker)
    with acting_as(conn, person("tasklib_producer")), transaction(conn):
        made = enqueue(conn)

    goes(conn, listener, worker, made)


def test_a_session_that_replicates_hands_over(conn, listener, worker):
    offer(conn, worker)
    run(conn, "set session_replication_role = replica")
    made = enqueue(conn)
    run(conn, "reset session_replication_role")

    goes(conn, listener, worker, made)


def test_the_last_that_offers_is_the_one(conn, listener, worker):
    first, last, third = sorted([worker, register(conn, "t"), register(conn, "t")])
    for each in (first, third, last):
        offer(conn, each)

    goes(conn, listener, last, enqueue(conn))


def test_nobody_else_takes_what_who_offered_last_cannot_take(conn, listener, worker):
    first, last, third = sorted([worker, register(conn, "t"), register(conn, "t")])
    for each in (first, third, last):
        offer(conn, each)
    run(conn, "update tasklib.worker set restricted = true where id = %s", last)
    made = enqueue(conn)

    assert (hear(listener)[0], state(conn, made)) == ([], "pending")


def test_a_worker_is_told_on_its_last_channel(conn, listener, worker):
    offer(conn, worker, "mail", channel="another_channel_of_32_characters")
    offer(conn, worker)

    goes(conn, listener, worker, enqueue(conn))


# --- one for each offer


def test_after_a_hand_over_the_offer_is_gone(conn, listener, worker):
    offer(conn, worker)
    first = enqueue(conn)
    goes(conn, listener, worker, first)
    second = enqueue(conn)

    # it is not called by its name, as it has something to do
    assert hear(listener) == ([], [""])
    assert states(conn, first, second) == ["running", "pending"]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 10},
        {"kwargs": {"a": "x" * 3000}},
        {"concurrency_key": "k"},
        {"unique_key": "u"},
        {"tags": {"a": 1}},
    ],
    ids=["plain", "priority", "large", "concurrency_key", "unique_key", "tags"],
)
def test_of_several_tasks_of_a_transaction_none_is_handed_over(conn, listener, worker, at, options):
    """Another one may be the better one: so they are claimed, in their order."""
    offer(conn, worker)
    made = []
    with transaction(conn):
        for n in range(2):
            made.append(enqueue(conn, **(options if n == at else {})))

    handed_over, woken = hear(listener)
    assert (handed_over, {*woken}) == ([], {str(worker)})
    assert states(conn, *made) == ["pending", "pending"]
    assert offered(conn) == number(conn, worker)


@pytest.mark.parametrize("at", [0, 1])
def test_a_lone_task_is_not_handed_over_before_a_batch_of_its_transaction(
    conn, listener, worker, at
):
    offer(conn, worker)
    with transaction(conn):
        for n in range(2):
            enqueue_many(conn, {"name": "t"}, {"name": "t"}) if n == at else enqueue(conn)

    assert hear(listener)[0] == []
    assert len(claim(conn, worker, 10)) == 3


def test_after_a_transaction_of_several_tasks_a_lone_one_is_handed_over(conn, listener, worker):
    offer(conn, worker)
    with transaction(conn):
        made = enqueue(conn), enqueue(conn)
    for task_id in made:
        call(conn, "cancel", id=task_id)
    hear(listener)

    goes(conn, listener, worker, enqueue(conn))


def test_transactions_that_saw_the_same_offer_do_not_both_use_it(conn, make_conn, listener, worker):
    other = make_conn()
    offer(conn, worker)
    with transaction(conn):
        first = enqueue(conn)
        with transaction(other):
            second = enqueue(other)

    handed_over, _ = hear(listener)
    assert [json.loads(payload)[1] for payload in handed_over] == [str(second)]
    assert states(conn, first, second) == ["pending", "running"]


def test_the_next_transaction_of_the_session_hands_over_again(conn, listener, worker):
    for _ in range(2):
        offer(conn, worker)
        with transaction(conn):
            made = enqueue(conn)
        goes(conn, listener, worker, made)


# --- until the commit


def test_until_the_commit_the_task_waits(conn, make_conn, listener, worker):
    other = make_conn()
    offer(conn, worker)
    with transaction(conn):
        made = enqueue(conn)
        assert state(conn, made) == "pending"
        assert claim(other, worker) == []
        assert hear(listener) == ([], [])

    goes(conn, listener, worker, made)


@pytest.mark.parametrize(
    ("change", "becomes"),
    [
        ("cancel(%s)", "cancelled"),
        ("reschedule(%s, delay => '1 hour')", "pending"),
        ("reschedule(%s, queue => 'mail')", "pending"),
        ("reschedule(%s, priority => 5)", "pending"),
    ],
)
def test_what_was_changed_before_the_commit_is_not_handed_over(
    conn, listener, worker, change, becomes
):
    offer(conn, worker, "default", "mail")
    with transaction(conn):
        made = enqueue(conn)
        run(conn, f"select tasklib.{change}", made)

    handed_over, _ = hear(listener)
    assert (handed_over, state(conn, made)) == ([], becomes)
    assert offered(conn) == number(conn, worker)
    assert one(conn, "select count(*) from tasklib.running") == 0


def test_what_was_moved_before_the_commit_is_claimed_where_it_is(conn, worker):
    offer(conn, worker, "default", "mail")
    with transaction(conn):
        made = enqueue(conn)
        call(conn, "reschedule", id=made, queue="mail")

    assert claim(conn, worker) == []
    assert claim_one(conn, worker, ["mail"]).id == made


def test_what_ran_before_the_commit_is_not_handed_over(conn, make_conn, listener, worker):
    offer(conn, worker)
    other = register(conn, "t")
    with transaction(conn):
        made = enqueue(conn)
        complete(conn, other, claim_one(conn, other))

    assert (hear(listener)[0], state(conn, made)) == ([], "completed")
    assert task(conn, made).worker_id == other


def test_what_is_rolled_back_leaves_nothing(conn, listener, worker):
    offer(conn, worker)
    with transaction(conn, commit=False):
        made = enqueue(conn)

    assert hear(listener) == ([], [])
    assert run(conn, "select from tasklib.tasks where id = %s", made) == []
    assert offered(conn) == number(conn, worker)


def test_what_a_savepoint_takes_back_is_not_handed_over_but_the_next_is(conn, listener, worker):
    offer(conn, worker)
    with transaction(conn):
        run(conn, "savepoint s")
        enqueue(conn)
        run(conn, "rollback to savepoint s")
        kept = enqueue(conn)
    goes(conn, listener, worker, kept)

    offer(conn, worker)
    with transaction(conn):
        run(conn, "savepoint s")
        enqueue(conn)
        run(conn, "rollback to savepoint s")
    assert hear(listener) == ([], [])
    assert offered(conn) == number(conn, worker)


def test_a_savepoint_that_is_released_hands_over(conn, listener, worker):
    offer(conn, worker)
    with transaction(conn):
        run(conn, "savepoint s")
        made = enqueue(conn)
        run(conn, "release savepoint s")

    goes(conn, listener, worker, made)


@pytest.mark.parametrize("first", ["constraints", "task"])
@pytest.mark.parametrize(
    "immediate",
    ["set constraints all immediate", " SET\n CONSTRAINTS tasklib.hand_over IMMEDIATE"],
)
def test_nothing_is_handed_over_before_the_commit(conn, listener, worker, first, immediate):
    """Who makes constraints immediate may keep the transaction open for as long as they like."""
    offer(conn, worker)
    with transaction(conn):
        if first == "constraints":
            run(conn, immediate)
        made = enqueue(conn)
        if first == "task":
            run(conn, immediate)
        assert state(conn, made) == "pending"

    stays(conn, listener, worker, made)
    assert offered(conn) == number(conn, worker)


def test_a_commit_that_fails_after_the_hand_over_leaves_nothing(conn, listener, worker):
    run(conn, "create table once (n int unique deferrable initially deferred)")
    offer(conn, worker)
    run(conn, "begin")
    enqueue(conn)
    run(conn, "insert into once values (1), (1)")
    with refused("23505"):
        run(conn, "commit")

    assert hear(listener) == ([], [])
    assert one(conn, "select count(*) from tasklib.running") == 0
    # the offer is used up: the next task wakes the worker
    stays(conn, listener, worker, enqueue(conn))


# --- which tasks are not


@pytest.mark.parametrize("tail", ["x", "\\", "é"])
def test_arguments_of_more_than_3000_bytes_are_not_handed_over(conn, listener, worker, tail):
    # 9 bytes around the text, and a backslash is two in JSON
    room = 3000 - 9 - (1 if tail == "x" else 2)
    offer(conn, worker)
    large = enqueue(conn, kwargs={"a": "x" * (room + 1) + tail})
    stays(conn, listener, worker, large)
    call(conn, "cancel", id=large)

    offer(conn, worker)
    goes(conn, listener, worker, enqueue(conn, kwargs={"a": "x" * room + tail}))


def test_headers_count_as_arguments_do(conn, listener, worker):
    offer(conn, worker)
    large = enqueue(conn, kwargs={"a": "x" * 1491}, headers={"a": "x" * 1492})
    stays(conn, listener, worker, large)
    call(conn, "cancel", id=large)

    offer(conn, worker)
    exact = enqueue(conn, kwargs={"a": "x" * 1491}, headers={"a": "x" * 1491})
    goes(conn, listener, worker, exact)


def test_the_largest_that_is_handed_over_fits_into_a_notification(conn, listener):
    name, queue = '"' * 128, "\\" * 128
    worker = register(conn, name)
    offer(conn, worker, queue)
    kwargs = {"a": '"\\' * 747 + "xxx"}
    made = enqueue(conn, name, queue=queue, kwargs=kwargs, max_retries=1000, timeout_seconds=0.001)
    assert one(conn, "select octet_length(kwargs::text) from tasklib.task") == 3000
    ((payload,), _) = hear(listener)
    assert len(payload.encode()) < 7000
    assert json.loads(payload)[3:5] == [name, queue]
    assert json.loads(json.loads(payload)[5]) == kwargs
    complete(conn, worker, task(conn, made))

    # about as many, most of them in the headers, and with control characters
    headers = {"a": '"\\' * 740, "b": "\x01"}
    offer(conn, worker, queue)
    enqueue(conn, name, queue=queue, kwargs={"c": "\x01"}, headers=headers)
    ((payload,), _) = hear(listener)
    assert len(payload.encode()) < 7000
    assert json.loads(json.loads(payload)[5]) == {"c": "\x01"}
    assert json.loads(json.loads(payload)[10]) == headers


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency_key": "k"},
        {"unique_key": "u"},
        {"tags": {"a": 1}},
        {"delay": "0"},
        {"scheduled_at": "2020-01-01"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_only_a_plain_task_is_handed_over(conn, listener, worker, options):
    offer(conn, worker)
    made = enqueue(conn, **options)

    stays(conn, listener, worker, made)
    assert offered(conn) == number(conn, worker)


def test_a_batch_is_not_handed_over(conn, listener, worker):
    offer(conn, worker)
    (made,) = enqueue_many(conn, {"name": "t"})

    stays(conn, listener, worker, made.id)


def test_a_name_that_nobody_registered_is_not_handed_over(conn, listener, worker):
    offer(conn, worker)
    made = enqueue(conn, "other")

    assert hear(listener)[0] == []
    assert one(conn, "select count(*) from tasklib.parked where task_id = %s", made) == 1


def test_a_name_that_the_worker_does_not_know_is_not_handed_over(conn, listener, worker):
    other = register(conn, "other")
    call(conn, "idle", worker_id=other, max_wait="18 seconds", for_long=True)
    offer(conn, worker)

    stays(conn, listener, other, enqueue(conn, "other"))
    assert offered(conn) == number(conn, worker)


def test_a_task_of_another_queue_is_not_handed_over(conn, listener, worker):
    other = register(conn, "t")
    call(conn, "idle", worker_id=other, queues=["mail"], max_wait="18 seconds", for_long=True)
    offer(conn, worker)

    stays(conn, listener, other, enqueue(conn, queue="mail"))


def test_a_task_of_a_paused_queue_is_not_handed_over(conn, listener, worker):
    offer(conn, worker)
    call(conn, "pause", queue="default")
    stays(conn, listener, worker, enqueue(conn))
    assert claim(conn, worker) == []

    call(conn, "resume", queue="default")
    offer(conn, worker)
    hear(listener)
    goes(conn, listener, worker, enqueue(conn))


def test_a_queue_that_is_paused_before_the_commit_hands_over_nothing(conn, listener, worker):
    offer(conn, worker)
    with transaction(conn):
        made = enqueue(conn)
        call(conn, "pause", queue="default")

    stays(conn, listener, worker, made)


def test_a_queue_that_does_not_notify_hands_over_nothing(conn, listener, worker):
    call(conn, "set_queue", name="default", notify=False)
    offer(conn, worker)
    made = enqueue(conn)

    assert hear(listener) == ([], [])
    assert state(conn, made) == "pending"
    call(conn, "set_queue", name="default")
    offer(conn, worker)
    goes(conn, listener, worker, enqueue(conn))


def test_a_queue_that_shall_not_notify_before_the_commit_hands_over_nothing(conn, listener, worker):
    offer(conn, worker)
    with transaction(conn):
        made = enqueue(conn)
        call(conn, "set_queue", name="default", notify=False)

    assert hear(listener) == ([], [])
    assert state(conn, made) == "pending"


def test_a_queue_that_does_not_notify_takes_prepared_transactions(conn, make_conn, worker):
    other = make_conn()
    call(conn, "set_queue", name="default", notify=False)
    offer(conn, worker)
    run(other, "begin")
    made = enqueue(other)
    run(other, "prepare transaction 'two-phase'")
    run(other, "commit prepared 'two-phase'")

    assert state(conn, made) == "pending"


def test_while_nobody_sleeps_nothing_is_handed_over(conn, listener, worker):
    offer(conn, worker)
    run(conn, "select setval('tasklib.asleep_until', 0)")
    made = enqueue(conn)

    assert hear(listener) == ([], [])
    assert state(conn, made) == "pending"


def test_what_the_offer_is_not_for_leaves_no_note(conn, worker):
    worker = renumbered(conn, worker)  # two queues look alike to one worker in 200
    other = register(conn, "other")
    call(conn, "idle", worker_id=other, max_wait="18 seconds", for_long=True)
    call(conn, "pause", queue="paused")
    call(conn, "set_queue", name="quiet", notify=False)
    offer(conn, worker, "default", "paused", "quiet")
    with transaction(conn):
        enqueue(conn, "other")
        for queue in ("mail", "paused", "quiet"):
            enqueue(conn, queue=queue)
        assert one(conn, "select count(*) from tasklib.handover") == 0
        enqueue(conn)
        assert one(conn, "select count(*) from tasklib.handover") == 1


def test_an_offer_of_many_queues_costs_no_other_queue_a_note(conn, worker):
    offer(conn, worker, *(f"queue {n}" for n in range(100)))  # has all bits
    with transaction(conn):
        enqueue(conn)
        assert one(conn, "select count(*) from tasklib.handover") == 0


def test_an_offer_from_no_queue_that_is_handed_over_leaves_no_offer(conn, worker):
    offer(conn, worker)
    call(conn, "pause", queue="default")
    offer(conn, worker)

    assert offered(conn) == 0


@pytest.mark.parametrize(("name", "queue"), [("other", "default"), ("t", "mail")])
def test_who_offers_before_the_commit_and_does_not_take_it_is_not_handed_it_over(
    conn, make_conn, listener, worker, name, queue
):
    last = register(conn, name)
    offer(conn, worker)
    with transaction(conn):
        made = enqueue(conn)
        offer(make_conn(), last, queue)

    stays(conn, listener, worker, made)


def test_two_workers_with_one_number_are_not_both_handed_a_task_over(conn, listener, worker):
    twin = register(conn, "t")
    twins = [renumbered(conn, each) for each in (worker, twin)]
    for each in twins:
        offer(conn, each)
    made = enqueue(conn)

    assert len(hear(listener)[0]) == 1
    assert task(conn, made).worker_id in twins


def test_what_cannot_be_handed_over_leaves_no_note(conn, worker):
    notes = "select count(*) from tasklib.handover"
    call(conn, "idle", worker_id=worker, max_wait="18 seconds")
    with transaction(conn):
        enqueue(conn)
        assert one(conn, notes) == 0  # nobody offers
    offer(conn, worker)
    with transaction(conn):
        enqueue(conn, "other")
        enqueue(conn, kwargs={"a": "x" * 3000})
        enqueue(conn, concurrency_key="k")
        assert one(conn, notes) == 0
    for level in ("repeatable read", "serializable"):
        run(conn, f"begin isolation level {level}")
        enqueue(conn)
        assert one(conn, notes) == 0
        run(conn, "commit")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_producer_with_an_older_snapshot_hands_over_nothing(conn, listener, worker, level):
    offer(conn, worker)
    run(conn, f"begin isolation level {level}")
    made = enqueue(conn)
    run(conn, "commit")

    stays(conn, listener, worker, made)
    assert offered(conn) == number(conn, worker)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_such_a_producer_does_not_fail_for_a_worker_that_has_changed(
    conn, make_conn, listener, worker, level
):
    other = make_conn()
    offer(conn, worker)
    run(conn, f"begin isolation level {level}")
    made = enqueue(conn)
    rows(other, "heartbeat", worker_id=worker)
    offer(other, worker)
    run(conn, "commit")

    stays(conn, listener, worker, made)


# --- which workers are not


def test_a_worker_that_deregistered_is_handed_over_nothing(conn, listener, worker):
    other = register(conn, "t")
    call(conn, "idle", worker_id=other, max_wait="18 seconds", for_long=True)
    offer(conn, worker)
    run(conn, "select tasklib.deregister_worker(%s)", worker)

    stays(conn, listener, other, enqueue(conn))


def test_a_worker_that_was_declared_lost_is_handed_over_nothing(conn, listener, worker):
    offer(conn, worker)
    advance(conn, "61 seconds")
    call(conn, "tick")
    other = register(conn, "t")
    call(conn, "idle", worker_id=other, max_wait="18 seconds", for_long=True)

    stays(conn, listener, other, enqueue(conn))


@pytest.mark.parametrize(("more", "is_handed_over"), [(-1, False), (1, True)])
def test_half_a_lease_after_its_heartbeat_a_worker_is_handed_over_nothing(
    conn, listener, more, is_handed_over
):
    worker = register(conn, "t", lease="60 seconds")
    offer(conn, worker)
    left = "clock_timestamp() + %s * interval '1 second'"
    run(conn, f"update tasklib.worker set lease_until = {left}", 30 + more)
    (goes if is_handed_over else stays)(conn, listener, worker, enqueue(conn))


def test_a_worker_that_rules_restrict_is_handed_over_nothing(conn, listener, worker):
    offer(conn, worker)
    call(conn, "set_rule", role="public", action="claim", queue="mail", name="*")
    assert one(conn, "select restricted from tasklib.worker")

    stays(conn, listener, worker, enqueue(conn))
    offer(conn, worker)
    assert offered(conn) == 0


def test_a_worker_that_was_registered_on_another_server_is_handed_over_nothing(
    conn, listener, worker
):
    other_server = f"{str(worker)[:28]}00000000"
    run(conn, "update tasklib.worker set id = %s", other_server)
    other = UUID(other_server)
    offer(conn, other)

    stays(conn, listener, other, enqueue(conn))


def test_a_worker_without_a_channel_is_handed_over_nothing(conn, listener, worker):
    call(conn, "idle", worker_id=worker, max_wait="18 seconds", for_long=True)
    run(conn, FOR_ALL, worker)

    stays(conn, listener, worker, enqueue(conn))


def test_a_worker_that_never_was_is_handed_over_nothing(conn, listener, worker):
    offer(conn, worker)
    run(conn, FOR_ALL, uuid4())

    stays(conn, listener, worker, enqueue(conn))


def test_a_producer_does_not_wait_for_who_holds_the_worker(conn, make_conn, listener, worker):
    other = make_conn()
    offer(conn, worker)
    run(conn, "set lock_timeout = '1s'")
    with transaction(other):
        run(other, "select from tasklib.worker for update")
        made = enqueue(conn)
        assert state(conn, made) == "pending"

    stays(conn, listener, worker, made)


@pytest.fixture
def stuck(conn, make_conn):
    """Commit in a session, stop it when it has handed over, and let it go on after the block."""
    run(
        conn,
        "create table latch (n int);"
        "create function wait() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(42); return null; end $$;"
        "create constraint trigger wait after insert on latch"
        " deferrable initially deferred for each row execute function wait()",
    )
    keeper, producer = make_conn(), make_conn()

    @contextmanager
    def hold() -> Generator[UUID]:
        with transaction(keeper):
            run(keeper, "select pg_advisory_xact_lock(42)")
            run(producer, "begin")
            made = enqueue(producer)
            run(producer, "insert into latch values (1)")
            with in_background(lambda: run(producer, "commit")) as committed:
                blocked(conn, producer)
                try:
                    yield made
                finally:
                    run(keeper, "commit")
                committed.result()

    return hold


def test_a_registration_does_not_end_in_the_middle_of_a_hand_over(conn, make_conn, stuck, worker):
    other = make_conn()
    run(other, "set lock_timeout = '100ms'")
    call(conn, "idle", worker_id=worker, max_wait="18 seconds")
    offer(conn, worker, asleep=False)
    with stuck() as made:
        with refused("55P03"):
            run(other, "select tasklib.deregister_worker(%s)", worker)
        # its heartbeats do not wait for anybody's commit
        rows(other, "heartbeat", worker_id=worker)
        offer(other, worker)

    assert task(conn, made).worker_id == worker
    assert call(other, "deregister_worker", worker_id=worker) == 1
    assert state(conn, made) == "pending"


def test_one_commit_at_a_time_hands_over(conn, listener, stuck, worker):
    call(conn, "idle", worker_id=worker, max_wait="18 seconds")
    offer(conn, worker, asleep=False)
    with stuck() as first:
        offer(conn, worker, asleep=False)
        second = enqueue(conn)
        assert hear(listener) == ([], [""])

    assert [json.loads(payload)[1] for payload in hear(listener)[0]] == [str(first)]
    assert states(conn, first, second) == ["running", "pending"]


def test_an_offer_is_taken_once_however_many_commit_at_the_same_moment(conn, make_conn, worker):
    rounds, at_once = 100, 4
    sessions, together = [make_conn() for _ in range(at_once)], Barrier(at_once + 1, timeout=20)

    def produce(session: Connection) -> None:
        for _ in range(rounds):
            together.wait()
            enqueue(session)
            together.wait()

    with ThreadPoolExecutor(at_once) as pool:
        producers = [pool.submit(produce, session) for session in sessions]
        try:
            for n in range(rounds):
                offer(conn, worker)
                together.wait()
                together.wait()
                assert one(conn, "select count(*) from tasklib.running") <= n + 1
        finally:
            together.abort()
        assert one(conn, "select count(*) from tasklib.running") > rounds / 2
        for producer in producers:
            producer.exception()


def test_who_was_handed_over_a_task_is_not_called_instead_of_who_sleeps(conn, listener, worker):
    call(conn, "idle", worker_id=worker, max_wait="18 seconds", for_long=True)
    for _ in range(4):
        offer(conn, register(conn, "t"))
        enqueue(conn)
    hear(listener)
    enqueue(conn)

    assert hear(listener) == ([], [str(worker)])


def test_who_holds_the_row_of_a_listed_worker_is_not_waited_for(conn, make_conn, listener, worker):
    other = make_conn()
    offer(conn, worker)
    run(conn, "set lock_timeout = '1s'")
    with transaction(other):
        rows(other, "heartbeat", worker_id=worker)
        made = enqueue(conn)

    goes(conn, listener, worker, made)


def test_a_lane_whose_tasks_are_handed_over_gets_a_mark_as_one_whose_tasks_are_claimed(
    conn, worker
):
    call(conn, "idle", worker_id=worker, max_wait="18 seconds")
    for _ in range(127):
        offer(conn, worker, asleep=False)
        enqueue(conn)

    assert one(conn, "select count(*) from tasklib.running") == 127
    assert one(conn, "select lane from tasklib.mark") == one(
        conn, "select tasklib._lane('default', 0)"
    )


def test_nothing_that_waited_before_is_handed_over(conn, listener, worker):
    before = [enqueue(conn), enqueue(conn)]
    offer(conn, worker)

    goes(conn, listener, worker, enqueue(conn))
    assert states(conn, *before) == ["pending", "pending"]


@pytest.mark.parametrize("arguments", [(), ("t",)], ids=["simple", "extended"])
def test_a_statement_that_commits_by_itself_hands_over(conn, listener, worker, arguments):
    """In both protocols: in the extended one, the commit has no statement of its own."""
    offer(conn, worker)
    name = "%s" if arguments else "'t'"
    made = one(conn, f"select tasklib.enqueue({name})", *arguments)

    goes(conn, listener, worker, made)


# --- what becomes of it


@pytest.mark.parametrize("options", [{}, {"crashed": True, "begun": []}])
def test_what_was_handed_over_and_not_begun_is_given_back_without_a_charge(conn, worker, options):
    offer(conn, worker)
    made = enqueue(conn, max_retries=0)
    assert state(conn, made) == "running"
    assert call(conn, "deregister_worker", worker_id=worker, **options) == 1

    again = claim_one(conn, register(conn, "t"))
    assert (again.id, again.attempt, again.retry_count) == (made, 2, 0)


def test_what_was_handed_over_to_a_worker_that_dies_goes_to_another_one(conn, worker):
    offer(conn, worker)
    made = enqueue(conn)
    other = register(conn, "t", lease="1 hour")
    advance(conn, "61 seconds")
    call(conn, "tick")

    assert one(conn, "select cause from tasklib.failure where task_id = %s", made) == "lost"
    advance(conn, "1 minute")
    call(conn, "tick")
    assert claim_one(conn, other).id == made


# --- the offer


def test_a_claim_that_finds_something_withdraws_the_workers_own_offer(conn, worker):
    enqueue(conn)
    offer(conn, worker)
    assert len(claim(conn, worker)) == 1

    assert offered(conn) == 0
    assert state(conn, enqueue(conn)) == "pending"


def test_a_claim_that_finds_nothing_lets_the_offer_be(conn, worker):
    offer(conn, worker)
    assert claim(conn, worker) == []

    assert state(conn, enqueue(conn)) == "running"


def test_a_claim_of_another_worker_lets_the_offer_be(conn, worker):
    enqueue(conn)
    other = register(conn, "t")
    offer(conn, worker)
    assert len(claim(conn, other)) == 1

    assert offered(conn) == number(conn, worker)
    assert task(conn, enqueue(conn)).worker_id == worker


def test_a_claim_of_another_worker_that_offered_once_lets_the_offer_be(conn, worker):
    enqueue(conn)
    other = register(conn, "t")
    offer(conn, other)
    offer(conn, worker)
    assert len(claim(conn, other)) == 1

    assert offered(conn) == number(conn, worker)


def test_an_offer_stores_where_and_for_what_queues(conn, worker):
    offer(conn, worker, "mail", "default", asleep=False)

    assert run(conn, "select channel, queues from tasklib.worker") == [
        (CHANNEL, ["mail", "default"])
    ]
    before = one(conn, "select ctid::text from tasklib.worker")
    offer(conn, worker, "mail", "default", asleep=False)
    assert one(conn, "select ctid::text from tasklib.worker") == before


def test_who_offers_hears_what_is_handed_over(conn, make_conn, worker):
    producer = make_conn()
    offer(conn, worker)
    offer(conn, worker)
    made = enqueue(producer)

    (heard,) = conn.notifies(timeout=0.2)
    assert (heard.channel, json.loads(heard.payload)[1]) == (CHANNEL, str(made))
    assert run(conn, "select * from pg_listening_channels() as name") == [(CHANNEL,)]


@pytest.mark.parametrize("last", [[], [None]])
def test_an_offer_without_a_channel_takes_the_workers_own_back(conn, listener, worker, last):
    offer(conn, worker)
    call(conn, "offer", worker_id=worker, **({"channel": last[0]} if last else {}))

    assert offered(conn) == 0
    assert one(conn, "select channel from tasklib.worker") is None
    stays(conn, listener, worker, enqueue(conn))


def test_an_offer_without_a_channel_leaves_that_of_another_worker(conn, listener, worker):
    other = register(conn, "t")
    offer(conn, other)
    call(conn, "offer", worker_id=worker)

    goes(conn, listener, other, enqueue(conn))


def test_an_offer_is_for_the_default_queue_unless_it_says_more(conn, listener, worker):
    call(conn, "idle", worker_id=worker, max_wait="18 seconds")
    call(conn, "offer", worker_id=worker, channel=CHANNEL)

    assert one(conn, "select queues from tasklib.worker") == ["default"]
    goes(conn, listener, worker, enqueue(conn))


def test_an_offer_changes_nothing_of_other_workers(conn, worker):
    other = register(conn, "t")
    offer(conn, worker, asleep=False)

    assert run(conn, "select channel, queues from tasklib.worker where id = %s", other) == [
        (None, None)
    ]


def test_an_offer_for_other_queues_takes_the_place_of_the_one_before(conn, listener, worker):
    offer(conn, worker)
    offer(conn, worker, "mail", asleep=False)
    made = enqueue(conn)
    assert (hear(listener)[0], state(conn, made)) == ([], "pending")
    goes(conn, listener, worker, enqueue(conn, queue="mail"))


@pytest.mark.parametrize(
    "channel",
    [
        *("", "tasklib", "a" * 31, "a" * 64, "A" * 40, "tasklib-" + "c" * 32),
        *("1" * 40, "_" * 40, "é" * 32, "a" * 40 + "\n", " " + "a" * 40, 'a"' * 20),
    ],
)
def test_a_channel_that_could_be_guessed_or_is_no_name_is_refused(conn, worker, channel):
    with refused("TL001", "channel", channel):
        call(conn, "offer", worker_id=worker, queues=["default"], channel=channel)

    assert offered(conn) == 0
    assert one(conn, "select channel from tasklib.worker") is None


@pytest.mark.parametrize("channel", ["a" * 32, "z9_" * 21])
def test_a_channel_has_32_to_63_characters(conn, worker, channel):
    call(conn, "offer", worker_id=worker, queues=["default"], channel=channel)

    assert one(conn, "select channel from tasklib.worker") == channel


@pytest.mark.parametrize("queues", [None, [], [None], [["default"]]])
def test_an_offer_names_its_queues(conn, worker, queues):
    with refused("TL001", "queues", queues):
        run(conn, "select tasklib.offer(%s, %s::text[], %s)", worker, queues, CHANNEL)

    assert offered(conn) == 0


@pytest.mark.parametrize("nobody", [None, uuid4()])
def test_only_who_is_registered_offers(conn, worker, nobody):
    with refused("TL007"):
        call(conn, "offer", worker_id=nobody, queues=["default"], channel=CHANNEL)
    run(conn, "select tasklib.deregister_worker(%s)", worker)
    with refused("TL007"):
        call(conn, "offer", worker_id=worker, queues=["default"], channel=CHANNEL)

    assert offered(conn) == 0


def test_only_the_role_that_registered_a_worker_offers_for_it(conn, person, worker):
    with acting_as(conn, person("tasklib_worker")):
        with refused("TL011"):
            call(conn, "offer", worker_id=worker, queues=["default"], channel=CHANNEL)
        own = register(conn, "t")
        call(conn, "offer", worker_id=own, queues=["default"], channel=CHANNEL)

    assert offered(conn) == number(conn, own)


def test_only_a_worker_offers(conn, person, worker):
    with acting_as(conn, person("tasklib_producer")), refused("42501"):
        call(conn, "offer", worker_id=worker, queues=["default"], channel=CHANNEL)


def test_a_number_leads_back_to_its_worker(conn):
    texts = ["0" * 32, "0" * 10 + "f" * 22, "f" * 9 + "8" + "f" * 22, "80" * 16]
    ids = [UUID(text) for text in texts] + [uuid4() for _ in range(200)]
    wrong = run(
        conn,
        "select id, tasklib._worker_number(id) from unnest(%s::uuid[]) as id"
        " where (tasklib._worker_number(id) >= 0"
        " and id >= tasklib._first_worker(tasklib._worker_number(id))"
        " and id < tasklib._first_worker(tasklib._worker_number(id) + 1)) is not true",
        ids,
    )
    assert wrong == []


def test_a_note_that_is_made_by_hand_hands_over_nothing_that_is_not_ready(conn, listener, worker):
    offer(conn, worker)
    run(conn, "insert into tasklib.handover values (%s, 1, 'default')", uuid4())

    assert hear(listener)[0] == []
    assert one(conn, "select count(*) from tasklib.running") == 0
