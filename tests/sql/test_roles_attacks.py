"""Known ways around SECURITY DEFINER and views, tried for real by a role that may make things.

The attacker is a producer and a worker, owns a schema, may make temporary tables. What it wants:
tasks of others, with their payloads; rights that it was not given; code that runs as the owner.
"""

from __future__ import annotations

import re
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from sql.support import (
    acting_as,
    call,
    claim,
    claim_one,
    enqueue,
    enqueue_many,
    fail,
    fingerprint,
    logged_in_as,
    one,
    refused,
    register,
    rows,
    run,
    task,
    tick,
)

PARTS = ("message_primary", "message_detail", "message_hint", "context")


@pytest.fixture
def attacker(conn, person):
    name = person("tasklib_producer", "tasklib_worker")
    run(conn, f"create schema evil authorization {name}")
    run(conn, f"grant create, temporary on database {conn.info.dbname} to {name}")
    yield name
    run(conn, f"revoke all on database {conn.info.dbname} from {name}")


@pytest.fixture
def victim(conn, person):
    """A task of somebody else, and one of the superuser's; both say hush."""
    with acting_as(conn, person("tasklib_producer")):
        theirs = enqueue(conn, kwargs={"secret": "hush"})
    return theirs, enqueue(conn, kwargs={"secret": "hush"})


# --- the attacker's code in the session of somebody with more rights

STEAL = """
create table evil.loot (what text);
create table evil.seen (who text, session text);
create function evil.steal() returns int language plpgsql security {security} as $$
begin
  insert into evil.seen values (current_user, session_user);
  insert into evil.loot select kwargs::text from tasklib.list();
  insert into evil.loot select kwargs::text from tasklib.get('{theirs}');
  insert into evil.loot select kwargs::text from tasklib.get('{supers}');
  perform {call};
  return 1;
exception
  when sqlstate 'TL003' or sqlstate 'TL012' or sqlstate 'TL011' then
    insert into evil.seen values (sqlstate, session_user);
    return 1;
end $$;
create function evil.harmless(int) returns int language plpgsql immutable as $$
begin
  perform evil.steal();
  return $1;
end $$;
create table evil.bait (n int);
"""
# What a superuser does all day, or autovacuum for it; each runs the code as the table's owner.
DEPUTIES = {
    "analyze": ("create index on evil.bait (evil.harmless(n))", "analyze evil.bait"),
    "reindex": ("create index on evil.bait (evil.harmless(n))", "reindex table evil.bait"),
    "refresh": (
        "create materialized view evil.look as select evil.harmless(1) with no data",
        "refresh materialized view evil.look",
    ),
    "direct refresh": (
        "create materialized view evil.look as"
        " select id, kwargs::text as what from tasklib.list() with no data",
        "refresh materialized view evil.look",
    ),
    "definer function": ("select 1", "select evil.steal()"),
    "trigger": (
        "create function evil.fire() returns trigger language plpgsql security definer as"
        " $$ begin perform evil.steal(); return new; end $$;"
        " create trigger fire after insert on evil.bait for each row execute function evil.fire()",
        "insert into evil.bait values (2)",
    ),
}
ATTEMPTS = (
    "tasklib.heartbeat('{worker}')",
    "tasklib.claim('{worker}')",
    "tasklib.complete('{held}', '{worker}', 1)",
    "tasklib.finish('{worker}', '{{{held}}}', '{{1}}')",
    "tasklib.cancel('{theirs}')",
    "tasklib.retry('{theirs}')",
    "tasklib.reschedule('{supers}', delay => '1 hour')",
    "tasklib.enqueue('forbidden')",
    'tasklib.enqueue_many(\'[{{"name": "forbidden"}}]\')',
    "tasklib.register_worker()",
    "tasklib.deregister_worker('{worker}')",
)


