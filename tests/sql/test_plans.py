"""What a claim and a list cost does not depend on how much else there is.

Counted in pages touched, not in time. `TASKLIB_TEST_SCALE=0.1` makes the tables a tenth as large.
"""

from __future__ import annotations

import os
import re
import time

import pytest

from sql.support import (
    advance,
    buffers,
    call,
    claim,
    enqueue,
    enqueue_many,
    finish,
    one,
    register,
    run,
    tick,
)

pytestmark = pytest.mark.plan

SCALE = float(os.environ.get("TASKLIB_TEST_SCALE", "1"))
MILLION = int(1_000_000 * SCALE)

PICK = 40

# Rows as enqueue writes them, without its checks, which would take minutes.
IDS = """
with id as (
  select (lpad(to_hex(1500000000000 + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid
    as id, n
  from generate_series(1, %(count)s) as n
)
"""
BODIES = """
insert into tasklib.task (id, type, created_at, priority, queue_given, priority_given, name, queue,
  enqueued_by, kwargs)
select id, tasklib._type_of(%(name)s), clock_timestamp(), %(priority)s, true, true, %(name)s,
  'default', current_user, '{}'
from id order by n
"""


def fill_tasks(conn, name, count):
    run(conn, IDS + BODIES, name=name, count=count, priority=0)


def fill_ready(conn, name, count):
    run(
        conn,
        f"{IDS}, body as ({BODIES} returning ctid as place, id, type)"
        " insert into tasklib.ready (task_id, lane, type, attempt, place)"
        " select id, tasklib._lane('default', %(priority)s), type, 0, place from body",
        name=name,
        count=count,
        priority=0,
    )


def fill_unknown(conn, count, priority):
    """Make tasks ready that nobody will ever run, so that nobody asks for their bodies."""
    run(
        conn,
        IDS + "insert into tasklib.ready (task_id, lane, type, attempt)"
        " select id, tasklib._lane('default', %(priority)s), tasklib._type_of('unknown'), 0"
        " from id order by n",
        count=count,
        priority=priority,
    )


def fill_delayed(conn, count, priority):
    run(
        conn,
        IDS + "insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason)"
        " select clock_timestamp() + interval '1 hour', id, tasklib._lane('default', %(priority)s),"
        " tasklib._type_of('t'), 0, 'd' from id",
        count=count,
        priority=priority,
    )


def claim_cost(conn, worker):
    """Return the pages that a claim of ten touches; the claims are undone."""
    run(conn, "begin")
    try:
        # the first calls read catalogs and plan; what other sessions create makes one do so again
        claim(conn, worker, 10)
        claim(conn, worker, 10)
        cost = min(
            buffers(conn, "select from tasklib.claim(%s, '{default}', 10)", worker)
            for _ in range(3)
        )
        assert one(conn, "select count(*) from tasklib.running") == 50
        return cost
    finally:
        run(conn, "rollback")


def pick_cost(conn, worker):
    """Return the pages that the statement which takes ten rows out of ready touches.

    The text is the function's own, run as the function runs it: from mark to mark, with the
    settings of claim, planned once for all parameters.
    """
    source = one(conn, "select prosrc from pg_proc where proname = '_pick_between'")
    (text,) = re.findall(r"with picked as.*?from picked;", source, re.S)
    text = re.sub(r"into v_picked, v_noted, v_odd", "", text)
    for name, value in {
        "v_lane": "$1::bigint",
        "v_pos": "$2::bigint",
        "v_stop": "$3::bigint",
        "v_asked": "$4::int",
        "types": "$5::bigint[]",
        "above": "$6::bigint",
    }.items():
        assert name in text
        text = re.sub(rf"(?<![.\w]){re.escape(name)}(?!\w)", value, text)

    run(conn, "begin")
    try:
        for setting in one(conn, "select proconfig from pg_proc where proname = 'claim'"):
            run(conn, f"set local {setting}")
        run(conn, f"prepare pick as {text}")
        types = one(conn, "select types from tasklib.worker where id = %s", worker)
        segments = run(conn, SEGMENTS)
        costs, found = [], 0
        for segment in segments:
            pages, took = explained_pick(conn, segment, 10 - found, types)
            costs.append(pages)
            found += took
            if found == 10:
                break
        assert found == 10
        return max(costs)
    finally:
        run(conn, "rollback")
        run(conn, "deallocate all")


