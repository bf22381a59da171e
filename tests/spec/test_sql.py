"""The SQL interface, function by function, as a program in any language would call it.

Every parameter is text, as a driver sends it that knows no types.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import dict_row

Conn = Connection[Any]


class Sql:
    """One session, and the calls that a driver would make."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    def rows(self, query: str, *values: object) -> list[Any]:
        texts = [None if value is None else str(value) for value in values]
        return self.conn.execute(query, texts or None).fetchall()

    def one(self, query: str, *values: object) -> Any:
        (row,) = self.rows(query, *values)
        return row[0] if len(row) == 1 else row

    def call(self, function: str, *values: object, **named: object) -> Any:
        words = ["%s"] * len(values) + [f"{name} => %s" for name in named]
        query = f"select * from tasklib.{function}({', '.join(words)})"
        return self.one(query, *values, *named.values())

    def many(self, function: str, *values: object, **named: object) -> list[Any]:
        words = ["%s"] * len(values) + [f"{name} => %s" for name in named]
        query = f"select * from tasklib.{function}({', '.join(words)})"
        found = self.rows(query, *values, *named.values())
        return [row[0] if len(row) == 1 else row for row in found]

    def enqueue(self, name: str = "app.f", kwargs: str = "{}", **options: object) -> UUID:
        return self.call("enqueue", name, kwargs, **options)

    def worker(self, **options: object) -> UUID:
        return self.call("register_worker", **options)

    def claim(
        self, worker: UUID, count: int = 1, queues: str = "{default}"
    ) -> list[tuple[UUID, int]]:
        return self.rows("select id, attempt from tasklib.claim(%s, %s, %s)", worker, queues, count)

    def task(self, task_id: UUID) -> dict[str, Any]:
        with self.conn.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(
                "select * from tasklib.tasks where id = %s", (task_id,)
            ).fetchone()
        assert found
        return found

    def state(self, task_id: UUID) -> str:
        return self.task(task_id)["state"]

    def count(self) -> int:
        return self.one("select count(*) from tasklib.tasks")


@pytest.fixture
def sql(conn: Conn) -> Sql:
    return Sql(conn)


@pytest.fixture
def other(make_conn: Callable[..., Conn]) -> Sql:
    return Sql(make_conn())


def refused(code: str, call: Callable[..., Any], *values: object, **named: object) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        call(*values, **named)
    assert caught.value.sqlstate == code, caught.value
    return caught.value


def array(*values: object) -> str:
    return "{" + ",".join(map(str, values)) + "}"


# --- the shape of the interface

FUNCTIONS = {
    *("enqueue", "enqueue_many", "register_worker", "heartbeat", "claim", "complete", "fail"),
    *("finish", "release", "snooze", "cancel", "retry", "reschedule", "get", "list", "purge"),
    *("set_queue", "pause", "resume", "deregister_worker", "tick", "sweep"),
}


def test_every_function_is_there_once_with_named_plain_arguments(sql: Sql) -> None:
    public = dict(
        sql.rows(
            "select proname, array_agg(oidvectortypes(proargtypes)) from pg_proc"
            " where pronamespace = 'tasklib'::regnamespace and proname not like '\\_%' group by 1"
        )
    )
    assert set(public) >= FUNCTIONS
    for name, variants in public.items():
        assert len(variants) == 1, name
        assert "smallint" not in variants[0], name


def test_every_object_has_a_comment(sql: Sql) -> None:
    assert (
        sql.rows(
            "select oid::regprocedure from pg_proc where pronamespace = 'tasklib'::regnamespace"
            " and obj_description(oid, 'pg_proc') is null"
        )
        == []
    )
    assert (
        sql.rows(
            "select oid::regclass from pg_class where relnamespace = 'tasklib'::regnamespace"
            " and relkind in ('r', 'v') and obj_description(oid, 'pg_class') is null"
        )
        == []
    )