@pytest.mark.parametrize("deputy", DEPUTIES)
def test_code_that_runs_in_a_superusers_session_gains_no_right(conn, attacker, victim, deputy):
    theirs, supers = victim
    worker = register(conn, "t")
    enqueue(conn, priority=9)
    held = claim_one(conn, worker).id
    for action in ("enqueue", "claim"):
        call(conn, "set_rule", role=attacker, action=action, queue="mine", name="mine")
    prepare, tempt = DEPUTIES[deputy]
    for attempt in ATTEMPTS:
        names = {"theirs": theirs, "supers": supers, "worker": worker, "held": held}
        text = STEAL.format(**names, call=attempt.format(**names), security="definer")
        with logged_in_as(conn, attacker):
            run(conn, "drop schema evil cascade; create schema evil")
            run(conn, text)
            run(conn, prepare)
            if deputy in ("analyze", "reindex"):
                run(conn, "insert into evil.bait values (1)")
                run(conn, "delete from evil.loot; delete from evil.seen")
        before = fingerprint(conn)
        run(conn, tempt)
        if deputy == "direct refresh":
            assert run(conn, "select * from evil.look") == []
        else:
            # it ran, as the attacker, within the superuser's session, and was refused
            seen = run(conn, "select * from evil.seen")
            assert seen, attempt
            assert all(row.session == conn.info.user for row in seen)
            assert {row.who for row in seen} & {"TL003", "TL011", "TL012"}, attempt
        assert run(conn, "select * from evil.loot") == []
        assert fingerprint(conn) == before


def test_a_function_of_somebody_else_acts_for_its_owner(conn, person, attacker):
    """What is called in a SECURITY DEFINER function is its owner's doing, whoever called that."""
    me = person("tasklib_producer")
    with logged_in_as(conn, attacker):
        run(
            conn,
            "create function evil.take(id uuid) returns setof jsonb language sql security definer"
            " as $$ select kwargs from tasklib.get(id) $$;"
            " create function evil.put() returns uuid language sql security definer"
            " as $$ select tasklib.enqueue('t') $$;"
            f" grant usage on schema evil to {me}",
        )
    with logged_in_as(conn, me):
        mine = enqueue(conn, kwargs={"secret": "hush"})
        assert run(conn, "select * from evil.take(%s)", mine) == []
        put = one(conn, "select evil.put()")
    assert task(conn, put).enqueued_by == attacker


# --- pretending to be somebody


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("23514", "'{victim}'"),
        ("23514", "'{victim}'::text"),
        ("23514", "''"),
        ("23514", "null"),
        ("23514", "(select null::text)"),
        ("23514", "'{victim}'::tasklib.caller"),
        ("23514", "(array['{victim}']::tasklib.caller[])[1]"),
        ("23514", "(array[null]::tasklib.caller[])[1]"),
        ("23514", "session_user"),
        ("TL003", "(select current_user::tasklib.caller where false)"),
        ("TL003", "(array[]::tasklib.caller[])[1]"),
        ("TL003", "current_user"),
    ],
)
def test_nobody_can_say_to_be_somebody_else(conn, person, attacker, victim, code, value):
    """An id is given that only its owner may cancel, and the name of that owner."""
    theirs, _ = victim
    owner = task(conn, theirs).enqueued_by
    text = f"select tasklib.cancel('{theirs}', caller => {value.format(victim=owner)})"
    with acting_as(conn, attacker), refused(code, case=value):
        run(conn, text)


