"""The benchmark runs: small numbers, nothing from the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).with_name("bench.py")


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCH, *words], capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_the_quick_form_measures_every_workload() -> None:
    ran = bench("--quick")
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "failed" not in ran.stdout, ran.stdout
    # Each bar that needs no peer has a figure.
    goals = ran.stdout.partition("## Goals")[2].partition("##")[0]
    for what in ("snapshot held", "16 clients", "idle worker", "memory"):
        lines = [line for line in goals.splitlines() if what in line]
        assert lines
        assert not any("not measured" in line for line in lines), goals


def test_a_wrong_name_is_refused_with_the_right_ones() -> None:
    ran = bench("--only", "speed")
    assert ran.returncode == 2
    assert "'speed' is none of one, bulk" in ran.stderr
