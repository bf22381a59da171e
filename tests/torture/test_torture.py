"""The short form of the torture: half a minute of everything, and what is counted afterwards."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torture.fleet import VARIABLE, find

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def torture(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nice", sys.executable, Path(__file__).with_name("torture.py"), *words],
        env={**os.environ, "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_nothing_is_lost_or_done_twice() -> None:
    ran = torture("--short")
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-4000:]}"
    assert "FAILED" not in ran.stdout


@pytest.mark.slow
def test_a_fault_is_noticed() -> None:
    ran = torture("--short", "--mutant", "complete-any")
    assert ran.returncode == 1, ran.stdout[-6000:]
    assert "FAILED  no call is accepted from a lease that has ended" in ran.stdout


def test_a_wrong_name_is_refused_with_the_right_ones() -> None:
    ran = torture("--mutant", "sleepy")
    assert ran.returncode == 2
    assert "'complete-any'" in ran.stderr


def test_one_that_was_stopped_is_told_to_go_on_although_its_parent_has_died() -> None:
    run = secrets.token_hex(6)
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo; wait"],
        env={**os.environ, VARIABLE: run},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        try:
            assert parent.stdout
            parent.stdout.readline()
            (child,) = [found for found in find(run) if found.parent == parent.pid]
            assert child.signal(signal.SIGSTOP)
            parent.kill()
            parent.wait()
            assert child.signal(signal.SIGCONT)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
