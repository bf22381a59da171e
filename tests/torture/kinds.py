"""Which tasks there are, how often each is enqueued, and how it may end."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One task name.

    Attributes:
        weight: How many of a thousand tasks are of it.
        states: How it may end when nobody cancels it.
        max_retries: Attempts that may be charged, less one; None: never an end.
        max_crashes: Crashes that end it; None: never.
        seconds: Whether it takes an argument of this name, and how much it is at most.
        is_transactional: Whether it leaves one row in torture.effect, exactly.
    """

    weight: float
    states: tuple[str, ...] = ("completed",)
    max_retries: int | None = None
    max_crashes: int | None = None
    seconds: float | None = None
    is_transactional: bool = False


FAILED = ("failed",)
KINDS: dict[str, Kind] = {
    "quick": Kind(530, seconds=0.03),
    "thread": Kind(150, seconds=0.05),
    "child": Kind(50, seconds=0.05),
    "move": Kind(60, seconds=0.3, is_transactional=True),
    "move_in_thread": Kind(50, seconds=0.3, is_transactional=True),
    "long": Kind(3),
    "long_in_thread": Kind(2),
    "flaky": Kind(35),
    "again": Kind(20),
    "snooze": Kind(25),
    "rare": Kind(20),
    "give_up": Kind(10, ("cancelled",)),
    "broken": Kind(15, FAILED, max_retries=2, max_crashes=3),
    "typed": Kind(10, FAILED, max_retries=2, max_crashes=3),
    # Those that begin when the run is over return at once.
    "hang": Kind(4, ("failed", "completed"), max_retries=1, max_crashes=3),
    "hang_in_thread": Kind(3, ("failed", "completed"), max_retries=1, max_crashes=3),
    "hang_in_child": Kind(3, ("failed", "completed"), max_retries=1, max_crashes=3),
    "crash_child": Kind(2, FAILED, max_retries=3, max_crashes=2),
    "crash_worker": Kind(0.6, FAILED, max_retries=3, max_crashes=2),
    "hog": Kind(3, FAILED, max_retries=1, max_crashes=3),
    "calm": Kind(0, seconds=0),
}
NAMES = list(KINDS)
WEIGHTS = [kind.weight for kind in KINDS.values()]
# Neither do they wait for keys for long, nor do others wait for them.
KEYED = ("quick", "thread", "move", "flaky")

# Arguments of `typed` that its function, or a JSON reader, does not take. Not made by json.dumps:
# Python refuses to write a number of so many digits.
BAD_ARGUMENTS = (
    '{"mark": "MARK", "count": "five"}',
    '{"mark": "MARK"}',
    '{"mark": "MARK", "count": 1, "colour": "red"}',
    '{"mark": "MARK", "count": 1' + "0" * 5000 + "}",
)


@dataclass(frozen=True)
class Wanted:
    """One task to enqueue."""

    mark: str
    name: str
    kwargs: dict[str, Any]
    options: dict[str, Any]


def wanted(dice: random.Random, mark: str, *, keys: bool = True) -> Wanted:
    """Choose a task.

    Args:
        dice: What decides.
        mark: An argument that finds it again, whatever happens.
        keys: Whether it may have a unique key.
    """
    name = dice.choices(NAMES, WEIGHTS)[0]
    kwargs: dict[str, Any] = {"mark": mark}
    if KINDS[name].seconds is not None and dice.random() < 0.5:
        kwargs["seconds"] = round(dice.uniform(0, KINDS[name].seconds or 0), 3)
    options: dict[str, Any] = {}
    if dice.random() < 0.1:
        options["queue"] = "mail"
    if dice.random() < 0.1:
        options["priority"] = dice.randint(-2, 2)
    if dice.random() < 0.08:
        options["delay_seconds"] = round(dice.uniform(0.05, 1.5), 2)
    if dice.random() < 0.03:
        options["tags"] = {"mark": mark}
    if name in KEYED:
        if dice.random() < 0.07:
            options["concurrency_key"] = f"c{dice.randint(1, 12)}"
        if keys and dice.random() < 0.05:
            options["unique_key"] = f"u{dice.randint(1, 30)}"
            options["unique_until"] = dice.choice(["finished", "started"])
    return Wanted(mark, name, kwargs, options)
