"""Run the machines for long: ``make model ARGS='--steps 1000000'`` or ``ARGS='--minutes 30'``."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test

# in the place of this folder, whose model.py is not the package
sys.path[0] = str(Path(__file__).parents[1])

from model.machine import QueueMachine  # noqa: E402
from model.sessions import SESSIONS, SessionsMachine  # noqa: E402
from servers import serve  # noqa: E402
from tasklib._migrate import migrate  # noqa: E402

MACHINES: dict[str, type[Any]] = {"queue": QueueMachine, "sessions": SessionsMachine}
STEPS_OF_AN_EXAMPLE = 50


@contextmanager
def connected(url: str) -> Generator[None]:
    """Give the machines their sessions, on a database that nobody else uses."""
    with ExitStack() as stack:
        for machine in MACHINES.values():
            machine.connect(stack.enter_context(psycopg.connect(url, autocommit=True)))
        SessionsMachine.conns = [
            stack.enter_context(
                psycopg.connect(url, autocommit=True, options="-c lock_timeout=40ms")
            )
            for _ in range(SESSIONS)
        ]
        yield


def run(name: str, seed: int, steps: int, *, shrink: bool = True) -> int:
    """Make at least so many steps with a machine; return how many they were.

    Hypothesis shrinks what fails, prints it, and the seed repeats it.
    """
    machine = hypothesis.seed(seed)(type(name, (MACHINES[name],), {"steps": 0, "examples": 0}))
    while machine.steps < steps:
        settings = hypothesis.settings(
            database=None,
            deadline=None,
            max_examples=(steps - machine.steps) // STEPS_OF_AN_EXAMPLE + 1,
            phases=[Phase.generate, *[Phase.shrink] * shrink],
            stateful_step_count=STEPS_OF_AN_EXAMPLE,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_state_machine_as_test(machine, settings=settings)
        except BaseException as error:
            error.add_note(f"machine {name}, seed {seed}, within {machine.steps} steps")
            raise
        seed += 1_000_000
        machine = hypothesis.seed(seed)(machine)
    return machine.steps


def main() -> None:
    """Alternate between the machines until the steps or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, help="instead of a number of steps")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--machine", choices=list(MACHINES), help="only this one")
    given = parser.parse_args()
    names = [given.machine] if given.machine else list(MACHINES)
    began, made, seed = time.monotonic(), 0, given.seed
    with serve() as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("create database tasklib_model")
        url = server.conninfo("tasklib_model")
        migrate(url)
        with connected(url):
            while (
                time.monotonic() - began < given.minutes * 60
                if given.minutes
                else made < given.steps
            ):
                for name in names:
                    made += run(name, seed, 2000)
                seconds = time.monotonic() - began
                print(f"seed {seed}: {made:,} steps in {seconds:.0f} s, no divergence", flush=True)
                seed += 1


if __name__ == "__main__":
    main()