# from the first lane of the queue to the first mark, and from each mark to the next one
SEGMENTS = """
with start as (
  select tasklib._lane('default', 1024) as lane, 0::bigint as pos
  union all
  select lane, greatest(max(low_pos), 1) from tasklib.mark
  where lane between tasklib._lane('default', 1024) and tasklib._lane('default', -3071)
  group by lane
)
select lane, pos, coalesce(lead(lane) over (order by lane) - 1, tasklib._lane('default', -3071))
  as stop
from start order by lane, pos
"""


def explained_pick(conn, segment, limit, types):
    given = ", ".join(str(value) for value in (*segment, limit))
    names = "null" if types is None else f"'{{{','.join(map(str, types))}}}'"
    explain = "explain (analyze, buffers, format json, costs off, timing off)"
    top = one(conn, f"{explain} execute pick({given}, {names}, null)")[0]["Plan"]
    nodes = [top]
    for node in nodes:
        nodes += node.get("Plans", [])
    (took,) = {node["Actual Rows"] for node in nodes if node["Node Type"] == "LockRows"}
    return touched(top), took


def touched(top):
    """Return the pages of a plan, with a DELETE that runs at its end and that nobody reads from."""
    nodes = [top]
    for node in nodes:
        nodes += node.get("Plans", [])
    read = {f"CTE {node['CTE Name']}" for node in nodes if "CTE Name" in node}
    last = [n for n in nodes if n["Node Type"] == "ModifyTable" and "Subplan Name" in n]
    last = [n for n in last if n["Subplan Name"] not in read]
    return sum(n["Shared Hit Blocks"] + n["Shared Read Blocks"] for n in [top, *last])


@pytest.fixture
def worker(conn):
    return register(conn, "t", lease="24 hours")


@pytest.fixture(params=["fresh", "stale"])
def statistics(request, conn):
    """Analyze before the tables are filled, or after, or both."""
    if request.param == "stale":
        run(conn, "analyze")
    return request.param


def settle(conn, statistics):
    if statistics == "fresh":
        run(conn, "analyze tasklib.ready, tasklib.delayed, tasklib.running, tasklib.task")


@pytest.fixture
def usual(conn, worker):
    """What a claim of ten costs with 200 ready tasks."""
    enqueue_many(conn, *[{"name": "t"}] * 200)
    cost = claim_cost(conn, worker)
    assert pick_cost(conn, worker) <= PICK
    run(conn, "truncate tasklib.ready, tasklib.task")
    return cost


def check(conn, worker, usual, factor=1.25):
    cost = claim_cost(conn, worker)
    assert cost <= usual * factor, f"a claim of ten touches {cost} pages, usually {usual}"
    assert pick_cost(conn, worker) <= PICK


def test_a_claim_costs_the_same_before_a_million_ready_tasks(conn, worker, usual, statistics):
    fill_ready(conn, "t", MILLION)
    settle(conn, statistics)

    check(conn, worker, usual)


def test_a_claim_costs_the_same_beside_a_million_delayed_tasks(conn, worker, usual, statistics):
    fill_delayed(conn, MILLION, priority=1000)
    fill_ready(conn, "t", 200)
    settle(conn, statistics)

    check(conn, worker, usual)


def test_a_claim_costs_the_same_behind_a_million_unknown_tasks(conn, worker, usual, statistics):
    fill_unknown(conn, MILLION, priority=1000)
    enqueue_many(conn, *[{"name": "t"}] * 200)
    settle(conn, statistics)
    while tick(conn, 100_000).more:
        pass

    assert one(conn, "select count(*) from tasklib.parked") == MILLION
    check(conn, worker, usual)