def test_the_columns_of_tasks(sql: Sql) -> None:
    wanted = [
        *("id", "name", "queue", "state", "kwargs", "result", "error", "retry_count"),
        *("max_retries", "next_retry_at", "worker_id", "locked_until", "scheduled_at"),
        *("created_at", "started_at", "completed_at", "timeout_seconds", "priority", "tags"),
        *("attempt", "cancel_requested_at"),
    ]
    found = sql.conn.execute("select * from tasklib.tasks").description or []
    assert [column.name for column in found][: len(wanted)] == wanted
    listed = sql.conn.execute("select * from tasklib.list()").description or []
    assert [column.name for column in listed] == [column.name for column in found]


def test_the_views_for_people_can_be_read(sql: Sql) -> None:
    for view in ("tasks", "queue_stats", "task_stats", "worker_health", "stuck_tasks"):
        sql.rows(f"select * from tasklib.{view}")


def test_psql_alone_is_enough(database: str, sql: Sql) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("no psql")
    script = r"""
\set ON_ERROR_STOP on
SELECT tasklib.enqueue('app.send_email', '{"to": "a@b.c"}') as task \gset
select tasklib.register_worker('one') as one \gset
select tasklib.register_worker('two') as two \gset
select id, attempt from tasklib.claim(:'one') \gset
select tasklib.deregister_worker(:'one');
select attempt as second from tasklib.claim(:'two') \gset
select tasklib.complete(:'task', :'two', :second, '{"sent": true}');
select state, result from tasklib.tasks where id = :'task';
\set ON_ERROR_STOP off
select tasklib.complete(:'task', :'one', :attempt, '{"sent": false}');
\echo :SQLSTATE
select tasklib.register_worker('one') as one \gset
select tasklib.complete(:'task', :'one', :attempt, '{"sent": false}');
\echo :SQLSTATE
select state, result from tasklib.tasks where id = :'task';
"""
    done = subprocess.run(
        [psql, "-XqAt", "-d", database], input=script, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line and not line.isdigit()]
    stored = 'completed|{"sent": true}'
    assert lines == [stored, "TL007", "TL004", stored], done.stderr


# --- enqueue


def test_enqueue_with_a_name_and_kwargs_is_enough(sql: Sql) -> None:
    task_id = sql.one("""SELECT tasklib.enqueue('app.send_email', '{"to": "a@b.c"}')""")
    assert task_id.version == 7
    task = sql.task(task_id)
    assert (task["state"], task["queue"], task["priority"]) == ("pending", "default", 0)
    assert (task["max_retries"], task["timeout_seconds"], task["attempt"]) == (3, None, 0)
    assert (task["retry_count"], task["kwargs"]) == (0, {"to": "a@b.c"})


def test_enqueue_takes_every_option_as_text(sql: Sql) -> None:
    task_id = sql.enqueue(
        "app.f",
        '{"a": 1}',
        queue="q",
        priority="-1000",
        delay="1 hour",
        max_retries="7",
        timeout_seconds="1.5",
        tags='{"x": 1}',
        unique_key="u",
        concurrency_key="c",
        headers='{"trace": "t"}',
        unique_until="started",
    )
    task = sql.task(task_id)
    assert (task["queue"], task["priority"], task["max_retries"]) == ("q", -1000, 7)
    assert (task["timeout_seconds"], task["tags"]) == (1.5, {"x": 1})
    assert timedelta(minutes=59) < task["scheduled_at"] - datetime.now(UTC) < timedelta(minutes=61)
    at = "2027-03-04 05:06:07+00"
    assert str(sql.task(sql.enqueue(scheduled_at=at))["scheduled_at"]).startswith("2027-03-04")


def test_a_rolled_back_enqueue_leaves_nothing(sql: Sql) -> None:
    with sql.conn.transaction(force_rollback=True):
        sql.enqueue()
    assert sql.count() == 0


def test_times_are_the_clocks_not_the_transactions(sql: Sql) -> None:
    with sql.conn.transaction():
        sql.one("select pg_sleep(0.3)::text")
        task_id = sql.enqueue()
        assert sql.one("select created_at - now() > interval '0.2 s' from tasklib.get(%s)", task_id)