@pytest.mark.parametrize(
    "text",
    [
        "create table evil.t (c tasklib.caller)",
        "create table evil.t (c tasklib.caller[])",
        "create table evil.t as select current_user::tasklib.caller as c",
        "select current_user::tasklib.caller as c into evil.t",
        "create temp table t (c tasklib.caller)",
        "create view evil.t as select current_user::tasklib.caller as c",
        "create materialized view evil.t as select current_user::tasklib.caller as c",
        "create type evil.t as (c tasklib.caller)",
        "create domain evil.t as tasklib.caller",
        "create function evil.f(c tasklib.caller) returns int language sql as 'select 1'",
        "create function evil.f() returns tasklib.caller language sql as"
        " 'select current_user::tasklib.caller'",
        "create function evil.f(out c tasklib.caller) language sql as"
        " 'select current_user::tasklib.caller'",
    ],
)
def test_nobody_can_keep_a_proof_of_who_called(conn, attacker, text):
    with logged_in_as(conn, attacker), refused("42501", "permission denied for type", case=text):
        run(conn, text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("42501", "set role {other}"),
        ("42501", "set local role {other}"),
        ("42501", "select set_config('role', '{other}', false)"),
        ("42501", "set session_replication_role = replica"),
        ("42501", "do $$ begin end $$; set plpgsql.variable_conflict = use_column"),
        ("42501", "alter function tasklib.cancel reset search_path"),
        ("42501", "alter function tasklib.cancel security invoker"),
        ("42501", "create function tasklib.cancel(text) returns text language sql as 'select 1'"),
        ("42501", "create table tasklib.mine (n int)"),
        ("42501", "alter domain tasklib.caller drop constraint caller_is_current_user"),
        ("42501", "create cast (text as tasklib.task_spec) with inout"),
        ("42501", "grant tasklib_admin to current_user"),
        ("42501", "select * from tasklib.ready for update"),
        ("42501", "comment on schema tasklib is 'mine'"),
        ("42501", "create trigger t after insert on tasklib.task execute function f()"),
    ],
)
def test_what_the_server_refuses(conn, person, attacker, code, text):
    other = person("tasklib_admin")
    with logged_in_as(conn, attacker), refused(code, case=text):
        run(conn, text.format(other=other))


def test_a_function_cannot_change_the_role_on_its_way(conn, person, attacker, victim):
    theirs, _ = victim
    for setting in (
        "perform set_config('role', 'tasklib_admin', true);",
        "set local role tasklib_admin;",
        "perform set_config('session_authorization', 'tasklib_admin', true);",
    ):
        with logged_in_as(conn, attacker):
            run(
                conn,
                "create or replace function evil.f() returns text language plpgsql"
                f" security definer as $$ begin {setting}"
                f" return tasklib.cancel('{theirs}'); end $$",
            )
            with refused("42501", case=setting):
                run(conn, "select evil.f()")
    assert task(conn, theirs).state == "pending"


GAMES = [
    *("set row_security = off", "set check_function_bodies = off", "set array_nulls = off"),
    *("set standard_conforming_strings = off", "set backslash_quote = on"),
    *("set quote_all_identifiers = on", "set transform_null_equals = on"),
    *("set intervalstyle = 'iso_8601'", "set timezone = 'Asia/Tokyo'"),
    *("set bytea_output = 'escape'", "set extra_float_digits = -15", "set xmloption = document"),
    *("set plan_cache_mode = force_custom_plan", "set enable_indexscan = off"),
    *("set default_transaction_isolation = 'serializable'", "set default_tablespace = ''"),
    *("set search_path = evil, pg_temp, pg_catalog", "set escape_string_warning = off"),
    *("set plpgsql.extra_errors = 'shadowed_variables'", "set client_min_messages = debug1"),
]


@pytest.mark.parametrize("game", GAMES)
def test_a_setting_of_the_session_changes_nothing(conn, make_conn, attacker, victim, game):
    theirs, _ = victim
    call(conn, "set_rule", role=attacker, action="enqueue", queue="mine")
    call(conn, "set_rule", role=attacker, action="claim", queue="mine")
    session = make_conn()
    run(session, f"set session authorization {attacker}")
    run(session, game)
    mine = enqueue(session, "t", queue="mine", kwargs={"a": 1}, concurrency_key="k")
    enqueue_many(session, {"name": "t", "queue": "mine", "delay": 1, "tags": {"a": 1}})
    with refused("TL012"):
        enqueue(session, "t")
    with refused("TL003"):
        call(session, "cancel", id=theirs)
    assert rows(session, "get", id=theirs) == []
    assert {row.id for row in rows(session, "list", name="t", queue="mine")} >= {mine}
    worker = register(session, "t")
    with refused("TL012"):
        claim(session, worker)
    assert claim_one(session, worker, ["mine"]).id == mine
    assert task(conn, mine).queue == "mine"


