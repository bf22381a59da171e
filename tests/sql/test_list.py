"""list: the newest tasks that match, newest first, in pages."""

from __future__ import annotations

import pytest
from psycopg.types.json import Jsonb

from sql.support import (
    call,
    claim,
    claim_one,
    enqueue,
    enqueue_many,
    fail,
    finish,
    one,
    register,
    rows,
    run,
)


@pytest.fixture
def every_kind(conn):
    """One task of each state and place, by what it is."""
    worker = register(conn, "t", "u", lease="24 hours")
    made = {}
    for kind, outcome in {
        "completed": None,
        "failed": {"state": "failed", "retry": False},
        "cancelled": {"state": "cancelled"},
        "retrying": {"state": "failed", "retry_in": 600},
    }.items():
        made[kind] = enqueue(conn)
        finish(conn, worker, [claim_one(conn, worker)], [outcome])
    made["running"] = enqueue(conn, concurrency_key="k")
    made["waiting"] = enqueue(conn, concurrency_key="k")
    claim(conn, worker, 2)
    made["ready"] = enqueue(conn, "u", tags={"a": 1, "b": "x"})
    made["delayed"] = enqueue(conn, delay="1 hour", tags={"a": 1})
    made["parked"] = enqueue(conn, "unknown", queue="mail", tags={"a": 2})
    return made


def listed(conn, made, **filters):
    kinds = {task_id: kind for kind, task_id in made.items()}
    return [kinds[row.id] for row in rows(conn, "list", **filters)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (
            {},
            "parked delayed ready waiting running retrying cancelled failed completed",
        ),
        ({"state": "pending"}, "parked delayed ready waiting"),
        ({"state": "running"}, "running"),
        ({"state": "completed"}, "completed"),
        ({"state": "failed"}, "retrying failed"),
        ({"state": "cancelled"}, "cancelled"),
        ({"name": "u"}, "ready"),
        ({"name": "unknown"}, "parked"),
        ({"name": "never"}, ""),
        ({"queue": "mail"}, "parked"),
        ({"queue": "never"}, ""),
        ({"tags": {"a": 1}}, "delayed ready"),
        ({"tags": {"a": 1, "b": "x"}}, "ready"),
        ({"tags": {"b": "x", "a": 2}}, ""),
        ({"tags": {"a": "1"}}, ""),
        ({"tags": {}}, "parked delayed ready"),
        ({"tags": {"a": 1}, "state": "pending", "name": "t"}, "delayed"),
        ({"name": "t", "state": "failed"}, "retrying failed"),
        ({"name": "t", "queue": "mail"}, ""),
        ({"state": "pending", "queue": "mail"}, "parked"),
        ({"max_rows": 2}, "parked delayed"),
        ({"state": "pending", "max_rows": 1}, "parked"),
    ],
)
def test_filters(conn, every_kind, filters, expected):
    assert listed(conn, every_kind, **filters) == expected.split()


def test_rows_are_those_of_the_view(conn, every_kind):
    view = run(conn, "select * from tasklib.tasks order by id desc")

    assert rows(conn, "list") == view
    assert [rows(conn, "get", id=row.id)[0] for row in view] == view


def test_a_task_whose_retry_is_due_is_pending(conn):
    worker = register(conn)
    task_id = enqueue(conn)
    fail(conn, worker, claim_one(conn, worker), retry_in="0")

    assert [row.id for row in rows(conn, "list", state="pending")] == [task_id]
    assert rows(conn, "list", state="failed") == []


@pytest.mark.parametrize(
    "filters", [{}, {"name": "t"}, {"state": "completed"}, {"tags": {"a": 1}}, {"queue": "default"}]
)
def test_pages_cover_everything_once(conn, filters):
    worker = register(conn)
    made = enqueue_many(conn, *[{"name": "t", "tags": {"a": 1}}] * 25)
    finish(conn, worker, claim(conn, worker, 25))
    seen, before = [], None
    while page := rows(conn, "list", **filters, max_rows=10, before=before):
        seen += [row.id for row in page]
        before = page[-1].id

    assert seen == [row.id for row in reversed(made)]


def test_tags_of_every_json_type_are_found(conn):
    for value in ("x", 1, 1.5, True, None, [1, 2], {"deep": [1]}):
        task_id = enqueue(conn, tags={"k": value})
        assert [row.id for row in rows(conn, "list", tags={"k": value})] == [task_id]


def test_a_thousand_rows_at_most(conn):
    enqueue_many(conn, *[{"name": "t"}] * 1100)

    assert len(rows(conn, "list")) == 50
    assert len(rows(conn, "list", max_rows=1000)) == 1000


def test_get_of_nothing(conn):
    assert rows(conn, "get", id="00000000-0000-0000-0000-000000000000") == []
    assert rows(conn, "get", id=None) == []


def test_a_tag_that_two_tasks_share_is_not_mixed_up(conn):
    first = enqueue(conn, tags={"a": "b"})
    enqueue(conn, tags={"a": "bc"})
    enqueue(conn, tags={"ab": ""})

    assert one(conn, "select id from tasklib.list(tags => %s)", Jsonb({"a": "b"})) == first
    assert call(conn, "cancel", id=first) == "cancelled"
    assert one(conn, "select state from tasklib.list(tags => %s)", Jsonb({"a": "b"})) == "cancelled"