def test_ids_are_ordered(sql: Sql) -> None:
    ids = [sql.enqueue() for _ in range(5)]
    batch = sql.many("enqueue_many", json.dumps([{"name": "app.f"}] * 100))
    ids += [task_id for task_id, _ in batch]
    assert ids == sorted(ids)
    assert sql.call("shard_of", ids[0]) == 0


def test_enqueue_many(sql: Sql) -> None:
    held = sql.enqueue(unique_key="k2")
    found = sql.many(
        "enqueue_many",
        json.dumps(
            [
                {"name": "app.a", "unique_key": "k3", "priority": 5},
                {"name": "app.f", "unique_key": "k2"},
                {"name": "app.b", "unique_key": "k1", "kwargs": {"x": 1}, "delay": 60},
            ]
        ),
    )
    assert [created for _, created in found] == [True, False, True]
    assert found[1][0] == held
    assert [sql.task(i)["name"] for i, _ in found] == ["app.a", "app.f", "app.b"]
    error = refused("TL001", sql.many, "enqueue_many", '[{"name": "x"}, {"name": ""}]')
    assert "1" in str(error.diag.message_detail)
    error = refused("TL001", sql.many, "enqueue_many", '[{"name": "x", "prioritty": 1}]')
    assert "prioritty" in str(error)
    assert sql.count() == 3
    assert len(sql.many("enqueue_many", json.dumps([{"name": "x"}] * 5000))) == 5000


# --- unique_key


def test_a_unique_key_exists_once_until_finished(sql: Sql) -> None:
    first = sql.enqueue(unique_key="k")
    assert sql.enqueue(unique_key="k") == first
    assert sql.enqueue(unique_key="k", queue="other") != first
    worker = sql.worker()
    ((_, attempt),) = sql.claim(worker)
    assert sql.enqueue(unique_key="k") == first
    sql.call("complete", first, worker, attempt)
    assert sql.enqueue(unique_key="k") != first


def test_a_unique_key_until_started(sql: Sql) -> None:
    first = sql.enqueue(unique_key="k", unique_until="started")
    assert sql.enqueue(unique_key="k", unique_until="started") == first
    sql.claim(sql.worker())
    assert sql.enqueue(unique_key="k", unique_until="started") != first


@pytest.mark.parametrize("commit", [True, False])
def test_a_twin_in_an_open_transaction_is_waited_for(sql: Sql, other: Sql, commit: bool) -> None:
    found: list[UUID] = []
    thread = threading.Thread(target=lambda: found.append(other.enqueue(unique_key="k")))
    with sql.conn.transaction(force_rollback=not commit):
        first = sql.enqueue(unique_key="k")
        thread.start()
        time.sleep(0.3)
        assert found == []
    thread.join(5)
    assert (found == [first]) is commit
    assert sql.count() == 1


# --- concurrency_key


def test_a_concurrency_key_lets_one_run_at_a_time_in_order(sql: Sql) -> None:
    delayed = sql.enqueue(concurrency_key="k", delay="1 hour")
    ids = [sql.enqueue(concurrency_key="k") for _ in range(3)]
    elsewhere = sql.enqueue(concurrency_key="k", queue="other")
    worker = sql.worker()
    ((first, attempt),) = sql.claim(worker, 10)
    assert first == ids[0]
    assert [i for i, _ in sql.claim(worker, 10, "{other}")] == [elsewhere]
    sql.call("fail", first, worker, attempt, "no", retry_in="0")
    order: list[UUID] = []
    for _ in range(3):
        ((task_id, attempt),) = sql.claim(worker, 10)
        order.append(task_id)
        assert sql.claim(worker, 10) == []
        sql.call("complete", task_id, worker, attempt)
    assert order == [ids[1], ids[2], ids[0]]
    assert sql.state(delayed) == "pending"


# --- workers, claim


def test_a_worker_takes_the_names_that_it_registered(sql: Sql) -> None:
    b, a = sql.enqueue("app.b"), sql.enqueue("app.a")
    knows_a = sql.worker(task_types='["app.a"]')
    assert [i for i, _ in sql.claim(knows_a, 10)] == [a]
    assert [i for i, _ in sql.claim(sql.worker(), 10)] == [b]


