"""Tasks of a queue with the same concurrency key never run at the same time, and go in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from uuid import UUID

import pytest

from sql.support import (
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
    in_background,
    one,
    register,
    rows,
    run,
    states,
    sweep,
    tick,
    transaction,
)


class Claimed(NamedTuple):
    id: UUID
    attempt: int


@pytest.fixture
def worker(conn):
    return register(conn)


def line(conn, count, **options):
    """Enqueue tasks with one key."""
    tasks = [{"name": "t", "concurrency_key": "k", **options}] * count
    return [row.id for row in enqueue_many(conn, *tasks)]


def drain(conn, worker):
    """Run everything to its end, one after the other; return the ids in that order."""
    order = []
    while held := claim(conn, worker, 10):
        order += [h.id for h in held]
        finish(conn, worker, held)
    return order


def test_only_the_first_is_handed_out(conn, worker):
    first, *_ = line(conn, 3)

    assert [h.id for h in claim(conn, worker, 10)] == [first]
    assert claim(conn, worker, 10) == []


def test_the_next_goes_when_the_first_is_complete(conn, worker):
    ids = line(conn, 4)

    assert drain(conn, worker) == ids
    assert sweep(conn) == 0


def test_a_claim_goes_on_past_the_tasks_that_have_to_wait(conn, worker):
    first, *_ = line(conn, 50)
    free = enqueue(conn)

    assert [h.id for h in claim(conn, worker, 2)] == [first, free]


def test_keys_and_queues_do_not_share_gates(conn, worker):
    for key, queue in ("a", "default"), ("b", "default"), ("a", "mail"):
        enqueue(conn, concurrency_key=key, queue=queue)

    assert len(claim(conn, worker, 10, ["default", "mail"])) == 3


ENDINGS = {
    "completed": {"state": "completed"},
    "failed": {"state": "failed", "retry_in": 0},
    "failed for good": {"state": "failed", "retry": False},
    "released": {"state": "released"},
    "snoozed": {"state": "snoozed", "seconds": 0},
    "cancelled": {"state": "cancelled"},
}


@pytest.mark.parametrize(
    "ending", ["completed", "failed", "failed for good", "released", "snoozed", "cancelled"]
)
def test_every_ending_lets_the_next_one_go(conn, worker, ending):
    _first, second = line(conn, 2)
    held = claim_one(conn, worker)
    claim(conn, worker)
    finish(conn, worker, [held], [ENDINGS[ending]])
    due(conn)

    assert [h.id for h in claim(conn, worker, 10)] == [second]


def test_a_retry_goes_behind_those_that_wait(conn, worker):
    first, second, third = line(conn, 3)
    held = claim_one(conn, worker)
    fail(conn, worker, held, retry_in="0 seconds")
    due(conn)

    assert drain(conn, worker) == [second, third, first]


def test_a_delayed_task_does_not_hold_its_key(conn, worker):
    later = enqueue(conn, concurrency_key="k", delay="1 hour")
    soon = enqueue(conn, concurrency_key="k")

    assert claim_one(conn, worker).id == soon
    due(conn)
    assert claim(conn, worker) == []
    assert states(conn, soon, later) == ["running", "pending"]


def test_the_order_is_that_of_becoming_ready_whatever_the_priorities(conn, worker):
    low = enqueue(conn, concurrency_key="k", priority=-5)
    high = enqueue(conn, concurrency_key="k", priority=5)
    middle = enqueue(conn, concurrency_key="k")

    assert drain(conn, worker) == [low, high, middle]


def test_a_newcomer_does_not_overtake_who_waits(conn, worker):
    _first, second = line(conn, 2)
    held = claim_one(conn, worker)
    claim(conn, worker)
    newcomer = enqueue(conn, concurrency_key="k", priority=9)
    complete(conn, worker, held)

    assert drain(conn, worker) == [second, newcomer]


def test_a_newcomer_does_not_overtake_at_an_open_gate(conn, make_conn, worker):
    other = make_conn()
    _first, second = line(conn, 2)
    held = claim_one(conn, worker)
    claim(conn, worker)
    with transaction(other, commit=False):
        # whose lock on the second keeps the gate from being handed to it
        call(other, "cancel", id=second)
        complete(conn, worker, held)
    newcomer = enqueue(conn, concurrency_key="k")

    assert drain(conn, worker) == [second, newcomer]


def test_the_next_is_ready_when_the_first_waiting_is_cancelled(conn, worker):
    _first, second, third = line(conn, 3)
    held = claim_one(conn, worker)
    claim(conn, worker)
    assert call(conn, "cancel", id=second) == "cancelled"
    complete(conn, worker, held)

    assert drain(conn, worker) == [third]


def test_cancelling_the_task_that_was_handed_the_gate_hands_it_on(conn, worker):
    _first, second, third = line(conn, 3)
    held = claim_one(conn, worker)
    claim(conn, worker)
    complete(conn, worker, held)
    assert call(conn, "cancel", id=second) == "cancelled"

    assert drain(conn, worker) == [third]


@pytest.mark.parametrize("way", ["cancel", "reschedule", "park"])
def test_taking_the_first_out_of_the_line_lets_the_next_one_go(conn, way):
    # the second is looked at before the first, because of its priority, and has to wait
    hi = register(conn, "hi", "park me")
    first = enqueue(conn, "park me", concurrency_key="k")
    second = enqueue(conn, "hi", concurrency_key="k", priority=5)
    only_hi = register(conn, "hi")
    assert claim(conn, only_hi) == []
    if way == "cancel":
        call(conn, "cancel", id=first)
    elif way == "reschedule":
        call(conn, "reschedule", id=first, delay="1 hour")
    else:
        rows(conn, "deregister_worker", worker_id=hi)
    tick(conn)

    assert claim_one(conn, only_hi).id == second


def test_a_parked_task_does_not_hold_its_key(conn):
    known, both = register(conn, "known"), register(conn, "known", "unknown")
    first = enqueue(conn, "unknown", concurrency_key="k")
    second = enqueue(conn, "known", concurrency_key="k")
    rows(conn, "deregister_worker", worker_id=both)
    tick(conn)

    assert claim_one(conn, known).id == second
    worker = register(conn, "unknown")
    assert claim(conn, worker) == []
    assert states(conn, first, second) == ["pending", "running"]


def test_a_lost_worker_lets_the_next_one_go(conn, worker):
    _first, second = line(conn, 2)
    claim_one(conn, worker)
    call(conn, "deregister_worker", worker_id=worker, crashed=True)

    assert claim_one(conn, register(conn)).id == second


def test_tasks_that_share_their_key_run_one_at_a_time_under_concurrent_claims(conn, make_conn):
    for n in range(30):
        enqueue(conn, concurrency_key=f"k{n % 3}", priority=n % 4, kwargs={"n": n})

    def consume(session):
        me, seen = register(session), []
        for _ in range(60):
            for held in claim(session, me, 3):
                others = one(
                    session,
                    "select count(*) from tasklib.tasks where state = 'running' and"
                    " concurrency_key = (select concurrency_key from tasklib.task where id = %s)",
                    held.id,
                )
                seen.append((held.id, others))
                complete(session, me, held)
            tick(session)
        return seen

    with ThreadPoolExecutor(4) as pool:
        seen = [s for part in pool.map(consume, [make_conn() for _ in range(4)]) for s in part]
    assert sorted(n for _, n in seen) == [1] * 30
    assert len({task_id for task_id, _ in seen}) == 30
    assert sweep(conn) == 0


def test_a_task_that_was_put_behind_one_that_ends_meanwhile_is_not_forgotten(conn, make_conn):
    other = make_conn()
    low, high = register(conn, "low"), register(conn, "high")
    first = enqueue(conn, "low", concurrency_key="k")
    second = enqueue(conn, "high", concurrency_key="k", priority=5)
    with transaction(other):
        assert claim(other, high) == []
        held = claim_one(conn, low)
        assert held.id == first
        complete(conn, low, held)
    tick(conn)

    assert claim_one(conn, high).id == second
    assert sweep(conn) == 0


def test_a_cancel_that_is_rolled_back_does_not_strand_the_waiting_task(conn, make_conn, worker):
    other = make_conn()
    _first, second = line(conn, 2)
    held = claim_one(conn, worker)
    claim(conn, worker)
    with transaction(other, commit=False):
        call(other, "cancel", id=second)
        complete(conn, worker, held)
    tick(conn)

    assert claim_one(conn, worker).id == second
    assert sweep(conn) == 0


def test_a_gate_that_another_transaction_has_locked_is_healed_by_tick(conn, make_conn, worker):
    other = make_conn()
    _first, second, third = line(conn, 3)
    held = claim_one(conn, worker)
    with transaction(other):
        assert claim(other, worker, 2) == []
        complete(conn, worker, held)
        assert claim(conn, worker) == []
    tick(conn)

    assert drain(conn, worker) == [second, third]
    assert sweep(conn) == 0


def test_a_task_that_found_its_gate_locked_is_not_forgotten(conn, make_conn, worker):
    other = make_conn()
    _first, second = line(conn, 2)
    held = claim_one(conn, worker)
    with transaction(other):
        complete(other, worker, held)
        assert claim(conn, worker) == []
    tick(conn)

    assert claim_one(conn, worker).id == second
    assert sweep(conn) == 0


def test_a_gate_that_was_handed_over_is_not_handed_over_again(conn, worker):
    _first, second, _third = line(conn, 3)
    held = claim_one(conn, worker)
    claim(conn, worker)
    complete(conn, worker, held)
    # another session found the gate locked a moment ago
    run(conn, "insert into tasklib.gate_check (key) select key from tasklib.gate")
    tick(conn)

    assert [h.id for h in claim(conn, worker, 10)] == [second]


def test_a_gate_whose_task_runs_is_not_handed_over(conn, worker):
    line(conn, 2)
    claim_one(conn, worker)
    claim(conn, worker)
    run(conn, "insert into tasklib.gate_check (key) select key from tasklib.gate")
    tick(conn)

    assert claim(conn, worker, 10) == []


def test_a_task_that_is_parked_hands_its_gate_on(conn):
    hi, gone = register(conn, "hi"), register(conn, "gone")
    first, _, third = (enqueue(conn, name, concurrency_key="k") for name in ("hi", "gone", "hi"))
    held = claim_one(conn, hi)
    assert held.id == first
    assert claim(conn, gone) == claim(conn, hi) == []
    complete(conn, hi, held)
    rows(conn, "deregister_worker", worker_id=gone)
    tick(conn)

    assert claim_one(conn, hi).id == third


def test_finishing_does_not_wait_for_a_gate(conn, make_conn, worker):
    other = make_conn()
    line(conn, 2)
    held = claim_one(conn, worker)
    with transaction(other):
        claim(other, worker)
        run(conn, "set lock_timeout = '100ms'")
        complete(conn, worker, held)
        tick(conn)
    tick(conn)
    assert claim_one(conn, worker).attempt == 1


def test_enqueue_does_not_wait_for_a_key(conn, make_conn):
    other = make_conn()
    with transaction(other):
        enqueue(other, concurrency_key="k")
        run(conn, "set lock_timeout = '100ms'")
        enqueue(conn, concurrency_key="k")


def test_batches_that_end_the_same_keys_in_opposite_order_do_not_deadlock(conn, make_conn, worker):
    ids = [enqueue(conn, concurrency_key=key) for key in "abcd"]
    line_up = [enqueue(conn, concurrency_key=key) for key in "abcd"]
    held = claim(conn, worker, 4)
    one_way, other_way = make_conn(), make_conn()
    run(conn, "begin")
    complete(conn, worker, held[0])
    run(conn, "savepoint s")
    with (
        in_background(lambda: finish(one_way, worker, held[:3])) as a,
        in_background(lambda: finish(other_way, worker, held[3:] + held[:1])) as b,
    ):
        blocked(conn, one_way)
        run(conn, "commit")
        assert set(a.result(5) + b.result(5)) == {"ok", "already"}
    tick(conn)
    assert states(conn, *ids) == ["completed"] * 4
    assert sorted(drain(conn, worker)) == sorted(line_up)


def test_a_rolled_back_claim_leaves_the_gate_open(conn, make_conn, worker):
    first, second = line(conn, 2)
    with transaction(conn, commit=False):
        assert claim_one(conn, worker).id == first

    assert drain(conn, worker) == [first, second]


def test_thousands_of_keys_in_one_transaction_need_no_lock_each(conn, worker):
    tasks = [{"name": "t", "concurrency_key": f"k{n}"} for n in range(10_000)]
    with transaction(conn):
        for _ in range(2):
            enqueue_many(conn, *tasks)

    assert len(claim(conn, worker, 100)) == 100


@pytest.mark.parametrize("handed", [False, True])
def test_a_claim_that_keeps_house_does_not_hand_over_the_gate_it_has_just_taken(
    conn, worker, handed
):
    first, second, *_ = line(conn, 4)
    if handed:
        held = claim_one(conn, worker)
        claim(conn, worker)
        complete(conn, worker, held)
    # another session found the gate locked a moment ago
    run(
        conn,
        "insert into tasklib.gate_check (key) select key from tasklib.ready limit 1",
    )
    run(conn, "update tasklib.horizon set at = at - interval '2 seconds'")

    assert [h.id for h in claim(conn, worker, 10)] == [second if handed else first]


def test_two_claims_that_make_the_same_gates_do_not_wait_for_each_other(conn, make_conn):
    keys = ["k1", "k2"]
    keys.sort(key=lambda key: one(conn, "select tasklib._key('default', %s)", key))
    workers = {name: register(conn, name) for name in ("a", "b")}
    # What these enqueue comes first, and is seen last.
    late = {name: make_conn() for name in ("a", "b")}
    for name, key in zip(("a", "b"), keys, strict=True):
        run(late[name], "begin")
        enqueue(late[name], name, concurrency_key=key)
    for name, key in zip(("b", "a"), keys, strict=True):
        enqueue(conn, name, concurrency_key=key)
    claims = {name: make_conn() for name in ("a", "b")}
    for name, claiming in claims.items():
        run(claiming, "begin")
        run(claiming, "set local statement_timeout = '5 s'")
        claim_one(claiming, workers[name])
    for producing in late.values():
        run(producing, "commit")

    # a has made the gate of the second key, b that of the first.
    with in_background(lambda: claim(claims["b"], workers["b"], 5)) as waiting:
        blocked(conn, claims["b"])
        assert claim(claims["a"], workers["a"], 5) == []
        run(claims["a"], "commit")
        assert waiting.result() == []
    run(claims["b"], "commit")

    assert one(conn, "select count(*) from tasklib.waiting") == 1
    for worker, task_id, attempt in run(
        conn, "select worker_id, task_id, attempt from tasklib.running"
    ):
        finish(conn, worker, [Claimed(task_id, attempt)], [None])
    tick(conn)
    assert sum(len(claim(conn, worker, 5)) for worker in workers.values()) == 2
    assert sweep(conn) == 0


def test_house_kept_in_a_claim_does_not_make_a_gate_out_of_order(conn, worker):
    _first, second = line(conn, 2)
    claim(conn, worker, 2)
    key = one(conn, "select key from tasklib.waiting where task_id = %s", second)
    run(conn, "delete from tasklib.gate")
    run(conn, "insert into tasklib.gate_check (key) values (%s)", key)

    with transaction(conn):
        run(conn, "select tasklib._note_gate(%s)", key)
        assert one(conn, "select tasklib._check_gates(10)") == 0
    assert one(conn, "select tasklib._check_gates(10)") == 1


def test_what_was_made_is_forgotten_with_the_transaction(conn, worker):
    line(conn, 1)
    with transaction(conn):
        claim_one(conn, worker)
        assert one(conn, "select tasklib._last_gate() = key from tasklib.gate")
    assert one(conn, "select tasklib._last_gate()") is None
    with transaction(conn):
        run(conn, "set local tasklib.last_gate = 'nonsense'")
        assert one(conn, "select tasklib._last_gate()") is None


def test_a_claim_leaves_what_is_out_of_order_in_its_place(conn, worker):
    keys = ["k1", "k2"]
    keys.sort(key=lambda key: one(conn, "select tasklib._key('default', %s)", key))
    upper = [enqueue(conn, concurrency_key=keys[1]) for _ in range(3)]
    lower = enqueue(conn, concurrency_key=keys[0])
    plain = enqueue(conn)

    # the first three are one that runs and two that wait; then comes what needs no gate
    assert [row.id for row in claim(conn, worker, 3)] == [upper[0], plain]
    assert one(conn, "select count(*) from tasklib.waiting") == 2
    assert [row.id for row in claim(conn, worker, 3)] == [lower]
