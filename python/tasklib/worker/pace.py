"""When to look for tasks again, and how many to take: arithmetic without I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

# What was found may end at once, and then the next look goes with its outcome.
BREATH_SECONDS = 0.002
# From so many tasks a second on, a call for a few of them each would cost more than to run them.
FLOOD_RATE = 1500
FLOOD_SECONDS = 0.01
# After it has told producers that it sleeps: one that did not see that yet is caught by these.
SETTLING = (0.005, 0.05, 0.2, 1.0)
SLEEP_SECONDS = 15.0
# Producers notify a little longer than the worker sleeps, so that there is no gap between sleeps.
ARMED_SECONDS = 18.0

# Due, and yet not handed out: somebody else is at the housekeeping that would do it.
SHORTEST_SLEEP = 0.05

LOOKAHEAD_SECONDS = 0.1
MOST_AHEAD = 1000
MOST_AHEAD_BYTES = 4_000_000


class Pace:
    """Counts looks that found too little, of a worker that hears notifications.

    One that has found nothing for a while, however often it was called, is listed in the database
    as asleep: then it is called by its name, or not at all, so that one new task does not wake all
    workers.

    Attributes:
        next_look: The loop's time before which nothing is claimed, unless something wakes it.
        gathers_until: The loop's time before which nothing is claimed or finished at all.
        is_trickle: Tasks come one by one: after each it goes to sleep again at once.
        has_offered: The next lone task may be handed over to it.
    """

    def __init__(self) -> None:
        self.next_look = 0.0
        self.gathers_until = 0.0
        self.is_trickle = False
        self.has_offered = False
        self._found_at = 0.0
        self._is_flood = False
        self._had_enough = False
        self._due = 0.0
        self._looks = 0
        self._listed_until = 0.0
        self._idle_since = math.inf
        self._is_asleep = False
        self._is_called = False

    def goes_to_sleep(self, now: float, *, may_offer: bool = False) -> bool:
        """Tell whether producers are to be told with a look now that this worker sleeps.

        The answer says when something is due next; so it is asked again when that time has come.

        Args:
            now: The loop's time.
            may_offer: Whether this worker could be handed a task with it.
        """
        is_due = 0 < self._due <= now
        is_settled = self._looks == 0 or self._looks > len(SETTLING)
        has_news = may_offer and not self.has_offered
        is_awake = self._is_called or self._had_enough
        return not is_awake and (is_due or is_settled or has_news)

    def is_listed_next(self, now: float) -> bool:
        """Tell whether a look now is to list it as asleep for long; seldom, as it writes a row."""
        is_ending = self._listed_until <= now + ARMED_SECONDS - SLEEP_SECONDS
        is_idle = now - self._idle_since >= SLEEP_SECONDS
        return is_ending and (self._looks > len(SETTLING) or (self._looks == 0 and is_idle))

    def found_enough(self, now: float) -> None:
        """There may be more: look as soon as there is room."""
        self.next_look = now
        self._had_enough = True
        self._is_flood = self.has_offered = False
        self.is_trickle = self._is_asleep = self._is_called = False
        self._looks = 0
        self._listed_until = 0.0
        self._idle_since = math.inf

    def found_some(self, now: float, count: int) -> None:
        """The queue ran dry just now, after so many tasks."""
        was_called, was_flood = self._is_called, self._is_flood
        self.found_enough(now + BREATH_SECONDS)
        self.is_trickle = was_called
        self._had_enough = False
        self._is_flood = count > 1 and count >= FLOOD_RATE * (now - self._found_at)
        self._found_at = now
        if self._is_flood and was_flood:  # twice: not at the end of a pile
            self.gathers_until = self.next_look = now + FLOOD_SECONDS

    def handed_over(self, now: float) -> None:
        """Take a task that came by itself: it is what a look would have found."""
        self._is_called = True
        self.found_some(now, 1)

    def found_nothing(
        self, now: float, wait: float | None, *, is_listed: bool, has_offered: bool = False
    ) -> None:
        """A look that was on the plan found nothing.

        Args:
            now: The loop's time.
            wait: Seconds until the next task is due, at most; None when that was not asked.
            is_listed: Whether it listed the worker as asleep.
            has_offered: Whether it offered to take the next lone task.
        """
        self.has_offered = self.has_offered or has_offered
        self.is_trickle = self._is_flood = False
        self._idle_since = min(self._idle_since, now)
        has_to_say = self._is_called or (self._looks == 0 and wait is None)
        self._is_called = self._had_enough = False
        if has_to_say:
            # Somebody else was faster, or a look with outcomes could not say it: say it now.
            self.next_look = now
            return
        self._is_asleep = True
        if wait is not None:
            self._due = now + max(wait, SHORTEST_SLEEP)
        if is_listed:
            self._listed_until = now + ARMED_SECONDS
        pause = SETTLING[self._looks] if self._looks < len(SETTLING) else SLEEP_SECONDS
        self.next_look = min(now + pause, self._due if self._due > now else math.inf)
        self._looks = min(self._looks + 1, len(SETTLING) + 1)

    def called(self, now: float, *, by_name: bool) -> bool:
        """Take a notification; return whether it is a reason to look now."""
        if self._had_enough or (not by_name and now < self._listed_until):
            return False  # it looks as soon as there is room, or others are to come
        self.next_look = now
        self._looks = 0
        self._is_called = self._is_asleep
        return True


@dataclass(slots=True)
class Load:
    """What tasks cost, to claim ahead what fills a moment, and nothing that would wait for longer.

    What is claimed ahead waits behind what runs here, while it could run elsewhere: behind a slow
    task it has to go back. Nobody knows when the next slow one comes; it is a fair bet that as many
    quick ones come before it as came since the last.

    Attributes:
        seconds: How long a task takes: a moving average.
        quick: How many ended quickly since one did not.
        bytes: How large its arguments are.
    """

    seconds: float = 0.0
    quick: int = 0
    bytes: float = 0.0

    def ended(self, seconds: float) -> None:
        """Count how long one task took."""
        self.seconds = self.seconds * 0.9 + seconds * 0.1
        self.quick = self.quick + 1 if seconds <= LOOKAHEAD_SECONDS else 0

    def claimed(self, size: int) -> None:
        """Count how large the arguments of one task were."""
        self.bytes = max(size, self.bytes * 0.99)

    def ahead(self, concurrency: int, running_for: float) -> int:
        """Return how many tasks may wait here for a slot.

        Args:
            concurrency: How many run at a time.
            running_for: How long the oldest of those that run does so, in seconds.
        """
        if running_for > LOOKAHEAD_SECONDS:
            return 0
        in_time = concurrency * LOOKAHEAD_SECONDS / max(self.seconds, 0.0001)
        return int(min(self.quick, in_time, MOST_AHEAD, MOST_AHEAD_BYTES / max(self.bytes, 1.0)))
