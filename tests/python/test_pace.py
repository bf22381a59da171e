"""When a worker looks again, and how much it takes: without a clock."""

import pytest

from tasklib.worker.pace import MOST_AHEAD, Load, Pace


class Idler:
    """A worker that finds nothing, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pace = Pace()
        self.told: list[float] = []
        self.listed: list[float] = []
        self.looks: list[float] = []

    def look(self, wait: float = 18.0, *, with_outcomes: bool = False) -> None:
        self.now = max(self.now, self.pace.next_look)
        self.looks.append(self.now)
        asks = not with_outcomes and self.pace.goes_to_sleep(self.now)
        is_listed = asks and self.pace.is_listed_next(self.now)
        if asks:
            self.told.append(self.now)
        if is_listed:
            self.listed.append(self.now)
        self.pace.found_nothing(self.now, wait if asks else None, is_listed=is_listed)

    def idle(self, seconds: float) -> None:
        end = self.now + seconds
        while self.pace.next_look < end:
            self.look()
        self.now = end


def test_an_idle_worker_hardly_looks() -> None:
    idler = Idler()
    idler.idle(600)

    assert len(idler.looks) <= 600 / 15 + 6
    assert len(idler.looks) <= 600 / 5 * 0.5


def test_a_worker_says_that_it_sleeps_with_its_first_empty_look_and_looks_after_it() -> None:
    idler = Idler()
    idler.idle(2)

    assert idler.told == [100.0]
    assert [round(look - 100, 3) for look in idler.looks] == [0, 0.005, 0.055, 0.255, 1.255]


def test_there_is_no_gap_between_the_sleeps_that_producers_are_told_of() -> None:
    idler = Idler()
    idler.idle(120)

    gaps = [later - earlier for earlier, later in zip(idler.told, idler.told[1:], strict=False)]
    assert max(gaps) < 18


def test_a_sleeper_that_is_listed_comes_when_it_is_called_by_name_alone() -> None:
    idler = Idler()
    assert idler.pace.called(idler.now, by_name=False)
    idler.idle(30)

    assert idler.listed
    assert not idler.pace.called(idler.now, by_name=False)
    assert idler.pace.called(idler.now, by_name=True)
    assert idler.pace.next_look == idler.now


def test_a_worker_that_found_something_comes_at_any_call() -> None:
    idler = Idler()
    idler.idle(30)
    idler.pace.found_some(idler.now, 1)

    assert idler.pace.called(idler.now, by_name=False)


def test_calls_in_vain_do_not_make_a_sleeper_write_its_row_again_and_again() -> None:
    idler = Idler()
    idler.idle(30)
    idler.listed.clear()
    for _ in range(1000):
        idler.idle(0.1)
        assert idler.pace.called(idler.now, by_name=True)
        idler.look()
        idler.look()

    assert 3 <= len(idler.listed) <= 100 / 15 + 1


def test_a_worker_that_is_called_in_vain_for_a_while_is_listed() -> None:
    idler = Idler()
    for _ in range(80):
        idler.idle(0.2)
        if idler.pace.called(idler.now, by_name=False):
            idler.look()
            idler.look()

    assert [round(when - 100) for when in idler.listed] == [15]
    assert not idler.pace.called(idler.now, by_name=False)


def test_a_busy_worker_is_not_disturbed() -> None:
    idler = Idler()
    idler.pace.found_enough(idler.now)

    assert not idler.pace.called(idler.now, by_name=True)
    assert idler.pace.next_look == idler.now
    idler.look()
    assert idler.pace.called(idler.now, by_name=False)


def test_a_busy_worker_says_that_it_sleeps_only_when_all_is_done() -> None:
    idler = Idler()
    idler.idle(3)
    idler.told.clear()
    idler.pace.found_enough(idler.now)
    idler.look()
    assert idler.told == []

    idler.look()
    assert idler.told == [idler.now] == [idler.looks[-2]]


def test_a_worker_that_is_called_while_it_says_that_it_sleeps_looks_again() -> None:
    idler = Idler()
    assert idler.pace.goes_to_sleep(idler.now)
    idler.pace.found_nothing(idler.now, 18.0, is_listed=False)
    assert idler.pace.goes_to_sleep(idler.now, may_offer=True)
    idler.pace.called(idler.now, by_name=True)
    idler.pace.found_nothing(idler.now, 18.0, is_listed=False)

    assert idler.pace.next_look == idler.now


@pytest.mark.parametrize("outcomes", [1, 2, 3])
@pytest.mark.parametrize("found", ["enough", "some", "called"])
def test_looks_that_go_with_outcomes_do_not_put_off_to_say_that_it_sleeps(
    found: str, outcomes: int
) -> None:
    idler = Idler()
    idler.idle(3)
    idler.told.clear()
    if found == "enough":
        idler.pace.found_enough(idler.now)
    elif found == "some":
        idler.pace.found_some(idler.now, 7)
    else:
        idler.pace.called(idler.now, by_name=True)
    for _ in range(outcomes):
        idler.look(with_outcomes=True)
    idler.look()

    assert idler.told == [idler.now] == [idler.looks[-2]]


def test_a_worker_that_is_called_looks_before_it_says_that_it_sleeps() -> None:
    idler = Idler()
    idler.idle(3)
    idler.told.clear()
    idler.pace.called(idler.now, by_name=False)
    idler.look()
    assert idler.told == []
    idler.look()
    assert idler.told == [idler.now]


def test_a_worker_that_tasks_come_to_one_by_one_goes_to_sleep_with_each_outcome() -> None:
    idler = Idler()
    assert not idler.pace.is_trickle
    idler.idle(3)
    idler.pace.called(idler.now, by_name=False)
    idler.pace.found_some(idler.now, 1)
    assert idler.pace.is_trickle

    idler.pace.called(idler.now, by_name=False)
    idler.pace.found_some(idler.now, 1)
    assert not idler.pace.is_trickle


def test_tasks_that_pour_in_gather_for_a_moment() -> None:
    pace = Pace()
    pace.found_some(100.0, 20)
    pace.found_some(100.002, 8)
    pace.found_some(100.004, 8)
    assert pace.gathers_until == pace.next_look == pytest.approx(100.014)

    pace.found_some(100.014, 40)
    assert pace.gathers_until == pytest.approx(100.024)


def test_tasks_that_come_at_leisure_or_all_at_once_do_not_gather() -> None:
    pace = Pace()
    for millisecond in range(100):
        pace.found_some(100 + millisecond / 1000, 1)
    pace.found_some(101.0, 2)
    pace.found_some(101.01, 5)
    pace.found_enough(101.02)
    pace.found_some(101.021, 300)
    pace.found_nothing(101.03, None, is_listed=False)
    pace.found_some(101.031, 300)

    assert pace.gathers_until < 100


def test_a_sleeper_wakes_for_the_next_task_that_is_due() -> None:
    idler = Idler()
    idler.look(wait=3)
    while idler.pace.next_look < 103:
        idler.look()

    assert idler.pace.next_look == 103


def test_it_asks_again_when_what_it_waited_for_is_due() -> None:
    idler = Idler()
    idler.look(wait=0.6)
    idler.idle(0.59)
    idler.told.clear()
    idler.now = 100.6
    idler.look(wait=0)

    assert idler.told == [100.6]
    assert idler.pace.next_look <= 100.7


def test_a_task_that_is_due_and_not_handed_out_does_not_make_it_spin() -> None:
    idler = Idler()
    idler.idle(20)
    before = len(idler.looks)
    idler.look(wait=0)

    assert idler.pace.next_look >= idler.now + 0.05
    assert len(idler.looks) == before + 1


def test_quick_tasks_are_claimed_ahead_and_slow_ones_are_not() -> None:
    load = Load()
    assert load.ahead(10, 0) == 0
    for _ in range(2 * MOST_AHEAD):
        load.ended(0.00001)
    assert load.ahead(10, 0) == MOST_AHEAD
    for _ in range(100):
        load.ended(0.09)
    assert load.ahead(10, 0) == 11
    load.ended(60)
    assert load.ahead(10, 0) == 0


def test_no_more_is_claimed_ahead_than_came_without_a_slow_one() -> None:
    load = Load()
    for _ in range(20):
        load.ended(1.0)
        for n in range(50):
            assert load.ahead(100, 0) <= n
            load.ended(0.0001)
    assert load.ahead(100, 0) == 50


def test_nothing_is_claimed_ahead_behind_one_that_is_slow_already() -> None:
    load = Load()
    load.ended(0.0001)
    assert load.ahead(10, 0.09) == 1
    assert load.ahead(10, 0.11) == 0


def test_large_arguments_are_not_piled_up() -> None:
    load = Load()
    for _ in range(100):
        load.ended(0.00001)
    load.claimed(1_000_000)

    assert load.ahead(10, 0) == 4


def test_who_ran_something_when_it_fell_asleep_offers_when_that_has_ended() -> None:
    pace = Pace()
    pace.found_some(100.0, 1)
    assert pace.goes_to_sleep(100.0)
    pace.found_nothing(100.0, 18.0, is_listed=False)
    assert not pace.goes_to_sleep(100.01)
    assert pace.goes_to_sleep(100.01, may_offer=True)

    pace.found_nothing(100.01, 18.0, is_listed=False, has_offered=True)
    assert not pace.goes_to_sleep(100.1, may_offer=True)


def test_what_was_handed_over_is_a_trickle() -> None:
    idler = Idler()
    idler.look()
    idler.pace.handed_over(idler.now)

    assert idler.pace.is_trickle


def test_who_could_be_handed_a_task_says_so_once() -> None:
    idler = Idler()
    idler.look()
    assert not idler.pace.goes_to_sleep(idler.now)
    assert idler.pace.goes_to_sleep(idler.now, may_offer=True)

    idler.pace.found_nothing(idler.now, 18.0, is_listed=False, has_offered=True)
    assert not idler.pace.goes_to_sleep(idler.now, may_offer=True)
    idler.pace.found_enough(idler.now)
    idler.look()
    assert idler.pace.goes_to_sleep(idler.now, may_offer=True)