def test_stored_defaults_reach_tasks_enqueued_before_the_first_worker(sql: Sql) -> None:
    task_id = sql.enqueue("app.f")
    explicit = sql.enqueue("app.f", max_retries="1")
    types = {"max_retries": 9, "timeout_seconds": 5, "backoff": {"base_seconds": 1}}
    worker = sql.worker(task_types=json.dumps([{"name": "app.f"} | types]))
    claimed = sql.rows(
        "select id, max_retries, timeout_seconds from tasklib.claim(%s, max_tasks => '2')", worker
    )
    assert claimed == [(task_id, 9, 5), (explicit, 1, 5)]
    _, at = sql.call("fail", task_id, worker, "1", "no")
    assert at - datetime.now(UTC) < timedelta(seconds=1.5)
    assert sql.task(task_id)["max_retries"] == 9


def test_claim_hands_out_by_priority_then_queue_then_order(sql: Sql) -> None:
    low, b1, b2 = sql.enqueue(priority="-1"), sql.enqueue(queue="b"), sql.enqueue(queue="b")
    a1, high = sql.enqueue(queue="a"), sql.enqueue(queue="b", priority="9")
    found = [i for i, _ in sql.claim(sql.worker(), 10, "{a,b,default}")]
    assert found == [high, a1, b1, b2, low]


def test_claim_skips_what_others_hold(sql: Sql, other: Sql) -> None:
    ids = [sql.enqueue() for _ in range(3)]
    mine, theirs = sql.worker(), other.worker()
    with sql.conn.transaction():
        assert [i for i, _ in sql.claim(mine, 2)] == ids[:2]
        assert [i for i, _ in other.claim(theirs, 5)] == ids[2:]


def test_claim_alone_sees_delayed_and_lost_tasks(sql: Sql) -> None:
    dead, worker = sql.worker(lease="1 s"), sql.worker()
    later = sql.enqueue(delay="0.5 s")
    lost = sql.enqueue(queue="lost")
    sql.claim(dead, 1, "{lost}")
    assert sql.claim(worker) == []
    time.sleep(0.6)
    assert [i for i, _ in sql.claim(worker)] == [later]
    time.sleep(0.6)
    for _ in range(10):
        sql.claim(worker, 1, "{lost}")
        if sql.state(lost) != "running":
            break
        time.sleep(0.3)
    task = sql.task(lost)
    assert task["state"] == "failed"
    assert task["next_retry_at"] is not None


def test_a_delayed_task_of_a_name_unknown_at_enqueue_is_found_when_due(sql: Sql) -> None:
    task_id, worker = sql.enqueue(delay="0.5 s"), sql.worker()
    assert sql.claim(worker) == []
    time.sleep(0.6)
    assert sql.claim(worker) == [(task_id, 1)]


def test_a_consumer_is_told_when_the_next_task_is_due(sql: Sql) -> None:
    worker = sql.worker()
    sql.enqueue(delay="3 s")
    assert 2 < sql.call("idle", worker, max_wait="10 s") <= 3