def test_a_caller_of_null_is_nobody(conn, attacker):
    nobody = "(select current_user::tasklib.caller where false)"
    enqueue(conn)
    for text in ("enqueue('t', caller => {})", "register_worker(caller => {})"):
        with logged_in_as(conn, attacker), pytest.raises(psycopg.Error):
            run(conn, "select tasklib." + text.format(nobody))
    call(conn, "set_rule", role="public", action="enqueue", queue="mine")
    with logged_in_as(conn, attacker), refused("TL001"):
        run(conn, f"select tasklib.enqueue('t', queue => 'mine', caller => {nobody})")
    with logged_in_as(conn, attacker):
        assert run(conn, f"select * from tasklib.list(caller => {nobody})") == []
    assert one(conn, "select count(*) from tasklib.task") == 1


# --- names in front of the server's own

HIJACKS = [
    "create temp table task (id uuid, name text)",
    "create temp table ready (task_id uuid, lane bigint, pos bigint)",
    "create temp table rule (role text, action text, queue text, name text)",
    "create temp table pg_proc (proname name)",
    "create temp table pg_roles (rolname name, rolsuper boolean)",
    "create temp table config (shard int)",
    "create temp view tasks as select null::uuid as id",
    "create function pg_temp.clock_timestamp() returns timestamptz language sql"
    " as $$ select 'epoch'::timestamptz $$",
    "create function pg_temp.octet_length(text) returns int language sql as $$ select 0 $$",
    "create function pg_temp.gen_random_uuid() returns uuid language sql"
    " as $$ select '00000000-0000-0000-0000-000000000000'::uuid $$",
    "create function pg_temp.jsonb_typeof(jsonb) returns text language sql"
    " as $$ select 'object' $$",
    "create function pg_temp.pg_has_role(oid, oid, text) returns boolean language sql"
    " as $$ select true $$",
    "create function {schema}.pg_has_role(oid, oid, text) returns boolean language sql"
    " as $$ select true $$",
    "create function {schema}.starts_with(text, text) returns boolean language sql"
    " as $$ select true $$",
    "create function {schema}.octet_length(text) returns int language sql as $$ select 0 $$",
    "create function {schema}.octet_length(character varying) returns int language sql"
    " as $$ select 0 $$",
    "create function {schema}.clock_timestamp() returns timestamptz language sql"
    " as $$ select 'epoch'::timestamptz $$",
    "create function {schema}.lesser(interval, interval) returns boolean language plpgsql"
    " as $$ begin raise exception 'hijacked'; end $$",
    "create operator {schema}.< (leftarg = interval, rightarg = interval,"
    " function = {schema}.lesser)",
    "create function {schema}.same(text, text) returns boolean language plpgsql"
    " as $$ begin raise exception 'hijacked'; end $$",
    "create operator {schema}.= (leftarg = text, rightarg = text, function = {schema}.same)",
    "create function {schema}.equal(text, name) returns boolean language sql as $$ select true $$",
    "create operator {schema}.= (leftarg = text, rightarg = name, function = {schema}.equal)",
    "create table {schema}.task (id uuid)",
    "create domain {schema}.caller as text",
    "create type {schema}.task_spec as (name text)",
]


@pytest.mark.parametrize("schema", ["evil", "public"])
def test_a_search_path_full_of_traps_changes_nothing(conn, make_conn, attacker, victim, schema):
    theirs, _ = victim
    if schema == "public":
        run(conn, f"grant create on schema public to {attacker}")
    call(conn, "set_rule", role=attacker, action="enqueue", queue="mine")
    session = make_conn()
    run(session, f"set session authorization {attacker}")
    for text in HIJACKS:
        run(session, text.format(schema=schema))
    run(session, f"set search_path = {schema}, pg_temp, pg_catalog, tasklib")
    task_id = enqueue(
        session, kwargs={"a": 1}, delay="0", tags={"a": 1}, unique_key="k", queue="mine"
    )
    with refused("TL002"):
        enqueue(session, queue="x" * 200)
    with refused("TL012"):
        enqueue(session)
    with refused("TL003"):
        call(session, "cancel", id=theirs)
    with refused("23514"):
        run(
            session,
            "select tasklib.cancel(%s, caller => %s::text)",
            theirs,
            task(conn, theirs).enqueued_by,
        )
    worker = register(session)
    held = claim(session, worker, 5, ["mine"])
    assert [h.id for h in held] == [task_id]
    assert one(session, "select * from tasklib.finish(%s, %s, %s)", worker, [task_id], [1]) == "ok"
    tick(session)
    assert task(conn, task_id).state == "completed"


