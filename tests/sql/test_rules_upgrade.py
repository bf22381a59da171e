"""Calls of release 0.1.0 that the migration to rules finds under way go on, with its functions.

They wait for a table that is being altered, within functions of the old release, and call new ones
when they may go on.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from sql.support import one, run
from tasklib import _migrate, _sql

OLD = (Path(_sql.folder()) / "releases" / "0.1.0.sql").read_text()

CALLS = {
    "enqueue": "select tasklib.enqueue('a')",
    "enqueue later": "select tasklib.enqueue('a', delay => '1 hour')",
    "enqueue a key": "select tasklib.enqueue('a', unique_key => gen_random_uuid()::text)",
    "enqueue_many": 'select * from tasklib.enqueue_many(\'[{"name": "a"}]\')',
    "claim": "select * from tasklib.claim(%(worker)s, '{default}', 2)",
    "claim of two": "select * from tasklib.claim(%(worker)s, '{default,x}', 2)",
    "claim nothing": "select * from tasklib.claim(%(worker)s, '{nothing}', 2)",
    "finish": "select * from tasklib.finish(%(worker)s, array[%(held)s::uuid], '{1}')",
    "complete": "select tasklib.complete(%(held)s, %(worker)s, 1)",
    "fail": "select * from tasklib.fail(%(held)s, %(worker)s, 1, 'e')",
    "release": "select * from tasklib.release(%(worker)s, array[%(held)s::uuid], '{1}')",
    "snooze": "select tasklib.snooze(%(held)s, %(worker)s, 1, '1 second')",
    "heartbeat": "select count(*) from tasklib.heartbeat(%(worker)s)",
    "idle": "select tasklib.idle(%(worker)s)",
    "idle for long": "select tasklib.idle(%(worker)s, for_long => true)",
    "progress": "select tasklib.set_progress(%(held)s, %(worker)s, 1, 0.5)",
    "register": "select tasklib.register_worker('x', task_types => '[\"a\"]')",
    "deregister": "select tasklib.deregister_worker(%(worker)s)",
    "tick": "select count(*) from tasklib.tick()",
    "cancel": "select tasklib.cancel(%(held)s)",
    "retry": "select tasklib.retry(%(cancelled)s)",
    "reschedule": "select tasklib.reschedule(%(waiting)s, delay => '1 hour')",
}


@pytest.fixture
def old(server):
    """A database with release 0.1.0."""
    name = f"tasklib_old_{uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        run(conn, f'create database "{name}" template template0')
        try:
            with psycopg.connect(server.conninfo(name), autocommit=True) as inside:
                inside.execute(OLD.encode())
            yield server.conninfo(name)
        finally:
            run(conn, f'drop database "{name}" with (force)')


def things(conn):
    worker = one(conn, "select tasklib.register_worker('w')")
    for _ in range(4):
        run(conn, "select tasklib.enqueue('a')")
    held = one(conn, "select id from tasklib.claim(%s)", worker)
    cancelled = one(conn, "select tasklib.enqueue('a', queue => 'other')")
    run(conn, "select tasklib.cancel(%s)", cancelled)
    waiting = one(conn, "select tasklib.enqueue('a', queue => 'third')")
    return {"worker": worker, "held": held, "cancelled": cancelled, "waiting": waiting}


@pytest.mark.parametrize("warm", [True, False], ids=["planned before", "first call"])
def test_calls_that_are_under_way_go_on(old, warm):
    sessions = {name: psycopg.connect(old, autocommit=True) for name in CALLS}
    helper, migrating = (psycopg.connect(old, autocommit=True) for _ in range(2))
    try:
        given = {}
        for name, session in sessions.items():
            if warm:
                run(session, CALLS[name], **things(session))
            given[name] = things(session if warm else helper)
        with ThreadPoolExecutor(len(CALLS)) as pool:
            migrating.execute("begin")
            migrating.execute(_migrate._BEGIN)
            _migrate._apply(
                migrating, _sql.folder(), time.monotonic() + 60, print, is_superuser=True
            )
            calls = {
                name: pool.submit(run, session, CALLS[name], **given[name])
                for name, session in sessions.items()
            }
            waiting = 0
            for _ in range(200):
                waiting = one(
                    helper,
                    "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                    " and datname = current_database()",
                )
                if waiting + sum(call.done() for call in calls.values()) >= len(CALLS):
                    break
                time.sleep(0.05)
            assert waiting > len(CALLS) / 2
            migrating.execute("commit")
            failed = {name: call.exception(30) for name, call in calls.items()}
        assert {name: error for name, error in failed.items() if error} == {}
    finally:
        for session in (*sessions.values(), helper, migrating):
            session.close()


def test_a_worker_of_the_old_release_is_bound_by_a_first_rule(old):
    with psycopg.connect(old, autocommit=True) as conn:
        role = f"person_{uuid4().hex[:12]}"
        run(conn, f"create role {role} in role tasklib_worker")
        try:
            run(conn, f"set role {role}")
            worker = one(conn, "select tasklib.register_worker('w', task_types => '[\"a\"]')")
            run(conn, "reset role")
            _migrate.migrate(old)
            run(conn, "select tasklib.enqueue('a')")
            run(conn, f"set role {role}")
            assert len(run(conn, "select * from tasklib.claim(%s)", worker)) == 1
            run(conn, "reset role")
            run(conn, "select tasklib.set_rule(%s, 'claim', 'mail')", role)
            run(conn, f"set role {role}")
            with pytest.raises(psycopg.Error) as caught:
                run(conn, "select * from tasklib.claim(%s)", worker)
            assert caught.value.sqlstate == "TL012"
        finally:
            run(conn, "reset role")
            run(conn, f"drop role {role}")
