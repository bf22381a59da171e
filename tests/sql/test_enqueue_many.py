"""enqueue_many: thousands in one call, one row each, all or nothing."""

from __future__ import annotations

from sql.support import (
    claim,
    enqueue,
    enqueue_many,
    one,
    refused,
    register,
    rows,
    run,
    task,
    transaction,
)


def test_one_row_each_in_the_order_of_the_input(conn):
    worker = register(conn)
    made = enqueue_many(conn, *({"name": "t", "kwargs": {"n": n}} for n in range(100)))

    assert all(row.created for row in made)
    held = claim(conn, worker, 100)
    assert [h.id for h in held] == [row.id for row in made]
    assert [h.kwargs["n"] for h in held] == list(range(100))


def test_ids_ascend_with_the_input(conn):
    made = [row.id for row in enqueue_many(conn, *[{"name": "t"}] * 5000)]

    assert made == sorted(made)
    assert len(set(made)) == 5000


def test_five_thousand_of_all_kinds(conn):
    worker = register(conn)
    kinds = [
        {"name": "t"},
        {"name": "t", "delay": 3600},
        {"name": "t", "priority": 5, "tags": {"n": 1}},
        {"name": "t", "concurrency_key": "k", "queue": "mail"},
        {"name": "t", "scheduled_at": "1999-01-01"},
    ]
    enqueue_many(conn, *kinds * 1000)

    counts = {
        table: one(conn, f"select count(*) from tasklib.{table}")
        for table in ("task", "ready", "delayed", "tag")
    }
    assert counts == {"task": 5000, "ready": 4000, "delayed": 1000, "tag": 1000}
    assert len(claim(conn, worker, 5000)) == 3000


def test_the_same_options_as_enqueue(conn):
    options = {
        "kwargs": {"a": 1},
        "queue": "mail",
        "priority": -3,
        "max_retries": 5,
        "timeout_seconds": 1.5,
        "tags": {"b": "c"},
        "unique_key": "u",
        "concurrency_key": "c",
        "headers": {"h": 1},
        "backoff": {"jitter": 1},
    }
    (many,) = enqueue_many(conn, {"name": "t", **options, "delay": 60})
    single = enqueue(conn, "t", **{**options, "unique_key": "v", "delay": "60 seconds"})

    a, b = task(conn, many.id), task(conn, single)
    same = set(a._fields) - {"id", "created_at", "scheduled_at", "unique_key"}
    assert {f: getattr(a, f) for f in same} == {f: getattr(b, f) for f in same}
    assert a.scheduled_at - a.created_at == b.scheduled_at - b.created_at


def test_a_delay_is_seconds_or_an_interval(conn):
    made = enqueue_many(
        conn,
        {"name": "t", "delay": 90},
        {"name": "t", "delay": 90.0},
        {"name": "t", "delay": "1 minute 30 seconds"},
        {"name": "t", "delay": "PT90S"},
    )

    for row in made:
        seen = task(conn, row.id)
        assert (seen.scheduled_at - seen.created_at).total_seconds() == 90


def test_null_is_as_good_as_left_out(conn):
    names = ["kwargs", "queue", "priority", "delay", "scheduled_at", "max_retries", "tags"]
    names += ["timeout_seconds", "unique_key", "concurrency_key", "headers", "unique_until"]
    (made,) = enqueue_many(conn, {"name": "t", **dict.fromkeys([*names, "backoff"])})

    seen = task(conn, made.id)
    assert (seen.kwargs, seen.queue, seen.priority) == ({}, "default", 0)


def test_nothing_in_nothing_out(conn):
    assert enqueue_many(conn) == []


def test_all_or_nothing(conn):
    good = [{"name": "t", "tags": {"a": 1}, "unique_key": "k"}, {"name": "t", "delay": 5}]
    with refused("TL001", "priority") as error:
        enqueue_many(conn, *good, {"name": "t", "priority": 9999}, {"name": ""})

    assert "tasks[2]" in str(error[0].diag.message_detail)
    for table in ("task", "ready", "delayed", "parked", "tag", "unique_key"):
        assert one(conn, f"select count(*) from tasklib.{table}") == 0


def test_an_error_in_a_savepoint_leaves_the_transaction_usable(conn):
    with transaction(conn):
        enqueue(conn)
        run(conn, "savepoint s")
        with refused("TL001"):
            enqueue_many(conn, {"name": ""})
        run(conn, "rollback to savepoint s")
        enqueue_many(conn, {"name": "t"})

    assert one(conn, "select count(*) from tasklib.tasks") == 2


def test_names_with_defaults_and_without_in_one_batch(conn):
    register(conn, {"name": "known", "queue": "mail", "priority": 4})
    known, unknown = enqueue_many(conn, {"name": "known"}, {"name": "unknown"})

    assert (task(conn, known.id).queue, task(conn, known.id).priority) == ("mail", 4)
    assert task(conn, unknown.id).queue == "default"


def test_called_as_a_value_it_can_feed_a_statement(conn):
    made = run(
        conn,
        "select id from tasklib.enqueue_many((select jsonb_agg(jsonb_build_object('name', 't',"
        " 'kwargs', jsonb_build_object('n', n))) from generate_series(1, 3) as n))",
    )

    assert len(made) == 3
    assert rows(conn, "get", id=made[2].id)[0].kwargs == {"n": 3}
