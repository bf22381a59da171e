"""What a task may be, and what is refused at decoration."""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tasklib import Backoff, ConfigurationError, SyncTaskQueue
from tasklib.registry import Registry


def named_like_an_option(priority: int) -> None: ...
def with_connection(connection: int) -> None: ...
def positional_only(a: int, /) -> None: ...
def variadic(*rest: int) -> None: ...
def annotated_open(**rest: int) -> None: ...
def no_data(file: sqlite3.Connection) -> None: ...
def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (named_like_an_option, r"'priority' is also an option.*\n.*\.options\(priority=\.\.\.\)"),
        (with_connection, r"\.options\(connection="),
        (positional_only, "no name to call it by"),
        (variadic, "no name to call it by"),
        (annotated_open, "cannot be checked"),
        (no_data, "sqlite3.Connection"),
        (generator, "generator"),
        (lambda: None, "no name of its own"),
    ],
)
def test_a_function_that_cannot_be_a_task_is_refused(
    func: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Registry().task(func)


class Methods:
    def plain(self, a: int) -> None: ...
    async def awaited(self) -> None: ...
    def of_class(cls) -> None: ...  # pyright: ignore[reportSelfClsParameterName]


@pytest.mark.parametrize("name", ["plain", "awaited", "of_class"])
def test_a_method_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Methods\.{name} is a method.*\n.*staticmethod"):
        Registry().task(name="app.method")(getattr(Methods, name))


def test_a_static_method_can_be_a_task() -> None:
    registry = Registry()

    class Mail:
        @staticmethod
        @registry.task
        def send(to: int) -> int:
            return to

        def make(self) -> Any:
            @registry.task
            def inner(self: int) -> int:
                return self

            return inner

    assert Mail.send(1) == Mail().make()(1) == 1
    assert Mail.send.new((1,), {}).kwargs == '{"to":1}'
    assert Mail().make().new((1,), {}).kwargs == '{"self":1}'
    assert Mail().make()(self=2) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"isolation": "fiber"},
        {"transactional": "yes"},
        {"transactional": True, "isolation": "process"},
        {"on_failure": print},
        {"max_retries": -1},
        {"timeout_seconds": 0},
        {"priority": "high"},
        {"backoff": {"base_seconds": -1}},
        {"queue": ""},
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    def work() -> None: ...

    with pytest.raises(ConfigurationError):
        Registry().task(**options)(work)


def test_a_name_belongs_to_one_function() -> None:
    registry = Registry()
    registry.task(name="app.work")(generator_free)

    with pytest.raises(ConfigurationError, match=r"two functions want to be task 'app\.work'"):
        registry.task(name="app.work")(named_otherwise)


def generator_free() -> None: ...
def named_otherwise() -> None: ...


def test_a_function_defined_again_replaces_itself() -> None:
    registry = Registry()
    for value in (1, 2):

        @registry.task(name="again")
        def work(value: int = value) -> int:
            return value

    assert registry.tasks["again"]() == 2


def test_calling_a_task_runs_it_here() -> None:
    @Registry().task
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, b=2) == 3
    assert add.__name__ == "add"


def test_options_given_at_the_call_go_before_the_decorators(queue: SyncTaskQueue) -> None:
    @queue.task(queue="mail", priority=1, max_retries=5, timeout_seconds=30)
    def send() -> None: ...

    plain = queue.get_task(queue.enqueue(send))
    asked = queue.get_task(queue.enqueue(send.options(priority=9, max_retries=0)))

    assert plain is not None
    assert asked is not None
    assert (plain.queue, plain.priority, plain.max_retries, plain.timeout_seconds) == (
        "mail", 1, 5, 30,
    )  # fmt: skip
    assert (asked.queue, asked.priority, asked.max_retries) == ("mail", 9, 0)


def test_options_can_be_laid_over_options(queue: SyncTaskQueue) -> None:
    @queue.task(backoff=Backoff(base_seconds=1))
    def work() -> None: ...

    both = work.options(tags={"a": 1}, priority=1).options(priority=2)
    task = queue.get_task(queue.enqueue(both))

    assert task is not None
    assert (task.tags, task.priority) == ({"a": 1}, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "n" * 129},
        {"retry_for": "ValueError"},
        {"give_up_on": (ValueError, int)},
        {"max_crashes": 0},
    ],
)
def test_what_the_database_would_refuse_later_is_refused_now(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Registry().task(**options)(generator_free)


@pytest.mark.parametrize(
    "func", [print, len, Registry, Registry().resolve, staticmethod(generator_free)]
)
def test_only_functions_become_tasks(func: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a function\n.*@staticmethod goes above"):
        Registry().task(func)