# --- what views tell


def test_a_leaky_function_on_a_view_sees_no_column_that_was_not_granted(conn, person, victim):
    observer = person("tasklib_observer")
    run(conn, f"create schema spy authorization {observer}")
    worker = register(conn)
    fail(conn, worker, claim_one(conn, worker), error="hush")
    with logged_in_as(conn, observer):
        run(
            conn,
            "create table spy.seen (what text);"
            "create function spy.look(anyelement) returns boolean language plpgsql cost 0.0001 as"
            " $$ begin insert into spy.seen values ($1::text); return true; end $$",
        )
        run(conn, "select id from tasklib.tasks where spy.look(name)")
        assert one(conn, "select count(*) from spy.seen where what = 't'") == 2
        for column in ("kwargs", "result", "error", "tags", "headers", "unique_key", "tasks"):
            for text in (
                "select id from tasklib.tasks where spy.look({0}::text)",
                "select count({0}) from tasklib.tasks",
                "select id from tasklib.tasks order by {0}::text",
                "select id from tasklib.tasks group by id, {0}::text",
                "create view spy.it as select {0}::text as it from tasklib.tasks;"
                " select * from spy.it",
            ):
                with refused("42501", case=(column, text)):
                    run(conn, text.format(column))
        with refused("42501"):
            run(conn, "select * from tasklib.tasks join tasklib.failures using (error)")
        with refused("42501"):
            run(conn, "select row_to_json(tasks) from tasklib.tasks")
        with refused("42501"):
            run(conn, "table tasklib.failures")


@pytest.mark.parametrize(
    "group", ["tasklib_producer", "tasklib_worker", "tasklib_observer", "tasklib_admin"]
)
def test_statistics_of_columns_are_nobodys(conn, person, group):
    for _ in range(3):
        enqueue_many(conn, *[{"name": "t", "kwargs": {"secret": "hush"}}] * 200)
    run(conn, "analyze tasklib.task")
    assert one(conn, "select count(*) from pg_stats where schemaname = 'tasklib'") > 0
    with logged_in_as(conn, person(group)):
        assert run(conn, "select * from pg_stats where schemaname = 'tasklib'") == []
        assert run(conn, "select * from pg_stats_ext where schemaname = 'tasklib'") == []
        with refused("42501"):
            run(conn, "select * from pg_statistic")


def test_every_view_shows_an_observer_no_payload(conn, person):
    """Whatever column a view may get: what nobody should see is in none that is granted."""
    word = uuid4().hex
    worker = register(conn)
    ids = [
        enqueue(
            conn,
            kwargs={"a": word},
            tags={"a": word},
            headers={"a": word},
            unique_key=f"{n}{word}",
            concurrency_key=f"{n}{word}",
        )
        for n in range(4)
    ]
    first, second, third = claim(conn, worker, 3)
    run(conn, "select tasklib.set_progress(%s, %s, 1, 0.5, %s)", first.id, worker, word)
    run(
        conn,
        "select tasklib.complete(%s, %s, 1, %s)",
        second.id,
        worker,
        Jsonb({"value": word}),
    )
    fail(conn, worker, third, error=word, retry=False)
    shown = ""
    with acting_as(conn, person("tasklib_observer")):
        for view, column in run(
            conn,
            "select relname, attname from pg_class join pg_attribute on attrelid = pg_class.oid"
            " where relnamespace = 'tasklib'::regnamespace and relkind = 'v' and attnum > 0"
            " and has_column_privilege(current_user, pg_class.oid, attnum, 'select')",
        ):
            shown += str(run(conn, f"select {column} from tasklib.{view}"))
    assert str(ids[0]) in shown
    assert word not in shown


# --- what errors and notifications tell


