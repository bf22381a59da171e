"""The SQL functions do what the model says: 20,000 steps in each run of the tests."""

from __future__ import annotations

import os

import pytest

from model import run
from sql.support import one

STEPS = int(os.environ.get("TASKLIB_TEST_MODEL_STEPS", "20000"))
SEED = int(os.environ.get("TASKLIB_TEST_MODEL_SEED", "0"))
# More shards than cores, so that the processes of a run share them out evenly.
SHARDS = [("queue", n) for n in range(6)] + [("sessions", n) for n in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shard"), SHARDS)
def test_the_queue_does_what_its_model_does(database, name, shard):
    machine = run.MACHINES[name]
    before = machine.handed_over
    with run.connected(database):
        steps = run.run(name, SEED + shard, STEPS // len(SHARDS))

    assert steps >= STEPS // len(SHARDS)
    assert machine.handed_over > before, "no commit handed a task over: nothing was compared"


_RULES = "binds roles, and the model has one; tests/sql/test_rules.py"
# Where each function is compared with the model; or why it is not.
COVERED = {
    "cancel": "queue, sessions",
    "cancel_requests": "queue",
    "claim": "queue, sessions",
    "complete": "queue, sessions",
    "deregister_worker": "queue",
    "drop_limit": _RULES,
    "drop_rule": _RULES,
    "enqueue": "queue, sessions",
    "enqueue_many": "queue, sessions",
    "fail": "queue, sessions",
    "finish": "queue, sessions",
    "get": "reads one row of the view that the queue machine compares whole",
    "heartbeat": "queue, sessions",
    "idle": "queue",
    "list": "queue",
    "offer": "queue, sessions",
    "pause": "queue",
    "purge": "queue",
    "register_worker": "queue",
    "release": "queue, sessions",
    "reschedule": "queue",
    "resume": "queue",
    "retry": "queue, sessions",
    "set_limit": _RULES,
    "set_progress": "queue",
    "set_queue": "queue",
    "set_rule": _RULES,
    "set_strict": _RULES,
    "shard_of": "depends on nothing but its argument",
    "snooze": "queue, sessions",
    "sweep": "queue, sessions: it finds nothing, ever",
    "tick": "queue, sessions",
    "version": "a constant",
}


def test_every_function_has_its_place_in_the_model(conn):
    found = one(
        conn,
        "select array_agg(distinct proname::text) from pg_proc"
        " where pronamespace = 'tasklib'::regnamespace and proname not like '\\_%%'",
    )

    assert set(found) == set(COVERED), "give a new function a rule in tests/model, or a reason here"
