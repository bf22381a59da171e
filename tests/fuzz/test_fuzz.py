"""Hostile arguments end in documented errors, which change nothing: 20,000 calls in each run."""

from __future__ import annotations

import os

import pytest

from fuzz.fuzz import stream

CALLS = int(os.environ.get("TASKLIB_TEST_FUZZ_CALLS", "20000"))
SEED = int(os.environ.get("TASKLIB_TEST_FUZZ_SEED", "0"))
SHARDS = 6


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_hostile_calls_end_in_documented_errors_and_change_nothing(database, shard):
    share = -(-CALLS // SHARDS)
    with stream(database, SEED * SHARDS + shard) as fuzz:
        fuzz.run(share)

    assert fuzz.calls >= share


def test_each_argument_of_each_function_takes_or_refuses_each_value(database):
    with stream(database, 0) as fuzz:
        fuzz.matrix()
