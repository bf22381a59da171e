"""What goes in as an argument is what the function gets, whatever JSON makes of it on the way."""

import dataclasses
import enum
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from tasklib import InvalidArguments, SyncTaskQueue


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: int
    at: datetime


class Shape(BaseModel):
    points: list[Point]
    colours: set[Colour]


class Circle(Shape):
    radius: float


NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)

VALUES = [
    (datetime, NOW),
    (date, date(2026, 1, 2)),
    (timedelta, timedelta(hours=1.5)),
    (uuid.UUID, uuid.UUID(int=2**127 + 5)),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.BLUE),
    (Point, Point(1, NOW)),
    (Shape, Shape(points=[Point(1, NOW)], colours={Colour.RED})),
    (tuple[int, str], (1, "a")),
    (tuple[Point, ...], (Point(1, NOW), Point(2, NOW))),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (dict[int, list[Decimal]], {1: [Decimal("0.1")]}),
    (float, 1),
    (int, 2**80),
    (str | None, None),
    (bytes, b"abc"),
    (Any, {"a": [1, 2.5, None, "ü\N{GRINNING FACE}"]}),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES)
def test_a_value_comes_back_as_annotated(
    queue: SyncTaskQueue, drain: Any, annotation: Any, value: Any
) -> None:
    got: list[Any] = []

    def keep(value: Any) -> Any:
        got.append(value)
        return value

    keep.__annotations__ = {"value": annotation, "return": annotation}
    task = queue.task(keep)
    task_id = queue.enqueue(task, value)
    drain(queue)

    assert got == [value]
    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == value


def test_what_a_subclass_adds_is_not_lost_silently(queue: SyncTaskQueue) -> None:
    @queue.task
    def draw(shape: Shape) -> None: ...

    with pytest.raises(InvalidArguments, match="not be read back"):
        queue.enqueue(draw, Circle(points=[], colours=set(), radius=1))


def test_annotations_may_name_what_comes_later(queue: SyncTaskQueue, drain: Any) -> None:
    @queue.task
    def double(number: "Later") -> int:
        return number.value * 2

    @dataclasses.dataclass
    class Later:
        value: int

    globals()["Later"] = Later
    task_id = queue.enqueue(double, Later(4))
    drain(queue)

    result = queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.value == 8


def test_a_default_is_the_functions_own(queue: SyncTaskQueue) -> None:
    @queue.task
    def greet(name: str, greeting: str = "Hi") -> None: ...

    task = queue.get_task(queue.enqueue(greet, "Ada"))

    assert task is not None
    assert task.kwargs == {"name": "Ada"}


def test_open_arguments_are_kept(queue: SyncTaskQueue, drain: Any) -> None:
    got: list[Any] = []

    @queue.task
    def collect(first: int, **rest: Any) -> None:
        got.append((first, rest))

    queue.enqueue(collect, 1, b=[2])
    drain(queue)

    assert got == [(1, {"b": [2]})]