def test_running_tasks_show_who_holds_them(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker(name="me")
    sql.claim(worker)
    task = sql.task(task_id)
    assert (task["state"], task["worker_id"], task["attempt"]) == ("running", worker, 1)
    left = task["locked_until"] - datetime.now(UTC)
    assert timedelta(seconds=55) < left <= timedelta(seconds=61)
    health = sql.one("select name, alive, running from tasklib.worker_health")
    assert health == ("me", True, 1)


def test_heartbeat_tells_what_to_cancel_and_when_it_is_over(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker()
    sql.claim(worker)
    assert sql.many("heartbeat", worker) == []
    assert sql.call("cancel", task_id) == "requested"
    assert sql.many("heartbeat", worker) == [task_id]
    assert sql.task(task_id)["cancel_requested_at"] is not None
    sql.call("deregister_worker", worker)
    refused("TL007", sql.many, "heartbeat", worker)
    refused("TL007", sql.claim, worker)
    refused("TL007", sql.claim, uuid4())


# --- ending an attempt


def test_complete_raises_unless_the_lease_is_held(sql: Sql) -> None:
    worker, thief = sql.worker(), sql.worker()
    done = sql.enqueue()
    ((_, attempt),) = sql.claim(worker)
    refused("TL004", sql.call, "complete", done, thief, attempt)
    refused("TL004", sql.call, "complete", done, worker, attempt + 1)
    sql.call("complete", done, worker, attempt, '{"n": 1}')
    refused("TL005", sql.call, "complete", done, worker, attempt, '{"n": 2}')
    refused("TL003", sql.call, "complete", uuid4(), worker, "1")
    assert sql.task(done)["result"] == {"n": 1}

    taken = sql.enqueue()
    ((_, attempt),) = sql.claim(worker)
    sql.many("release", worker, array(taken), array(attempt))
    ((_, second),) = sql.claim(thief)
    refused("TL004", sql.call, "complete", taken, worker, attempt)
    assert second == attempt + 1
    sql.call("complete", taken, thief, second)
    refused("TL004", sql.call, "complete", taken, worker, attempt)

    cancelled = sql.enqueue()
    ((_, attempt),) = sql.claim(worker)
    sql.call("cancel", cancelled)
    sql.call("fail", cancelled, worker, attempt, "stopped")
    refused("TL006", sql.call, "complete", cancelled, worker, attempt)


def test_effects_and_completion_in_one_transaction_happen_once(sql: Sql) -> None:
    sql.conn.execute("create table effect (id int)")
    task_id, worker, thief = sql.enqueue(), sql.worker(), sql.worker()
    ((_, attempt),) = sql.claim(worker)
    sql.many("release", worker, array(task_id), array(attempt))
    ((_, second),) = sql.claim(thief)
    for who, number in ((worker, attempt), (thief, second), (thief, second)):
        try:
            with sql.conn.transaction():
                sql.conn.execute("insert into effect values (1)")
                sql.call("complete", task_id, who, number)
        except psycopg.Error as error:
            assert error.sqlstate in ("TL004", "TL005")  # noqa: PT017
    assert sql.one("select count(*) from effect") == 1


def test_defaults_5_10_20_seconds_then_failed_for_good(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker()
    for retry_count, pause in enumerate((5, 10, 20)):
        ((_, attempt),) = sql.claim(worker)
        state, at = sql.call("fail", task_id, worker, attempt, f"failure {attempt}")
        assert state == "failed"
        assert at is not None
        task = sql.task(task_id)
        assert (task["state"], task["retry_count"], task["next_retry_at"]) == (
            "failed",
            retry_count,
            at,
        )
        exact = sql.one(
            "select next_retry_at - failed_at from tasklib.failures where attempt = %s", attempt
        )
        assert exact == timedelta(seconds=pause)
        assert sql.claim(worker) == []
        assert sql.call("retry", task_id) == "pending"  # due now
        assert sql.state(task_id) == "pending"
    ((_, attempt),) = sql.claim(worker)
    assert sql.call("fail", task_id, worker, attempt, "the last") == ("failed", None)
    task = sql.task(task_id)
    assert (task["state"], task["next_retry_at"], task["error"]) == ("failed", None, "the last")
    assert (task["retry_count"], task["attempt"]) == (3, 4)


def test_fail_cannot_fail_by_itself(sql: Sql) -> None:
    worker = sql.worker()
    for retry_in in ("-5 s", "1000 years", None):
        task_id = sql.enqueue(max_retries="1")
        ((_, attempt),) = sql.claim(worker)
        state, _ = sql.call(
            "fail", task_id, worker, attempt, "x" * 1_000_000, "true", retry_in=retry_in
        )
        assert state in ("failed", "pending")
        assert len(sql.task(task_id)["error"]) < 100_000
        sql.call("cancel", task_id)
    task_id = sql.enqueue()
    ((_, attempt),) = sql.claim(worker)
    assert sql.call("fail", task_id, worker, attempt, "never again", "false") == ("failed", None)


def test_backoff_grows_up_to_its_cap(sql: Sql) -> None:
    backoff = '{"base_seconds": 2, "multiplier": 10, "cap_seconds": 50}'
    task_id, worker = sql.enqueue(backoff=backoff), sql.worker()
    pauses: list[float] = []
    for _ in range(3):
        ((_, attempt),) = sql.claim(worker)
        _, at = sql.call("fail", task_id, worker, attempt, "no")
        pauses.append(round((at - datetime.now(UTC)).total_seconds()))
        sql.call("retry", task_id)
    assert pauses == [2, 20, 50]


def test_finish_answers_for_each_row_in_order(sql: Sql) -> None:
    worker, thief = sql.worker(), sql.worker()
    ids = [sql.enqueue() for _ in range(5)]
    sql.claim(worker, 5)
    sql.call("cancel", ids[3])
    sql.call("fail", ids[3], worker, "1", "stopped")
    sql.many("release", worker, array(ids[4]), "{1}")
    sql.claim(thief)
    given = array(*ids, uuid4())
    outcomes = json.dumps(
        [
            None,
            {"state": "completed", "result": {"n": 1}},
            {"state": "failed", "error": "no", "retry": False},
            None,
            None,
            None,
        ]
    )
    call = ("finish", worker, given, "{1,1,1,1,1,1}", outcomes)
    assert sql.many(*call) == ["ok", "ok", "ok", "cancelled", "stale", "gone"]
    assert sql.many(*call) == ["already", "already", "already", "cancelled", "stale", "gone"]
    assert [sql.state(i) for i in ids] == [
        "completed",
        "completed",
        "failed",
        "cancelled",
        "running",
    ]


def test_release_is_not_charged_and_bounded(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker()
    for attempt in range(1, 11):
        assert sql.claim(worker) == [(task_id, attempt)]
        assert sql.many("release", worker, array(task_id), array(attempt)) == ["ok"]
        assert (sql.state(task_id), sql.task(task_id)["retry_count"]) == ("pending", 0)
    sql.claim(worker)
    sql.many("release", worker, array(task_id), "{11}")
    assert sql.state(task_id) == "failed"


def test_snooze_puts_off_uncharged(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker()
    sql.claim(worker)
    at = sql.call("snooze", task_id, worker, "1", "1 minute")
    task = sql.task(task_id)
    assert (task["state"], task["retry_count"], task["scheduled_at"]) == ("pending", 0, at)
    assert sql.claim(worker) == []
    sql.call("reschedule", task_id, delay="0")
    assert sql.claim(worker) == [(task_id, 2)]


def test_a_task_that_kills_its_workers_cannot_loop_for_ever(sql: Sql) -> None:
    task_id = sql.enqueue(max_retries="50")
    for attempt in range(1, 4):
        worker = sql.worker()
        assert sql.claim(worker) == [(task_id, attempt)]
        sql.call("deregister_worker", worker, crashed="true")
        if attempt < 3:
            assert sql.task(task_id)["next_retry_at"] is not None
            sql.call("retry", task_id)
    task = sql.task(task_id)
    assert (task["state"], task["next_retry_at"]) == ("failed", None)
    causes = sql.rows("select cause from tasklib.failures order by attempt")
    assert [c for (c,) in causes] == ["crashed"] * 3


# --- steering


def test_cancel(sql: Sql) -> None:
    waiting, wins, loses = (sql.enqueue() for _ in range(3))
    assert sql.call("cancel", waiting) == "cancelled"
    assert sql.call("cancel", waiting) == "finished"
    worker = sql.worker()
    sql.claim(worker, 5)
    assert sql.call("cancel", wins) == "requested"
    assert sql.call("cancel", loses) == "requested"
    sql.call("complete", wins, worker, "1", '{"n": 1}')
    assert sql.call("fail", loses, worker, "1", "x")[0] == "cancelled"
    assert [sql.state(i) for i in (waiting, wins, loses)] == ["cancelled", "completed", "cancelled"]
    refused("TL003", sql.call, "cancel", uuid4())


def test_retry_begins_afresh_under_the_same_id(sql: Sql) -> None:
    task_id, worker = sql.enqueue(max_retries="1", unique_key="u"), sql.worker()
    sql.claim(worker)
    sql.call("fail", task_id, worker, "1", "no", "false")
    assert sql.call("retry", task_id) == "pending"
    task = sql.task(task_id)
    assert (task["state"], task["completed_at"], task["attempt"]) == ("pending", None, 1)
    assert sql.one("select count(*) from tasklib.failures") == 1
    assert sql.claim(worker) == [(task_id, 2)]
    refused("TL008", sql.call, "retry", task_id)
    assert sql.call("fail", task_id, worker, "2", "no")[1] is not None  # the budget is fresh
    sql.call("cancel", task_id)
    twin = sql.enqueue(unique_key="u")
    assert twin != task_id
    refused("TL009", sql.call, "retry", task_id)
    assert sql.claim(worker) == [(twin, 1)]
    sql.call("complete", twin, worker, "1")
    refused("TL008", sql.call, "retry", twin)
    assert sql.call("retry", task_id) == "pending"


def test_reschedule(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker()
    sql.call("reschedule", task_id, scheduled_at="2027-01-01 00:00+00", priority="4", queue="q")
    task = sql.task(task_id)
    assert (task["priority"], task["queue"], task["state"]) == (4, "q", "pending")
    assert task["scheduled_at"] == datetime(2027, 1, 1, tzinfo=UTC)
    assert sql.claim(worker, 1, "{q}") == []
    sql.call("reschedule", task_id, delay="0")
    assert sql.claim(worker, 1, "{q}") == [(task_id, 1)]
    refused("TL008", sql.call, "reschedule", task_id, delay="0")


def test_get_and_list(sql: Sql) -> None:
    ids = [sql.enqueue(f"app.{n % 2}", tags=json.dumps({"n": n})) for n in range(6)]
    assert sql.many("get", uuid4()) == []
    assert sql.many("get", ids[0])[0][0] == ids[0]

    def listed(**options: object) -> list[UUID]:
        return [row[0] for row in sql.many("list", **options)]

    assert listed() == ids[::-1]
    assert listed(max_rows="2", before=ids[4]) == [ids[3], ids[2]]
    assert listed(name="app.1", state="pending", queue="default") == [ids[5], ids[3], ids[1]]
    assert listed(tags='{"n": 3}') == [ids[3]]
    assert "finishd" in str(refused("TL001", listed, state="finishd"))


def test_purge_and_retention(sql: Sql) -> None:
    old, young, kept = sql.enqueue(), sql.enqueue(queue="r"), sql.enqueue()
    worker = sql.worker()
    sql.claim(worker, 1)
    sql.call("complete", old, worker, "1")
    sql.call("cancel", young)
    assert sql.call("purge", "1 hour") == 0
    assert sql.call("purge", "0", state="completed", max_rows="5") == 1
    sql.call("set_queue", "r", retention="0.1 s")
    time.sleep(0.2)
    sql.many("tick")
    assert [row[0] for row in sql.many("list")] == [kept]


def test_pause_and_resume(sql: Sql) -> None:
    task_id, worker = sql.enqueue(queue="q"), sql.worker()
    sql.call("pause", "q")
    assert sql.claim(worker, 1, "{q}") == []
    assert sql.one("select paused from tasklib.queue_stats where queue = 'q'") is True
    sql.call("resume", "q")
    assert sql.claim(worker, 1, "{q}") == [(task_id, 1)]


def test_deregistering_gives_tasks_back_at_once(sql: Sql) -> None:
    task_id, worker = sql.enqueue(), sql.worker()
    sql.claim(worker)
    sql.call("deregister_worker", worker)
    assert sql.state(task_id) == "pending"
    assert sql.task(task_id)["retry_count"] == 0
    assert sql.claim(sql.worker()) == [(task_id, 2)]


def test_tick_and_sweep_may_be_called_by_anybody_granted(sql: Sql) -> None:
    sql.worker()
    sql.enqueue(delay="0.1 s")
    time.sleep(0.2)
    columns = sql.conn.execute("select * from tasklib.tick()").description or []
    assert columns[-1].name == "more"
    assert sql.call("sweep") == 0
    assert sql.one("select ready from tasklib.queue_stats where queue = 'default'") == 1


# --- views


def test_queue_stats_tell_retrying_from_failed_for_good(sql: Sql) -> None:
    worker = sql.worker()
    for retry in ("true", "false"):
        task_id = sql.enqueue()
        sql.claim(worker)
        sql.call("fail", task_id, worker, "1", "no", retry)
    sql.enqueue()
    sql.enqueue(delay="1 hour")
    found = sql.one(
        "select ready, scheduled, running, retrying, failed, oldest_ready_seconds < 60"
        " from tasklib.queue_stats where queue = 'default'"
    )
    assert found == (1, 1, 0, 1, 1, True)


def test_stuck_tasks_say_why(sql: Sql) -> None:
    task_id = sql.enqueue("app.unknown")
    sql.worker(task_types='["app.known"]')
    found = sql.one("select task_id, reason, hint from tasklib.stuck_tasks")
    assert found[0] == task_id
    assert found[1]
    assert found[2]


def test_task_stats_have_durations_by_name(sql: Sql) -> None:
    worker = sql.worker()
    task_id = sql.enqueue("app.x")
    sql.claim(worker)
    sql.call("complete", task_id, worker, "1")
    assert sql.one(
        "select name, completed, mean_seconds >= 0 and max_seconds < 60 from tasklib.task_stats"
    ) == ("app.x", 1, True)


# --- bad input


@pytest.mark.parametrize(
    ("values", "named", "quoted"),
    [
        (("",), {}, '""'),
        (("x" * 200,), {}, "xxx"),
        (("app.f",), {"priority": "1001"}, "1001"),
        (("app.f",), {"priority": "-1001"}, "-1001"),
        (("app.f",), {"max_retries": "-1"}, "-1"),
        (("app.f",), {"timeout_seconds": "NaN"}, "NaN"),
        (("app.f",), {"timeout_seconds": "-1"}, "-1"),
        (("app.f",), {"delay": "-1 s"}, "00:00:01"),
        (("app.f",), {"delay": "900 years"}, "900"),
        (("app.f",), {"scheduled_at": "infinity"}, "infinity"),
        (("app.f", "[1, 2]"), {}, "[1, 2]"),
        (("app.f",), {"tags": "3"}, "3"),
        (("app.f",), {"headers": '"h"'}, "h"),
        (("app.f",), {"queue": ""}, '""'),
        (("app.f",), {"unique_key": "k", "unique_until": "later"}, "later"),
        (("app.f",), {"backoff": '{"bas": 1}'}, "bas"),
        (("app.f",), {"delay": "1 s", "scheduled_at": "2027-01-01"}, ""),
    ],
)
def test_bad_input_is_refused_with_a_code_the_value_and_a_hint(
    sql: Sql, values: tuple[str, ...], named: dict[str, str], quoted: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        sql.call("enqueue", *values, **named)
    diag = caught.value.diag
    assert diag.sqlstate in ("TL001", "TL002")
    assert quoted in str(diag.message_primary)
    assert diag.message_detail
    assert diag.message_hint
    assert sql.count() == 0


def test_what_the_server_refuses_before_a_function_is_entered(sql: Sql) -> None:
    refused("22P05", sql.call, "enqueue", "app.f", r'{"a": "\u0000"}')
    refused("22P02", sql.call, "enqueue", "app.f", r'{"a": "\ud800"}')
    refused("22P02", sql.call, "enqueue", "app.f", "{")
    refused("22P02", sql.call, "get", "no uuid")
    assert sql.count() == 0


def test_a_role_without_grants_can_do_nothing(sql: Sql) -> None:
    sql.conn.execute("drop role if exists spec_nobody")
    sql.conn.execute("create role spec_nobody")
    try:
        sql.conn.execute("set role spec_nobody")
        refused("42501", sql.call, "enqueue", "app.f")
        refused("42501", sql.rows, "select * from tasklib.tasks")
    finally:
        sql.conn.execute("reset role")
        sql.conn.execute("drop role spec_nobody")
