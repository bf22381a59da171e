"""Each role may do its trade and nothing else; what a role enqueued is its own."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from sql.support import (
    acting_as,
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    enqueue_many,
    finish,
    one,
    refused,
    register,
    rows,
    run,
    state,
    tick,
)
from tasklib._migrate import install_script, migrate

PRODUCER = {"enqueue", "enqueue_many", "get", "list", "cancel", "retry", "reschedule"}
WORKER = {
    *("register_worker", "heartbeat", "cancel_requests", "claim", "idle", "offer", "complete"),
    "fail",
    *("finish", "release", "snooze", "set_progress", "deregister_worker", "tick", "sweep"),
}
ADMIN = {
    *("get", "list", "cancel", "retry", "reschedule", "purge", "set_queue", "pause", "resume"),
    *("deregister_worker", "tick", "sweep"),
    *("set_rule", "drop_rule", "set_limit", "drop_limit", "set_strict"),
}
EVERYBODY = {"shard_of", "version"}
MATRIX = {
    "tasklib_producer": PRODUCER | EVERYBODY,
    "tasklib_worker": WORKER | EVERYBODY,
    "tasklib_admin": ADMIN | EVERYBODY,
    "tasklib_observer": EVERYBODY,
}
VIEWS = {
    *("tasks", "failures", "queue_stats", "task_stats", "worker_health", "stuck_tasks"),
    *("tick_health", "rules", "limits"),
}


@pytest.mark.parametrize("role", [*MATRIX, "public"])
def test_each_role_may_call_the_functions_of_its_trade_and_no_other(conn, person, role):
    name = person() if role == "public" else person(role)
    allowed = run(
        conn,
        "select proname from pg_proc where pronamespace = 'tasklib'::regnamespace"
        " and has_function_privilege(%s, oid, 'execute')"
        " and has_schema_privilege(%s, 'tasklib', 'usage')",
        name,
        name,
    )

    assert {row.proname for row in allowed} == MATRIX.get(role, set())


def test_every_entry_function_is_somebodys(conn):
    entries = run(
        conn,
        "select proname from pg_proc where pronamespace = 'tasklib'::regnamespace"
        " and proname not like E'\\\\_%'",
    )

    assert {row.proname for row in entries} == set().union(*MATRIX.values())


@pytest.mark.parametrize("role", [*MATRIX, "public"])
def test_a_function_of_another_trade_is_refused(conn, person, role):
    name = person() if role == "public" else person(role)
    forbidden = set().union(*MATRIX.values()) - MATRIX.get(role, set())
    for function in sorted(forbidden):
        signature = one(
            conn,
            "select string_agg('null::' || format_type(type, null), ', ') from pg_proc,"
            " unnest(proargtypes) as type where proname = %s"
            " and type <> 'tasklib.caller'::regtype"
            " and pronamespace = 'tasklib'::regnamespace",
            function,
        )
        with acting_as(conn, name), refused("42501", case=function):
            run(conn, f"select tasklib.{function}({signature or ''})")


@pytest.mark.parametrize("role", [*MATRIX, "public"])
def test_nobody_has_rights_on_tables_sequences_or_helpers(conn, person, role):
    name = person() if role == "public" else person(role)
    seen = run(
        conn,
        "select relname from pg_class where relnamespace = 'tasklib'::regnamespace and case"
        " when relkind in ('r', 'v') then has_table_privilege(%(role)s, oid,"
        "   'select, insert, update, delete, truncate, references, trigger')"
        " when relkind = 'S' then has_sequence_privilege(%(role)s, oid, 'usage, select, update')"
        " end",
        role=name,
    )
    expected = {
        "tasklib_admin": VIEWS,
        # tasks and failures by column, without payloads
        "tasklib_observer": VIEWS - {"tasks", "failures"},
    }

    assert {row.relname for row in seen} == expected.get(role, set())


def test_public_holds_nothing(conn):
    granted = run(
        conn,
        "select proname, acl.* from pg_proc,"
        " aclexplode(coalesce(proacl, acldefault('f', proowner))) as acl"
        " where pronamespace = 'tasklib'::regnamespace and acl.grantee = 0 union all"
        " select relname, acl.* from pg_class, aclexplode(relacl) as acl"
        " where relnamespace = 'tasklib'::regnamespace and acl.grantee = 0 union all"
        " select nspname, acl.* from pg_namespace, aclexplode(nspacl) as acl"
        " where nspname = 'tasklib' and acl.grantee = 0",
    )
    assert granted == []


def test_an_observer_sees_no_payload(conn, person):
    worker = register(conn)
    enqueue(conn, kwargs={"secret": 1})
    outcome = {"state": "failed", "error": "secret", "retry": False}
    finish(conn, worker, [claim_one(conn, worker)], [outcome])
    with acting_as(conn, person("tasklib_observer")):
        assert run(conn, "select name, state from tasklib.tasks") == [("t", "failed")]
        assert len(run(conn, "select task_id, cause from tasklib.failures")) == 1
        assert len(run(conn, "select * from tasklib.queue_stats")) == 1
        for column in ("kwargs", "result", "error", "tags", "headers", "progress_message"):
            with refused("42501"):
                run(conn, f"select {column} from tasklib.tasks")
        with refused("42501"):
            run(conn, "select error from tasklib.failures")


def test_a_producer_sees_and_changes_only_what_its_own_role_enqueued(conn, person):
    me, you = person("tasklib_producer"), person("tasklib_producer")
    with acting_as(conn, me):
        mine = enqueue(conn, tags={"a": 1})
    with acting_as(conn, you):
        yours = enqueue(conn, tags={"a": 1})

    with acting_as(conn, me):
        assert [row.id for row in rows(conn, "list")] == [mine]
        for filters in ({"state": "pending"}, {"name": "t"}, {"tags": {"a": 1}}):
            assert [row.id for row in rows(conn, "list", **filters)] == [mine]
        assert len(rows(conn, "get", id=mine)) == 1
        assert rows(conn, "get", id=yours) == []
        for function in ("cancel", "retry", "reschedule"):
            with refused("TL003"):
                rows(conn, function, id=yours)
        assert call(conn, "cancel", id=mine) == "cancelled"
    assert state(conn, yours) == "pending"


@pytest.mark.parametrize("options", [{}, {"tags": {"a": 1}}, {"delay": 60}])
def test_a_task_belongs_to_the_role_that_enqueued_it(conn, person, options):
    me = person("tasklib_producer")
    with acting_as(conn, me):
        one_call = enqueue(conn, **options | ({"delay": "1 minute"} if "delay" in options else {}))
        ((batch, _),) = enqueue_many(conn, {"name": "t", **options})

        for task_id in (one_call, batch):
            assert rows(conn, "get", id=task_id)[0].enqueued_by == me


def test_an_admin_sees_and_changes_everything_but_does_not_enqueue_or_work(conn, person):
    with acting_as(conn, person("tasklib_producer")):
        task_id = enqueue(conn)
    with acting_as(conn, person("tasklib_admin")):
        assert [row.id for row in rows(conn, "list")] == [task_id]
        assert call(conn, "cancel", id=task_id) == "cancelled"
        assert call(conn, "retry", id=task_id) == "pending"
        with refused("42501"):
            enqueue(conn)


def test_a_unique_key_of_another_role_tells_its_id_and_no_more(conn, person):
    with acting_as(conn, person("tasklib_producer")):
        first = enqueue(conn, unique_key="k")
    with acting_as(conn, person("tasklib_producer")):
        assert enqueue(conn, unique_key="k") == first
        assert rows(conn, "get", id=first) == []


def test_one_workers_role_cannot_use_another_roles_worker(conn, person):
    me, you = person("tasklib_worker"), person("tasklib_worker")
    task_id = enqueue(conn)
    with acting_as(conn, me):
        worker = register(conn)
        held = claim_one(conn, worker)
    lease = {"id": task_id, "worker_id": worker, "attempt": 1}

    with acting_as(conn, you):
        for function, arguments in {
            "heartbeat": {"worker_id": worker},
            "claim": {"worker_id": worker},
            "idle": {"worker_id": worker},
            "offer": {"worker_id": worker},
            "complete": lease,
            "fail": lease,
            "snooze": {**lease, "delay": "1 s"},
            "set_progress": {**lease, "fraction": 1.0},
            "finish": {"worker_id": worker, "ids": [task_id], "attempts": [1]},
            "release": {"worker_id": worker, "ids": [task_id], "attempts": [1]},
            "deregister_worker": {"worker_id": worker},
        }.items():
            with refused("TL011", case=function):
                rows(conn, function, **arguments)
    with acting_as(conn, me):
        complete(conn, worker, held)


def test_an_admin_may_end_any_worker(conn, person):
    with acting_as(conn, person("tasklib_worker")):
        worker = register(conn)
    with acting_as(conn, person("tasklib_admin")):
        assert call(conn, "deregister_worker", worker_id=worker) == 0


def test_the_writer_is_the_role_that_was_set(conn, person):
    name = person("tasklib_producer")
    with acting_as(conn, name):
        task_id = enqueue(conn)
        enqueue_many(conn, {"name": "t"})

    assert one(conn, "select distinct enqueued_by from tasklib.tasks") == name
    assert one(conn, "select enqueued_by from tasklib.tasks where id = %s", task_id) == name


def test_functions_run_whatever_the_search_path_lacks(conn):
    run(conn, "set search_path = ''")
    worker = register(conn)
    enqueue_many(conn, {"name": "t", "delay": 1, "tags": {"a": 1}, "concurrency_key": "k"})
    assert claim(conn, worker) == []
    assert len(rows(conn, "list", tags={"a": 1})) == 1
    assert one(conn, "select shard_of from tasklib.shard_of(gen_random_uuid())") is not None


def bound_by_rules(session, person):
    """Let the owner, who is no superuser, set rules, and a producer run into them."""
    member, admin = person("tasklib_producer"), person("tasklib_admin")
    run(session, "reset session authorization")
    with acting_as(session, admin):
        call(session, "set_rule", role=member, action="enqueue", queue="mail")
        call(session, "set_limit", role="public", max_priority=5)
    with acting_as(session, member):
        mine = enqueue(session, queue="mail", priority=5)
        with refused("TL012"):
            enqueue(session)
        with refused("TL013"):
            enqueue(session, queue="mail", priority=6)
        assert [row.id for row in rows(session, "list")] == [mine]
    with acting_as(session, person("tasklib_producer")), refused("TL003"):
        call(session, "cancel", id=mine)


def test_a_plain_owner_of_a_database_can_install(conn, make_conn, server, person):
    """Managed services give CREATEROLE and no superuser; some not even that."""
    owner, database = f"owner_{uuid4().hex[:8]}", f"plain_{uuid4().hex[:8]}"
    run(conn, f"create role {owner} login nosuperuser nocreaterole")
    run(conn, f"create database {database} owner {owner}")
    try:
        with psycopg.connect(server.conninfo(database), autocommit=True) as session:
            run(session, f"set session authorization {owner}")
            assert one(session, "select current_setting('is_superuser')") == "off"
            session.execute(install_script().encode())
            task_id = enqueue(session)
            worker = register(session)
            complete(session, worker, claim_one(session, worker))
            assert state(session, task_id) == "completed"
            assert tick(session) is not None
            bound_by_rules(session, person)
    finally:
        run(conn, f"drop database {database} with (force)")
        run(conn, f"drop role {owner}")


def test_error_texts_show_no_rows_of_others(conn, person):
    with acting_as(conn, person("tasklib_producer")):
        task_id = enqueue(conn, kwargs={"secret": "hush"}, queue="secret-queue")
    with acting_as(conn, person("tasklib_producer")), refused("TL003") as error:
        call(conn, "cancel", id=task_id)
    shown = "".join(str(getattr(error[0].diag, part)) for part in PARTS)
    assert "hush" not in shown
    assert "secret" not in shown


PARTS = ("message_primary", "message_detail", "message_hint", "context")


def test_a_batch_of_another_roles_tasks_is_nobodys_business(conn, person):
    me = person("tasklib_worker")
    ids = [row.id for row in enqueue_many(conn, *[{"name": "t"}] * 2)]
    other = register(conn)
    claim(conn, other, 2)
    with acting_as(conn, me):
        worker = register(conn)
        outcomes = Jsonb([{"state": "cancelled"}] * 2)
        found = run(
            conn,
            "select * from tasklib.finish(%s, %s, %s, %s)",
            worker,
            ids,
            [1, 1],
            outcomes,
        )
    assert [row[0] for row in found] == ["stale", "stale"]


def test_migrating_again_takes_back_what_the_roles_should_not_have(conn, database):
    run(conn, "grant execute on function tasklib.purge(interval, text, int) to tasklib_worker")
    run(conn, "grant select on tasklib.task to tasklib_observer")
    run(conn, "grant select (kwargs) on tasklib.tasks to tasklib_observer")
    run(conn, "grant execute on function tasklib._erase(uuid[]) to public")
    migrate(database)
    assert not one(
        conn,
        "select has_function_privilege('tasklib_worker', 'tasklib.purge(interval, text, int)',"
        " 'execute') or has_table_privilege('tasklib_observer', 'tasklib.task', 'select')"
        " or has_column_privilege('tasklib_observer', 'tasklib.tasks', 'kwargs', 'select')"
        " or has_function_privilege('tasklib_worker', 'tasklib._erase(uuid[])', 'execute')",
    )
