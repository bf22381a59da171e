"""When to look for tasks again, and how many to take: arithmetic without I/O."""

from __future__ import annotations

import math

# A worker that just ran dry looks again soon, because more often than not more comes.
RESTLESS = (0.02, 0.06)
# After it has told producers that it sleeps: one that did not see that yet is caught by these.
SETTLING = (0.0, 0.05, 0.2, 1.0)
SLEEP_SECONDS = 10.0
# Producers notify a little longer than the worker sleeps, so that there is no gap between sleeps.
ARMED_SECONDS = 13.0

# Due, and yet not handed out: somebody else is at the housekeeping that would do it.
SHORTEST_SLEEP = 0.05

LOOKAHEAD_SECONDS = 0.1
MOST_AHEAD = 200


class Pace:
    """Counts looks that found too little.

    Attributes:
        next_look: The loop's time before which nothing is claimed, unless something wakes it.
    """

    def __init__(self) -> None:
        self.next_look = 0.0
        self._due = 0.0
        self._looks = 0

    def found_enough(self, now: float) -> None:
        """There may be more: look as soon as there is room."""
        self._looks = 0
        self.next_look = now

    def found_some(self, now: float) -> None:
        """The queue ran dry just now."""
        self._looks = 0
        self.found_nothing(now, sleep=None)

    def found_nothing(self, now: float, sleep: float | None) -> None:
        """A look that was on the plan found nothing.

        Args:
            now: The loop's time.
            sleep: Seconds until the next task is due, at most; None while that was not asked.
        """
        if sleep is not None:
            self._due = now + max(sleep, SHORTEST_SLEEP)
        plan = RESTLESS + SETTLING
        pause = plan[self._looks] if self._looks < len(plan) else SLEEP_SECONDS
        self.next_look = min(now + pause, self._due if self._due > now else math.inf)
        self._looks += 1

    def woken(self, now: float) -> None:
        """A notification came: look now, and a few times after it."""
        self.next_look = now
        self._looks = len(RESTLESS)

    @property
    def goes_to_sleep(self) -> bool:
        """Whether producers are to be told now that this worker sleeps."""
        return self._looks == len(RESTLESS) or self._looks >= len(RESTLESS + SETTLING)


class Durations:
    """A moving average of how long tasks take, to claim ahead what fills a moment."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, seconds: float) -> None:
        """Count one task."""
        self._mean = seconds if self._mean is None else self._mean * 0.9 + seconds * 0.1

    def ahead(self, concurrency: int) -> int:
        """Return how many tasks may wait here for a slot: none that would wait for long."""
        if self._mean is None:
            return 0
        return min(int(concurrency * LOOKAHEAD_SECONDS / max(self._mean, 0.0002)), MOST_AHEAD)
