"""Failover to a standby, synchronous and asynchronous, with the old primary coming back.

`TASKLIB_TEST_FAILOVERS` says how many times; `make failover` does it ten times.
"""

from __future__ import annotations

import os
from pathlib import Path

from failover.drill import Drill


def test_nothing_is_lost_but_what_was_committed_after_the_cut(tmp_path: Path) -> None:
    with Drill(tmp_path) as drill:
        for number in range(int(os.environ.get("TASKLIB_TEST_FAILOVERS", "2"))):
            drill.fail_over(synchronous=number % 2 == 0, rewind=number % 4 < 2)
