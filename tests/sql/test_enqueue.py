"""enqueue inserts one task in the caller's transaction, with what was asked for and no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg.types.json import Jsonb

from sql.support import (
    claim,
    claim_one,
    enqueue,
    one,
    refused,
    register,
    run,
    state,
    task,
    transaction,
)


def test_a_name_is_enough(conn):
    task_id = one(conn, "select tasklib.enqueue('app.send_email')")

    seen = task(conn, task_id)
    assert (seen.name, seen.queue, seen.state, seen.kwargs) == (
        "app.send_email",
        "default",
        "pending",
        {},
    )
    assert (seen.priority, seen.max_retries, seen.retry_count, seen.attempt) == (0, 3, 0, 0)
    assert (seen.result, seen.error, seen.scheduled_at, seen.started_at) == (None,) * 4
    assert (seen.timeout_seconds, seen.tags, seen.headers, seen.worker_id) == (None,) * 4


def test_every_option_is_stored(conn):
    given = {
        "kwargs": {"to": "a@b.c", "deep": [{"n": 1.5}, None, True]},
        "queue": "mail",
        "priority": 7,
        "delay": timedelta(hours=1),
        "max_retries": 9,
        "timeout_seconds": 2.5,
        "tags": {"batch": "w1"},
        "unique_key": "u",
        "concurrency_key": "c",
        "headers": {"traceparent": "00-1"},
        "unique_until": "started",
        "backoff": {"base_seconds": 1},
    }
    seen = task(conn, enqueue(conn, "t", **given))

    for option in set(given) - {"delay", "unique_until", "backoff"}:
        assert getattr(seen, option) == given[option]
    assert seen.scheduled_at - seen.created_at == timedelta(hours=1)


def test_the_worker_gets_what_was_enqueued(conn):
    worker = register(conn)
    enqueue(
        conn,
        kwargs={"a": [1, "ü"]},
        tags={"x": 1},
        headers={"h": "1"},
        timeout_seconds=9,
        priority=2,
    )

    held = claim_one(conn, worker)
    assert (held.kwargs, held.tags, held.headers) == ({"a": [1, "ü"]}, {"x": 1}, {"h": "1"})
    assert (held.timeout_seconds, held.priority, held.max_retries) == (9, 2, 3)


def test_text_parameters_do(conn):
    """Some drivers send nothing else."""
    seen = task(
        conn,
        one(
            conn,
            "select tasklib.enqueue(name => %s::text::text, kwargs => %s, priority => %s,"
            " delay => %s, timeout_seconds => %s)",
            "t",
            '{"a": 1}',
            "5",
            "1 hour",
            "1.5",
        ),
    )
    assert (seen.kwargs, seen.priority, seen.timeout_seconds) == ({"a": 1}, 5, 1.5)


def test_a_task_exists_when_its_transaction_commits(conn, make_conn):
    other, worker = make_conn(), register(conn)
    with transaction(other):
        task_id = enqueue(other)
        assert claim(conn, worker) == []

    assert claim_one(conn, worker).id == task_id


def test_a_task_of_a_rolled_back_transaction_never_was(conn):
    with transaction(conn, commit=False):
        enqueue(conn, delay="1 hour", tags={"a": 1}, unique_key="k")
        enqueue(conn, concurrency_key="c")

    for table in ("task", "ready", "delayed", "parked", "tag", "unique_key"):
        assert one(conn, f"select count(*) from tasklib.{table}") == 0


def test_a_trigger_can_enqueue(conn):
    run(conn, "create table document (path text)")
    run(
        conn,
        "create function enqueue_document() returns trigger language plpgsql as $$ begin"
        " perform tasklib.enqueue('app.index', jsonb_build_object('path', new.path));"
        " return new; end $$",
    )
    run(
        conn,
        "create trigger document_added after insert on document"
        " for each row execute function enqueue_document()",
    )
    run(conn, "insert into document values ('/a'), ('/b')")

    assert [row.kwargs["path"] for row in claim(conn, register(conn), 5)] == ["/a", "/b"]


def test_a_scheduled_time_is_kept_exactly(conn):
    at = datetime.now(UTC) + timedelta(days=3, microseconds=1)
    seen = task(conn, enqueue(conn, scheduled_at=at))

    assert (seen.scheduled_at, seen.state) == (at, "pending")


@pytest.mark.parametrize("past", [{"scheduled_at": "1999-01-01"}, {"delay": "0"}])
def test_a_time_in_the_past_means_now(conn, past):
    worker = register(conn)
    task_id = enqueue(conn, **past)

    assert claim_one(conn, worker).id == task_id


def test_the_time_is_that_of_the_call_and_not_of_the_transaction(conn):
    with transaction(conn):
        run(conn, "select pg_sleep(0.05)")
        task_id = enqueue(conn)
        assert task(conn, task_id).created_at > one(conn, "select now() + interval '50 ms'")


def test_null_takes_the_default_of_an_option(conn):
    names = ["queue", "priority", "delay", "scheduled_at", "max_retries", "timeout_seconds"]
    names += ["tags", "unique_key", "concurrency_key", "headers", "backoff"]
    seen = task(conn, enqueue(conn, **dict.fromkeys(names)))

    assert (seen.queue, seen.priority, seen.max_retries) == ("default", 0, 3)


def test_a_task_gets_the_defaults_that_its_name_was_registered_with(conn):
    worker = register(
        conn,
        {
            "name": "t",
            "queue": "mail",
            "priority": 5,
            "max_retries": 1,
            "timeout_seconds": 30,
        },
    )
    seen = task(conn, enqueue(conn))

    for shown in (seen, claim_one(conn, worker, ["mail"])):
        assert (shown.queue, shown.priority, shown.max_retries) == ("mail", 5, 1)
        assert shown.timeout_seconds == 30


def test_an_option_wins_over_the_default_of_its_name(conn):
    register(conn, {"name": "t", "queue": "mail", "priority": 5, "max_retries": 1})
    seen = task(conn, enqueue(conn, queue="fast", priority=0, max_retries=0))

    assert (seen.queue, seen.priority, seen.max_retries) == ("fast", 0, 0)


def test_a_new_default_counts_for_tasks_that_left_the_option_open(conn):
    task_id = enqueue(conn)
    worker = register(conn, {"name": "t", "max_retries": 7, "timeout_seconds": 5})

    held = claim_one(conn, worker)
    assert (held.id, held.max_retries, held.timeout_seconds) == (task_id, 7, 5)


def test_registering_a_bare_name_keeps_the_defaults_of_others(conn):
    register(conn, {"name": "t", "max_retries": 7})
    register(conn, "t")

    assert task(conn, enqueue(conn)).max_retries == 7


def test_registering_options_again_replaces_them(conn):
    register(conn, {"name": "t", "max_retries": 7, "priority": 3})
    register(conn, {"name": "t", "priority": 4})

    seen = task(conn, enqueue(conn))
    assert (seen.max_retries, seen.priority) == (3, 4)


def test_odd_names_are_names(conn):
    worker = register(conn)
    for name in ("Ünïcode.タスク", "a b", "'; drop schema tasklib; --", "%I", "null", "😀"):
        assert claim_one(conn, worker).name == name if enqueue(conn, name) else None


def test_kwargs_come_back_as_json_keeps_them(conn):
    kwargs = {"": "", "n": 10**30, "x": 1e-7, "s": 'q"\\\n\t☃', "l": [[], {}], "z": None}
    text = Jsonb(kwargs)
    task_id = one(conn, "select tasklib.enqueue('t', %s)", text)

    assert one(conn, "select kwargs = %s from tasklib.tasks where id = %s", text, task_id)


def test_a_time_zone_of_the_session_changes_nothing(conn):
    run(conn, "set timezone = 'Pacific/Kiritimati'; set intervalstyle = 'sql_standard'")
    run(conn, "set datestyle = 'German'; set extra_float_digits = 0")
    task_id = enqueue(conn, delay="1 hour", timeout_seconds=0.1)

    later = "extract(epoch from scheduled_at - created_at)"
    assert one(conn, f"select {later} from tasklib.task where id = %s", task_id) == 3600


def test_an_enqueue_in_an_older_snapshot_works(conn):
    run(conn, "begin isolation level serializable")
    task_id = enqueue(conn)
    run(conn, "commit")

    assert state(conn, task_id) == "pending"


def test_a_read_only_transaction_refuses(conn):
    run(conn, "begin read only")
    with refused("25006"):
        enqueue(conn)


def test_a_prepared_transaction_can_enqueue_where_nobody_is_notified(conn, make_conn):
    other, worker = make_conn(), register(conn)
    run(conn, "select tasklib.set_queue('default', notify => false)")
    run(conn, "select tasklib.idle(%s)", worker)
    run(other, "begin")
    task_id = enqueue(other)
    run(other, "prepare transaction 'two-phase'")
    assert claim(conn, worker) == []
    run(other, "commit prepared 'two-phase'")

    assert claim_one(conn, worker).id == task_id


def test_a_sleeping_worker_is_notified_once(conn, make_conn):
    listener, worker = make_conn(), register(conn)
    run(listener, "listen tasklib")
    enqueue(conn)
    assert not list(listener.notifies(timeout=0.05))
    claim(conn, worker)
    assert run(conn, "select tasklib.idle(%s, max_wait => '10 seconds')", worker) == [(10,)]
    enqueue(conn)
    enqueue(conn)

    assert len(list(listener.notifies(timeout=0.2))) == 1


def test_a_sleeping_worker_is_told_when_the_next_task_is_due(conn):
    worker = register(conn)
    assert one(conn, "select tasklib.idle(%s, max_wait => '10 seconds')", worker) == 10
    enqueue(conn, delay="4 seconds")

    assert 3 < one(conn, "select tasklib.idle(%s, max_wait => '10 seconds')", worker) <= 4
