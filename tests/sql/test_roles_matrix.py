"""Every role, every function, with what is its own and with what is somebody else's."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from sql.support import acting_as, call, claim, enqueue, one, register, run

NO_RIGHT = "42501"

# How each function is called: {task} and so on are my own things, or somebody else's.
CALLS = {
    "enqueue": "select tasklib.enqueue('t', queue => '{queue}')",
    "enqueue_many": 'select * from tasklib.enqueue_many(\'[{{"name": "t", "queue": "{queue}"}}]\')',
    "get": "select id from tasklib.get('{task}')",
    "list": "select id from tasklib.list() where id = '{task}'",
    "cancel": "select tasklib.cancel('{task}')",
    "retry": "select tasklib.retry('{cancelled}')",
    "reschedule": "select tasklib.reschedule('{task}', delay => '1 hour')",
    "register_worker": "select tasklib.register_worker("
    'task_types => \'[{{"name": "t", "queue": "{queue}"}}]\')',
    "heartbeat": "select count(*) from tasklib.heartbeat('{worker}')",
    "cancel_requests": "select count(*) from tasklib.cancel_requests('{worker}')",
    "claim": "select id from tasklib.claim('{worker}', '{{{queue}}}')",
    "idle": "select tasklib.idle('{worker}', '{{{queue}}}')",
    "offer": "select tasklib.offer('{worker}', '{{{queue}}}')",
    "complete": "select tasklib.complete('{held}', '{worker}', 1)",
    "fail": "select * from tasklib.fail('{held}', '{worker}', 1)",
    "finish": "select * from tasklib.finish('{worker}', '{{{held}}}', '{{1}}')",
    "release": "select * from tasklib.release('{worker}', '{{{held}}}', '{{1}}')",
    "snooze": "select tasklib.snooze('{held}', '{worker}', 1, '1 hour')",
    "set_progress": "select tasklib.set_progress('{held}', '{worker}', 1, 0.5)",
    "deregister_worker": "select tasklib.deregister_worker('{worker}')",
    "tick": "select * from tasklib.tick()",
    "sweep": "select tasklib.sweep()",
    "purge": "select tasklib.purge(interval '1 day')",
    "set_queue": "select tasklib.set_queue('{queue}')",
    "pause": "select tasklib.pause('{queue}')",
    "resume": "select tasklib.resume('{queue}')",
    "set_rule": "select tasklib.set_rule('public', 'enqueue', '{queue}')",
    "drop_rule": "select tasklib.drop_rule('public')",
    "set_limit": "select tasklib.set_limit('public')",
    "drop_limit": "select tasklib.drop_limit('public')",
    "set_strict": "select tasklib.set_strict(true)",
    "shard_of": "select tasklib.shard_of('{task}')",
    "version": "select tasklib.version()",
}
# (with my own things, with somebody else's): ok, nothing (no row), or the error.
YES, ADMITTED = ("ok", "ok"), ("ok", "TL012")
ENQUEUED, HIDDEN, LEASED = ("ok", "TL003"), ("ok", "nothing"), ("ok", "TL011")
EXPECTED: dict[str, dict[str, tuple[str, str]]] = {
    "tasklib_producer": {
        **dict.fromkeys(("enqueue", "enqueue_many"), ADMITTED),
        **dict.fromkeys(("get", "list"), HIDDEN),
        **dict.fromkeys(("cancel", "retry", "reschedule"), ENQUEUED),
        **dict.fromkeys(("shard_of", "version"), YES),
    },
    "tasklib_worker": {
        **dict.fromkeys(("register_worker",), ADMITTED),
        **dict.fromkeys(("heartbeat", "complete", "fail", "finish", "release"), LEASED),
        **dict.fromkeys(("snooze", "set_progress", "deregister_worker", "idle", "offer"), LEASED),
        **dict.fromkeys(("claim",), LEASED),
        # ids, and of those that shall be cancelled only
        **dict.fromkeys(("cancel_requests", "tick", "sweep", "shard_of", "version"), YES),
    },
    "tasklib_observer": dict.fromkeys(("shard_of", "version"), YES),
    "tasklib_admin": {
        **dict.fromkeys(("get", "list", "cancel", "retry", "reschedule", "purge"), YES),
        **dict.fromkeys(("set_queue", "pause", "resume", "tick", "sweep"), YES),
        **dict.fromkeys(("set_rule", "drop_rule", "set_limit", "drop_limit"), YES),
        **dict.fromkeys(("set_strict", "deregister_worker", "shard_of", "version"), YES),
    },
    "public": {},
}


def things(conn, role: str, queue: str) -> dict[str, Any]:
    """Make one of everything that belongs to a role, whether it might have made it or not."""
    worker = register(conn, "t")
    held = enqueue(conn, queue=queue)
    assert [task.id for task in claim(conn, worker, 1, [queue])] == [held]
    task, cancelled = enqueue(conn, queue=queue), enqueue(conn, queue=queue)
    call(conn, "cancel", id=cancelled)
    run(
        conn,
        "update tasklib.task set enqueued_by = %s where id = any (%s)",
        role,
        [task, held, cancelled],
    )
    run(conn, "update tasklib.worker set registered_by = %s where id = %s", role, worker)
    return {"queue": queue, "worker": worker, "held": held, "task": task, "cancelled": cancelled}


def outcome(conn, role: str, text: str) -> str:
    """Call a function as a role, undo it, and tell what came of it."""
    run(conn, "begin")
    try:
        run(conn, f"set local role {role}")
        found = run(conn, text)
    except psycopg.Error as error:
        return str(error.sqlstate)
    finally:
        run(conn, "rollback")
    return "ok" if found else "nothing"


def signatures(conn):
    return run(
        conn,
        "select proname from pg_proc where pronamespace = 'tasklib'::regnamespace"
        " and proname not like E'\\\\_%'",
    )


def test_every_function_has_its_row(conn):
    names = {row.proname for row in signatures(conn)}
    assert names == set(CALLS)
    assert names == set().union(*EXPECTED.values())


@pytest.mark.parametrize("group", EXPECTED)
def test_what_each_role_may_do_with_its_own_and_with_others(conn, person, group):
    me, other = person(*([] if group == "public" else [group])), person()
    own, foreign = things(conn, me, "mine"), things(conn, other, "theirs")
    for action in ("enqueue", "claim"):
        call(conn, "set_rule", role=me, action=action, queue="mine")
        call(conn, "set_rule", role=other, action=action, queue="theirs")
    found = {
        name: tuple(outcome(conn, me, text.format(**given)) for given in (own, foreign))
        for name, text in CALLS.items()
    }
    expected = {name: EXPECTED[group].get(name, (NO_RIGHT, NO_RIGHT)) for name in CALLS}
    # what there is to claim, to finish or to list was made above; the rest returns a row anyway
    assert {n: f for n, f in found.items() if f != expected[n]} == {}


def test_a_worker_takes_nothing_from_a_foreign_queue_with_its_own_registration(conn, person):
    me = person("tasklib_worker")
    own, foreign = things(conn, me, "mine"), things(conn, person(), "theirs")
    call(conn, "set_rule", role=me, action="claim", queue="mine")
    mixed = {**own, "queue": foreign["queue"]}
    for name in ("claim", "idle", "register_worker"):
        assert outcome(conn, me, CALLS[name].format(**mixed)) == "TL012"


@pytest.mark.parametrize("name", ["complete", "fail", "finish", "release", "snooze"])
def test_a_known_lease_is_of_no_use_to_another_role(conn, person, name):
    foreign = things(conn, person(), "theirs")
    producer = person("tasklib_producer")
    both = person("tasklib_producer", "tasklib_worker", "tasklib_observer")
    assert outcome(conn, producer, CALLS[name].format(**foreign)) == NO_RIGHT
    assert outcome(conn, both, CALLS[name].format(**foreign)) == "TL011"
    with acting_as(conn, both):
        mine = register(conn)
    text = CALLS[name].format(**{**foreign, "worker": mine})
    refusal = outcome(conn, both, text)
    if name in ("finish", "release"):
        assert refusal == "ok"
        with acting_as(conn, both):
            assert one(conn, text) == "stale"
    else:
        assert refusal == "TL004"
    assert one(conn, "select state from tasklib.tasks where id = %s", foreign["held"]) == "running"
