"""Ids are UUIDs of version 7: in order of time, with the shard in their last 16 bits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

import pytest

from sql.support import call, enqueue, enqueue_many, one, refused, register, run


def test_an_id_is_a_uuid_of_version_seven(conn):
    task_id = enqueue(conn)

    assert (task_id.version, task_id.variant) == (7, "specified in RFC 4122")


def test_an_id_begins_with_its_time(conn):
    before = time.time()
    task_id = enqueue(conn)
    milliseconds = task_id.int >> 80

    assert before - 1 <= milliseconds / 1000 <= time.time() + 1


def test_ids_of_one_bulk_insert_ascend(conn):
    ids = [row.id for row in enqueue_many(conn, *[{"name": "t"}] * 10_000)]

    assert ids == sorted(set(ids))


def test_ids_of_one_session_ascend(conn):
    ids = [enqueue(conn) for _ in range(200)]

    assert ids == sorted(set(ids))


def test_ids_of_many_sessions_are_unique(make_conn):
    sessions = [make_conn() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(
            lambda s: [row.id for row in enqueue_many(s, *[{"name": "t"}] * 2000)], sessions
        )
        ids = [task_id for part in parts for task_id in part]

    assert len(set(ids)) == 8000


def test_the_first_shard_is_zero(conn):
    assert call(conn, "shard_of", id=enqueue(conn)) == 0


@pytest.mark.parametrize("shard", [1, 255, 4096, 65535])
def test_another_shard_is_in_every_id(conn, shard):
    run(conn, "update tasklib.config set shard = %s", shard)
    ids = [row.id for row in enqueue_many(conn, *[{"name": "t"}] * 50)]

    assert {call(conn, "shard_of", id=task_id) for task_id in ids} == {shard}
    assert {task_id.version for task_id in ids} == {7}
    assert ids == sorted(set(ids))


def test_a_shard_has_sixteen_bits(conn):
    for shard in (-1, 65536):
        with refused("23514"):
            run(conn, "update tasklib.config set shard = %s", shard)


def test_any_uuid_has_a_shard_and_null_has_none(conn):
    assert call(conn, "shard_of", id=UUID(int=2**128 - 1)) == 65535
    assert call(conn, "shard_of", id=None) is None


def test_a_worker_id_is_random_and_says_which_server_made_it(conn):
    workers = [register(conn) for _ in range(20)]

    assert len({str(worker)[:28] for worker in workers}) == 20
    assert len({str(worker)[28:] for worker in workers}) == 1
    assert {worker.version for worker in workers} == {8}
    assert {worker.variant for worker in workers} == {RFC_4122}
    assert one(conn, "select count(*) from tasklib.worker") == 20