def test_a_claim_costs_the_same_behind_dead_rows_that_a_snapshot_holds(
    conn, make_conn, worker, usual, statistics
):
    reader = make_conn()
    fill_ready(conn, "t", MILLION // 2)
    settle(conn, statistics)
    run(reader, "begin isolation level repeatable read")
    run(reader, "select from tasklib.tasks limit 1")
    # the first claim of a lane leaves a note that makes tick follow it
    finish(conn, worker, claim(conn, worker, 500))
    tick(conn)
    run(conn, "delete from tasklib.ready")
    for _ in range(3):
        tick(conn)
    run(conn, "delete from tasklib.task")
    enqueue_many(conn, *[{"name": "t"}] * 200)

    check(conn, worker, usual)


def empty_lanes(conn, worker):
    """Let 26,000 tasks pass through 200 lanes."""
    for priority in range(1, 201):
        enqueue_many(conn, *[{"name": "t", "priority": priority}] * 130)
    while held := claim(conn, worker, 1000):
        finish(conn, worker, held)


def vacuum(conn):
    """Vacuum as autovacuum would, and wait until the statistics know it."""
    # a session reports what it deleted at most once a second
    run(conn, "select pg_sleep(1.1)")
    for _ in range(50):
        run(conn, "vacuum tasklib.ready, tasklib.mark")
        run(conn, "select pg_stat_clear_snapshot()")
        if one(conn, "select pg_stat_get_dead_tuples('tasklib.ready'::regclass)") < 1000:
            return
        time.sleep(0.1)
    raise AssertionError("the statistics still count dead rows")


def test_a_claim_costs_little_more_behind_200_empty_lanes(conn, worker, usual, statistics):
    empty_lanes(conn, worker)
    settle(conn, statistics)
    tick(conn)
    vacuum(conn)
    advance(conn, "20 seconds")
    tick(conn)
    assert one(conn, "select count(*) from tasklib.mark") == 0
    vacuum(conn)
    enqueue_many(conn, *[{"name": "t", "priority": -1}] * 200)

    check(conn, worker, usual, 1.5)


def test_a_lane_that_a_snapshot_keeps_full_of_dead_rows_costs_a_claim_two_look_ups(
    conn, make_conn, worker, usual, statistics
):
    reader = make_conn()
    run(reader, "begin isolation level repeatable read")
    run(reader, "select from tasklib.tasks limit 1")
    empty_lanes(conn, worker)
    settle(conn, statistics)
    for _ in range(3):
        tick(conn)
    enqueue_many(conn, *[{"name": "t", "priority": -1}] * 200)

    assert claim_cost(conn, worker) <= usual + 200 * 8


@pytest.fixture
def history(conn):
    """A million finished tasks: one of a thousand failed, one of ten thousand tagged as rare."""
    fill_tasks(conn, "t", MILLION)
    run(
        conn,
        "update tasklib.task set name = 'rare', type = tasklib._type_of('rare')"
        " where right(id::text, 4) = '0007'",
    )
    run(
        conn,
        "insert into tasklib.done (task_id, started_at, finished_at, attempt, state)"
        " select id, clock_timestamp(), clock_timestamp(), 1,"
        " case right(id::text, 3) when '00a' then 2 when '00b' then 3 else 1 end from tasklib.task",
    )
    run(
        conn,
        "update tasklib.task set tags = '{\"batch\": \"w1\"}' where right(id::text, 4) = '0009'",
    )
    run(
        conn,
        "insert into tasklib.tag select tasklib._tag_pair('batch', '\"w1\"'), id"
        " from tasklib.task where tags is not null",
    )


@pytest.mark.slow
def test_lists_read_what_they_show_from_a_million_finished_tasks(conn, history):
    for analyzed in (False, True):
        if analyzed:
            run(conn, "analyze tasklib.task, tasklib.done, tasklib.tag")
        # thirteen look-ups a task, each of a few pages
        for filters in (
            "",
            "state => 'completed'",
            "state => 'failed'",
            "state => 'cancelled'",
            "state => 'running'",
            "state => 'pending'",
            "name => 't'",
            "name => 'rare'",
            "name => 'never'",
            'tags => \'{"batch": "w1"}\'',
            'tags => \'{"batch": "w2"}\'',
            "name => 'rare', state => 'completed'",
            "before => '015d3ef7-9c00-7000-8000-000000000000'",
        ):
            run(conn, f"select from tasklib.list({filters})")
            cost = buffers(conn, f"select from tasklib.list({filters})")
            assert cost <= 50 * 60 + 100, f"list({filters}) touches {cost} pages"


def test_get_reads_one_task_from_a_million(conn, worker):
    fill_ready(conn, "t", MILLION // 10)
    task_id = enqueue(conn)
    call(conn, "get", id=task_id)

    assert buffers(conn, "select from tasklib.get(%s)", task_id) <= 60


def test_finish_and_complete_cost_the_same_on_large_tables(conn, worker):
    fill_ready(conn, "t", MILLION // 10)
    finish(conn, worker, claim(conn, worker, 100))
    held = claim(conn, worker, 10)

    ids, attempts = [h.id for h in held], [1] * 10
    assert buffers(conn, "select tasklib.finish(%s, %s, %s)", worker, ids, attempts) <= 150


def test_an_idle_tick_touches_few_pages(conn, worker):
    fill_delayed(conn, MILLION // 10, priority=0)
    fill_ready(conn, "t", MILLION // 10)
    run(conn, "analyze")
    for _ in range(3):
        tick(conn)

    assert buffers(conn, "select from tasklib.tick()") <= 200