def test_no_error_shows_a_payload(conn, make_conn, person, attacker):
    word = uuid4().hex
    worker = register(conn)
    with acting_as(conn, person("tasklib_producer")):
        held = enqueue(conn, kwargs={"a": word}, tags={"a": word}, headers={"a": word})
        taken = enqueue(conn, kwargs={"a": word}, unique_key="k", concurrency_key=word)
    claim(conn, worker, 1)
    session = make_conn()
    run(session, f"set session authorization {attacker}")
    mine = register(session)
    shown = ""
    for text in (
        f"select tasklib.cancel('{held}')",
        f"select tasklib.retry('{held}')",
        f"select tasklib.reschedule('{taken}', priority => 1)",
        f"select tasklib.complete('{held}', '{worker}', 1)",
        f"select tasklib.complete('{held}', '{mine}', 1)",
        f"select tasklib.fail('{held}', '{mine}', 1)",
        f"select tasklib.snooze('{held}', '{mine}', 1, '1 s')",
        f"select tasklib.set_progress('{held}', '{mine}', 1, 2)",
        f"select tasklib.finish('{mine}', '{{{held},{held}}}', '{{1,1}}')",
        f"select tasklib.heartbeat('{worker}')",
        f"select * from tasklib.task where id = '{held}'",
        f"insert into tasklib.unique_key values ('default', 'k', '{held}')",
        "select tasklib.enqueue('t', unique_key => 'k', caller => 'x')",
    ):
        with pytest.raises(psycopg.Error) as caught:
            run(session, text)
        shown += "".join(str(getattr(caught.value.diag, part)) for part in PARTS)
    assert "TL0" not in word
    assert word not in shown


def test_a_notification_tells_ids_of_workers_only(conn, make_conn, attacker):
    worker = register(conn, "t")
    rows(conn, "idle", worker_id=worker, for_long=True)
    listener = make_conn()
    run(listener, f"set session authorization {attacker}")
    run(listener, "listen tasklib")
    enqueue(conn, kwargs={"secret": "hush"})
    (told,) = listener.notifies(timeout=5, stop_after=1)
    assert re.fullmatch(r"[0-9a-f-]{36}", told.payload)
    with acting_as(conn, attacker), refused("TL011"):
        rows(conn, "heartbeat", worker_id=told.payload)


# --- the catalog


def test_entry_functions_belong_to_the_owner_of_the_schema_and_run_no_text(conn):
    functions = run(
        conn,
        "select proname, prosrc, proowner = nspowner as is_owners, prosecdef, provolatile,"
        " lanname from pg_proc join pg_namespace on pg_namespace.oid = pronamespace"
        " join pg_language on pg_language.oid = prolang where nspname = 'tasklib'",
    )
    for function in functions:
        assert function.is_owners, function.proname
        assert function.lanname in ("plpgsql", "sql"), function.proname
        # listen takes no parameter; the name is checked, and quoted
        text = function.prosrc.replace("execute format('listen %I', offer.channel);", "")
        assert not re.search(r"\bexecute\b|\bformat\(", text, re.I), function.proname
        assert not re.search(r"\bquery_to_xml|\bdblink|\blo_|\bpg_read_", function.prosrc)


def test_who_calls_is_asked_wherever_it_counts(conn):
    """A function that looks at what belongs to roles is told the caller by the caller."""
    asking = run(
        conn,
        "select proname from pg_proc where pronamespace = 'tasklib'::regnamespace"
        " and prosrc ~ '_is_admin|_own_task|_check_enqueue|enqueued_by' and prosecdef"
        " and not 'tasklib.caller'::regtype = any (proargtypes::oid[])",
    )
    assert asking == []


def test_public_may_use_no_type_of_ours(conn):
    granted = run(
        conn,
        "select typname from pg_type left join pg_class on pg_class.oid = typrelid,"
        " aclexplode(coalesce(typacl, acldefault('T', typowner))) as acl"
        " where typnamespace = 'tasklib'::regnamespace and acl.grantee = 0"
        " and typtype in ('c', 'd') and coalesce(relkind, 'c') = 'c'",
    )
    assert granted == []
